"""Keep/drop decisions."""

import functools

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from lavit_jax.models import selector
from lavit_jax.models.config import SelectorConfig
from lavit_jax.models.selector import DROP, KEEP, Selector
from random_params import random_params

B, N = 3, 9
limit_kept = jax.jit(selector.limit_kept, static_argnums=2)
kept_index = jax.jit(selector.kept_index, static_argnums=1)


def log_probs(seed, shape=(B, N)):
    return jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(seed), (*shape, 2)), axis=-1)


def soft_keep(log_probs, key, temperature):
    noise = jax.random.gumbel(key, log_probs.shape, jnp.float32)
    return jax.nn.softmax((log_probs + noise) / temperature, axis=-1)[..., KEEP]


def test_log_probabilities_are_float32_and_normalised():
    x = jax.random.normal(jax.random.key(0), (B, N, 16), jnp.bfloat16)
    choose = Selector(SelectorConfig(width=16))
    out = jax.jit(choose.apply)(random_params(choose.init, x), x)
    assert out.shape == (B, N, 2)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(jnp.exp(out).sum(axis=-1), 1, atol=1e-6)


def test_a_decision_sees_all_patches():
    choose = Selector(SelectorConfig(width=16))
    x = jax.random.normal(jax.random.key(0), (1, N, 16))
    run = jax.jit(functools.partial(choose.apply, random_params(choose.init, x)))
    changed = run(x.at[:, 5].multiply(-1.0)) - run(x)
    assert (jnp.abs(changed).max(axis=-1) > 0).all()


def test_sampled_decisions_are_hard_with_soft_gradients():
    key, temperature = jax.random.key(3), 0.7
    weight = jax.random.normal(jax.random.key(4), (B, N))
    keep = selector.gumbel_keep(log_probs(0), key, temperature)
    np.testing.assert_allclose(keep, jnp.round(keep), atol=1e-6)
    assert 0 < keep.sum() < keep.size
    hard = jax.grad(lambda x: (weight * selector.gumbel_keep(x, key, temperature)).sum())
    soft = jax.grad(lambda x: (weight * soft_keep(x, key, temperature)).sum())
    np.testing.assert_allclose(hard(log_probs(0)), soft(log_probs(0)), atol=1e-6)


def test_sampling_follows_the_probabilities():
    many = jnp.broadcast_to(log_probs(1, (1, N)), (20_000, N, 2))
    share = selector.gumbel_keep(many, jax.random.key(5)).mean(axis=0)
    np.testing.assert_allclose(share, jnp.exp(many[0, :, KEEP]), atol=0.02)


def test_the_same_key_gives_the_same_decisions():
    one, other = (selector.gumbel_keep(log_probs(0), jax.random.key(s)) for s in (0, 0))
    np.testing.assert_array_equal(one, other)
    assert (one != selector.gumbel_keep(log_probs(0), jax.random.key(1))).any()


@given(
    logits=arrays.arrays(
        np.float32, (B, N, 2), elements=st.floats(-20, 20, width=32, allow_subnormal=False)
    )
)
def test_greedy_keeps_the_likelier_and_never_nothing(logits):
    keep = np.asarray(selector.greedy_keep(jnp.asarray(logits)))
    likelier = logits[..., KEEP] > logits[..., DROP]
    best = np.eye(N, dtype=bool)[logits[..., KEEP].argmax(axis=1)]
    expected = np.where(likelier.any(axis=1, keepdims=True), likelier, best)
    np.testing.assert_array_equal(keep > 0.5, expected)


@given(
    keep=arrays.arrays(bool, (B, N)),
    scores=arrays.arrays(
        np.float32, (B, N), elements=st.floats(-9, 9, width=32, allow_subnormal=False), unique=True
    ),
    most=st.sampled_from([1, 4, N]),
)
def test_a_limit_keeps_the_best_of_the_kept(keep, scores, most):
    limited = limit_kept(jnp.asarray(keep, jnp.float32), jnp.asarray(scores), most)
    for row, before, score in zip(np.asarray(limited) > 0.5, keep, scores):
        best = sorted(np.flatnonzero(before), key=lambda i: -score[i])[:most]
        assert set(np.flatnonzero(row)) == set(best)


def test_a_limit_lets_gradients_pass_where_kept():
    keep, scores = jnp.ones((B, N)), log_probs(0)[..., KEEP]
    gradient = jax.grad(lambda k: selector.limit_kept(k, scores, 4).sum())(keep)
    np.testing.assert_array_equal(gradient.sum(axis=1), 4)


@given(keep=arrays.arrays(bool, (B, N)), length=st.sampled_from([1, 4, N]))
def test_kept_patches_come_first_in_raster_order(keep, length):
    kept = kept_index(jnp.asarray(keep, jnp.float32), length)
    for index, valid, row in zip(kept.index_BL, np.asarray(kept.valid_BL), keep):
        expected = np.flatnonzero(row)[:length]
        assert valid.sum() == len(expected)
        np.testing.assert_array_equal(index[valid], expected)
        assert not valid[len(expected) :].any()


def test_entropy_is_that_of_a_coin():
    entropy = selector.keep_entropy(jnp.log(jnp.full((B, N, 2), 0.5)))
    np.testing.assert_allclose(entropy, np.log(2), rtol=1e-5)
