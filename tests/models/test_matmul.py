"""Products with kernels: their gradients, their sums in float32, and int8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import int8, matmul
from lavit_jax.parallel.mesh import make_mesh, placed

X = jax.random.normal(jax.random.key(0), (4, 6, 3, 8))
KERNEL = jax.random.normal(jax.random.key(1), (3, 8, 5))


def gradients(project, x, kernel):
    return jax.value_and_grad(lambda x, k: (project(x, k) ** 2).sum(), (0, 1))(x, kernel)


@pytest.mark.parametrize("mesh", [None, {"data": 4, "sequence": 2}])
def test_values_and_gradients_are_those_of_the_plain_product(mesh):
    plain = gradients(lambda x, k: jnp.einsum("bshd,hde->bse", x, k), X, KERNEL)
    if mesh is None:
        found = gradients(lambda x, k: matmul.project(x, k, 2), X, KERNEL)
    else:
        with placed(make_mesh(**mesh)):
            found = jax.jit(lambda x, k: gradients(lambda x, k: matmul.project(x, k, 2), x, k))(
                X, KERNEL
            )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, plain)


def test_the_weight_gradient_of_a_bfloat16_product_is_not_rounded_to_bfloat16():
    x = X.astype(jnp.bfloat16)
    _, (dx, dkernel) = gradients(
        lambda x, k: matmul.project(x, k, 2).astype(jnp.float32), x, KERNEL
    )
    assert (dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.float32)
    assert (dkernel != dkernel.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_int8_products_are_within_a_hundredth():
    exact, rounded = matmul.project(X, KERNEL, 2), int8.project(X, KERNEL, 2)
    assert rounded.dtype == X.dtype
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 1e-2


def test_int8_products_of_values_that_int8_has_are_exact():
    x = jnp.array([[127.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    kernel = jnp.array([[127.0, 1.0], [5.0, -127.0], [0.0, 2.0]])
    np.testing.assert_allclose(int8.project(x, kernel, 1), x @ kernel, rtol=1e-6)


def test_int8_gradients_are_the_plain_ones():
    def through(project):
        return jax.grad(lambda x, k: project(x, k, 2).sum(), (0, 1))(X, KERNEL)

    jax.tree.map(np.testing.assert_array_equal, through(int8.project), through(matmul.project))
