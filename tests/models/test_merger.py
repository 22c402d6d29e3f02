"""The merger's two attentions and two forms."""

import functools

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from lavit_jax.models import selector
from lavit_jax.models.config import MergerConfig, SelectorConfig
from lavit_jax.models.merger import Merger, MergerBlock
from lavit_jax.models.selector import Selector
from random_params import random_params

B, N, D = 2, 12, 32
FORMS = ("clean", "published")
ONE_KEPT = np.eye(N, dtype=bool)[[0, 7]]


def config(attention="clean"):
    return MergerConfig(width=D, depth=2, heads=2, mlp_ratio=2.0, attention=attention)


def features(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, N, D))


def sharpened(params, scale):
    """Query and key kernels times `scale`: logits times its square."""

    def sharp(path, x):
        return x * scale if {"query", "key"} & set(str(path).split("_")) else x

    return jax.tree_util.tree_map_with_path(
        lambda path, x: sharp(path[-2].key, x) if len(path) > 1 else x, params
    )


@functools.cache
def initial(attention="clean"):
    merger = Merger(config(attention))
    return random_params(merger.init, features(), jnp.ones((B, N)), seed=1)["params"]


@functools.cache
def both_forms():
    merger = Merger(config())

    def run(params, x, keep):
        kept = selector.kept_index(keep, N)
        masked = merger.apply({"params": params}, x, keep)
        gathered = merger.apply({"params": params}, x, keep, kept, method="gathered")
        picked = jnp.take_along_axis(masked, kept.index_BL[..., None], axis=1)
        return picked, gathered, kept.valid_BL

    return jax.jit(run)


def test_sharpening_reaches_every_query_and_key():
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), sharpened(initial(), 2), initial())
    names = {k for k, v in changed["blocks"].items() if v.get("kernel")}
    assert names == {"self_query", "self_key", "cross_query", "cross_key"}


@settings(max_examples=25)
@given(
    keep=arrays.arrays(bool, (B, N)).filter(lambda keep: keep.any(axis=1).all()),
    scale=st.sampled_from([1.0, 2.0, 5.0]),
    seed=st.integers(0, 5),
)
@example(keep=np.ones((B, N), bool), scale=1.0, seed=0)
@example(keep=np.ones((B, N), bool), scale=5.0, seed=1)
@example(keep=ONE_KEPT, scale=1.0, seed=2)
@example(keep=ONE_KEPT, scale=5.0, seed=3)
def test_gathered_form_equals_masked_form_at_kept_positions(keep, scale, seed):
    params = sharpened(initial(), scale)
    masked, gathered, valid = both_forms()(params, features(seed), jnp.asarray(keep, jnp.float32))
    assert valid.sum() == keep.sum()
    np.testing.assert_allclose(
        np.asarray(masked)[valid], np.asarray(gathered)[valid], atol=1e-5 * scale**2
    )


def test_a_shorter_gathered_form_is_the_same():
    keep = jnp.asarray(np.tile(np.arange(N) % 3 == 0, (B, 1)), jnp.float32)
    merger, variables, x = Merger(config()), {"params": initial()}, features()

    @jax.jit
    def both(x):
        kept = selector.kept_index(keep, 4)
        gathered = merger.apply(variables, x, keep, kept, method="kept_features")
        return merger.apply(variables, x, keep), gathered

    masked, gathered = both(x)
    np.testing.assert_allclose(masked[:, ::3], gathered, atol=1e-5)


def _block_difference(attention, scale):
    """How much kept positions of a block change when only the dropped streams do."""
    c = config(attention)
    keep = jnp.asarray(np.arange(N) % 2 == 0, jnp.float32)[None].repeat(B, 0)
    eye, causal = jnp.eye(N), jnp.tril(jnp.ones((N, N)))
    self_mask = (keep[:, None, :] * (1 - eye) + eye) * causal
    cross_mask = 1 - keep[:, None, :]
    params = jax.tree.map(lambda x: x[0], sharpened(initial(attention), scale)["blocks"])
    block = MergerBlock(c)

    @jax.jit
    def run(x):
        return block.apply({"params": params}, x, features(), self_mask, cross_mask)[0]

    other = jnp.where(keep[..., None] > 0, features(1), 30 * features(2))
    return float(jnp.abs((run(features(1)) - run(other))[:, ::2]).max())


@pytest.mark.parametrize("scale", [1.0, 2.0, 10.0])
def test_kept_queries_never_read_dropped_positions(scale):
    assert _block_difference("clean", scale) == 0


def test_published_attention_leaks_dropped_positions():
    assert _block_difference("published", 4.0) > 1e-3


def test_published_attention_has_no_gathered_form():
    keep = jnp.ones((B, N))
    with pytest.raises(ValueError, match="no gathered form"):
        Merger(config("published")).apply(
            {"params": initial("published")},
            features(),
            keep,
            selector.kept_index(keep, N),
            method="gathered",
        )


def test_a_kept_patch_sees_no_later_one():
    merger, params = Merger(config()), initial()
    keep = jnp.ones((B, N)).at[:, 3].set(0)
    run = jax.jit(lambda x: merger.apply({"params": params}, x, keep))
    x = features()
    changed = run(x.at[:, 8].multiply(-2.0))
    np.testing.assert_array_equal(changed[:, :8], run(x)[:, :8])
    assert jnp.abs(changed[:, 8:] - run(x)[:, 8:]).max() > 0.1


@pytest.mark.parametrize("attention", FORMS)
def test_selector_learns_through_the_masks(attention):
    choose, merger = Selector(SelectorConfig(width=D)), Merger(config(attention))
    selecting = random_params(choose.init, features(), seed=2)["params"]
    target = features(7)

    @jax.jit
    def gradient(selecting):
        def loss(selecting):
            log_probs = choose.apply({"params": selecting}, features())
            keep = selector.gumbel_keep(log_probs, jax.random.key(4))
            merged = merger.apply({"params": initial(attention)}, features(), keep)
            real = jax.lax.stop_gradient(keep)[..., None]
            return (jnp.square(merged - target) * real).sum()

        return jax.grad(loss)(selecting)

    for leaf in jax.tree.leaves(gradient(selecting)):
        assert jnp.isfinite(leaf).all()
        assert jnp.abs(leaf).max() > 0


def test_gradients_stay_finite_under_sharp_attention():
    merger, params = Merger(config()), sharpened(initial(), 20.0)
    keep = jnp.asarray(ONE_KEPT, jnp.float32)

    def run(keep):
        return merger.apply({"params": params}, features(), keep).sum()

    assert jnp.isfinite(jax.jit(jax.grad(run))(keep)).all()
