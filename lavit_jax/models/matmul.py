"""The one matmul of activations with parameters."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lavit_jax.models import placement


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, count: int) -> Array:
    """Contracts the last `count` axes of `x` with the first ones of a float32 kernel.

    Computed in the dtype of `x`. The weight gradient leaves its matmul in float32, so that it is
    summed over devices in float32 too; autodiff of a cast kernel would sum it in the compute dtype.
    """
    return _contract(x, compute_copy(kernel, x.dtype), count)


def _forward(x: Array, kernel: Array, count: int) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel, count), (x, kernel)


def project_backward(count: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Gradients of x and of the kernel."""
    x, kernel = saved
    cast = compute_copy(kernel, x.dtype)
    shape = x.shape
    if _flat():
        inner = math.prod(kernel.shape[:count])
        x, cast = x.reshape(-1, inner), cast.reshape(inner, -1)
        grad, count = grad.reshape(len(x), -1), 1
    rows = tuple(range(x.ndim - count))
    wide = tuple(range(len(rows), grad.ndim)), tuple(range(count, cast.ndim))
    dx = jax.lax.dot_general(grad, cast, (wide, ((), ())))
    dkernel = jax.lax.dot_general(
        x, grad, ((rows, rows), ((), ())), preferred_element_type=kernel.dtype
    )
    return dx.reshape(shape), dkernel.reshape(kernel.shape)


project.defvjp(_forward, project_backward)


def compute_copy(kernel: Array, dtype: jnp.dtype) -> Array:
    """A kernel in the compute dtype.

    XLA:TPU would move the cast of a layer out of the loop over layers, and so hold a copy of all
    layers' kernels through the step. The barrier keeps it where it is.
    """
    if kernel.dtype != dtype and placement.on_tpu():
        kernel = jax.lax.optimization_barrier(kernel)
    return kernel.astype(dtype)


def _contract(x: Array, kernel: Array, count: int) -> Array:
    if not _flat():
        axes = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
        return jax.lax.dot_general(x, kernel, (axes, ((), ())))
    inner = math.prod(kernel.shape[:count])
    out = jnp.dot(x.reshape(-1, inner), kernel.reshape(inner, -1))
    return out.reshape(x.shape[: x.ndim - count] + kernel.shape[count:])


def _flat() -> bool:
    """Whether matmuls are written with two axes each.

    The same numbers; but XLA:CPU copies the transposed operand of a weight gradient that contracts
    over several axes (three times slower through an MLP), of a flat one it does not. Rows whose
    tokens are split over devices cannot be flattened without moving them.
    """
    return not placement.on_tpu() and placement.axis_parts("length") == 1
