"""Matmuls in int8, quantized as they are computed (AQT's recipe); gradients stay in x's dtype.

Chips with int8 units multiply twice as fast, and fully sharded kernels are gathered in a quarter of
their bytes. Each row of the inputs and each column of the kernel gets its own scale; what rounding
does to the result is as if it had been added noise (straight-through).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lavit_jax.models import matmul

LARGEST = 127.0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, kernel: Array, count: int) -> Array:
    """As `matmul.project`, forward in int8."""
    x8, x_scale = quantize(x, tuple(range(x.ndim - count, x.ndim)))
    kernel8, kernel_scale = quantize(kernel, tuple(range(count)))
    axes = tuple(range(x.ndim - count, x.ndim)), tuple(range(count))
    whole = jax.lax.dot_general(x8, kernel8, (axes, ((), ())), preferred_element_type=jnp.int32)
    rows, columns = x.shape[: x.ndim - count], kernel.shape[count:]
    scales = x_scale.reshape(*rows, *[1] * len(columns)) * kernel_scale.reshape(columns)
    return (whole.astype(jnp.float32) * scales).astype(x.dtype)


def quantize(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """int8 values and the float32 scale they share along axes (kept, of size 1)."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis=axes, keepdims=True), 1e-12) / LARGEST
    return jnp.round(x / scale).astype(jnp.int8), scale


def _forward(x: Array, kernel: Array, count: int) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel, count), (x, kernel)


project.defvjp(_forward, matmul.project_backward)
