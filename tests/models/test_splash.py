"""The TPU kernel, interpreted, says what the plain form says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import attention, splash
from lavit_jax.parallel.mesh import make_mesh, placed

B, S, H, G, D = 2, 256, 2, 2, 128
# Two packed segments and padding.
SEGMENTS = jnp.repeat(jnp.array([[1, 2, 2, 0], [1, 1, 1, 2]]), S // 4, axis=1)


def inputs():
    return tuple(
        jax.random.normal(jax.random.key(seed), (B, S, count, D))
        for seed, count in ((0, H), (1, G), (2, G))
    )


def both(weigh):
    """Values and gradients of the kernel and of the plain form; padding left out."""
    real = (SEGMENTS > 0)[..., None, None]
    probe = jax.random.normal(jax.random.key(3), (B, S, H, D)) * real

    def value(attend):
        return jax.value_and_grad(
            lambda q, k, v: (attend(q, k, v) * probe).sum() / S, argnums=(0, 1, 2)
        )

    mask = attention.causal_segment_mask(SEGMENTS)
    kernel = value(lambda q, k, v: splash.causal(q, k, v, SEGMENTS, interpret=True))
    plain = value(lambda q, k, v: attention.attend(q, k, v, mask))
    return weigh(kernel)(*inputs()), weigh(plain)(*inputs())


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_values_and_gradients_equal_the_plain_form():
    assert_same(*both(jax.jit))


@pytest.mark.parametrize("mesh", [{"data": 2, "sequence": 2, "tensor": 2}])
def test_and_do_on_a_mesh_that_splits_rows_heads_and_tokens(mesh):
    with placed(make_mesh(**mesh)):
        assert_same(*both(jax.jit))


@pytest.mark.parametrize(("length", "width"), [(200, 128), (256, 88)])
def test_rows_and_heads_that_are_no_whole_lanes_are_left_to_the_plain_form(length, width):
    assert splash.fits(256, 128)
    assert not splash.fits(length, width)


def test_off_tpus_packed_rows_are_a_mask():
    mask = attention.packed_rows(SEGMENTS, D)
    np.testing.assert_array_equal(mask, attention.causal_segment_mask(SEGMENTS))
