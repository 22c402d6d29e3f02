"""Convolutions: their gradients, and their sums in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import convolutions
from lavit_jax.models.convolutions import AROUND, BEHIND, LAYOUT

KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 4, 5))


def gradients(convolve, x, kernel):
    return jax.value_and_grad(lambda x, k: (convolve(x, k) ** 2).sum(), (0, 1))(x, kernel)


@pytest.mark.parametrize(
    ("stride", "padding", "side"),
    [(1, AROUND, 6), (2, AROUND, 6), (2, AROUND, 7), (2, BEHIND, 6), (1, ((0, 0), (0, 0)), 5)],
)
def test_values_and_gradients_are_those_of_the_plain_convolution(stride, padding, side):
    x = jax.random.normal(jax.random.key(0), (2, side, side + 2, 4))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
        )

    expected = gradients(plain, x, KERNEL)
    found = gradients(lambda x, k: convolutions.convolve(x, k, stride, padding), x, KERNEL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_the_weight_gradient_of_a_bfloat16_convolution_is_not_rounded_to_bfloat16():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4)).astype(jnp.bfloat16)
    _, (dx, dkernel) = gradients(
        lambda x, k: convolutions.convolve(x, k, 1, AROUND).astype(jnp.float32), x, KERNEL
    )
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)
    assert (dkernel != dkernel.astype(jnp.bfloat16).astype(jnp.float32)).any()
