"""Masks, groups and the two multiplicative forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import attention

B, S, H, D = 2, 6, 4, 8


def heads(seed, count=H):
    return jax.random.normal(jax.random.key(seed), (B, S, count, D))


def test_grouped_heads_equal_repeated_ones():
    q, k, v = heads(0), heads(1, 2), heads(2, 2)
    mask = jnp.tril(jnp.ones((B, S, S), bool))
    repeated = attention.attend(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2), mask)
    np.testing.assert_allclose(attention.attend(q, k, v, mask), repeated, atol=1e-6)


def test_masked_keys_weigh_nothing():
    q, k, v = heads(0), heads(1), heads(2)
    mask = jnp.ones((B, S, S), bool).at[:, :, 4:].set(False)
    out = attention.attend(q, k.at[:, 4:].set(50.0), v.at[:, 4:].set(1e6), mask)
    np.testing.assert_allclose(out, attention.attend(q, k[:, :4], v[:, :4]), atol=1e-6)


def test_a_bias_is_added_to_the_logits():
    q, k, v = heads(0), heads(1), heads(2)
    bias = jnp.zeros((B, S, S)).at[:, :, 2].set(1e4)
    out = attention.attend(q, k, v, bias_BQK=bias)
    np.testing.assert_allclose(out, jnp.broadcast_to(v[:, 2:3], v.shape), atol=1e-6)


def test_segments_and_causality():
    mask = np.asarray(attention.causal_segment_mask(jnp.array([[0, 1, 1, 2, 2, 0]])))[0]
    readable = {(i, j) for i, j in zip(*mask.nonzero())}
    assert readable == {(1, 1), (2, 1), (2, 2), (3, 3), (4, 3), (4, 4)}


@pytest.mark.parametrize("form", ["clean", "published"])
def test_where_all_is_allowed_the_forms_are_softmax(form):
    q, k, v = heads(0), heads(1), heads(2)
    out = attention.policy_attend(q, k, v, jnp.ones((B, 1, S)), form)
    np.testing.assert_allclose(out, attention.attend(q, k, v), atol=2e-6)


def test_where_nothing_is_allowed_published_averages_and_clean_is_silent():
    q, k, v, none = heads(0), heads(1), heads(2), jnp.zeros((B, 1, S))
    average = jnp.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
    np.testing.assert_allclose(
        attention.policy_attend(q, k, v, none, "published"), average, atol=1e-6
    )
    assert (attention.policy_attend(q, k, v, none, "clean") == 0).all()


def test_forbidden_keys_far_above_do_not_disturb_the_clean_form():
    q, v = jnp.ones((1, 1, 1, D)), heads(2)[:1, :, :1]
    k = jnp.full((1, S, 1, D), -20.0).at[:, 0].set(20.0)
    mask = jnp.ones((1, 1, S)).at[:, :, 0].set(0)
    clean = attention.policy_attend(q, k, v, mask, "clean")
    np.testing.assert_allclose(clean[0, 0, 0], v[0, 1:, 0].mean(axis=0), atol=1e-6)
    # The published maximum runs over forbidden keys too: eps wins, and key 0 is averaged in.
    published = attention.policy_attend(q, k, v, mask, "published")
    np.testing.assert_allclose(published[0, 0, 0], v[0, :, 0].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("form", ["clean", "published"])
def test_the_mask_gets_a_gradient_where_it_is_zero_too(form):
    mask = jnp.ones((B, 1, S)).at[:, :, 2].set(0)

    def loss(m):
        return (attention.policy_attend(heads(0), heads(1), heads(2), m, form) ** 2).sum()

    gradient = jax.grad(loss)(mask)
    assert jnp.isfinite(gradient).all()
    assert (jnp.abs(gradient) > 1e-4).all()
