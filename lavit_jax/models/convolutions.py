"""Convolutional building blocks shared by the U-Net and the autoencoder.

Legend: B batch, H height, W width, C channels, T width of the embedded time.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lavit_jax.models import layers, matmul, placement

Padding = tuple[tuple[int, int], tuple[int, int]]

AROUND: Padding = ((1, 1), (1, 1))
BEHIND: Padding = ((0, 1), (0, 1))
LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """[B, H, W, C] with a float32 kernel [size, size, C, F] to [B, H', W', F], in the dtype of `x`.

    The weight gradient leaves its convolution in float32, see `matmul.project`.
    """
    return _convolve(x, matmul.compute_copy(kernel, x.dtype), stride, padding)


def _forward(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, saved: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    copy = matmul.compute_copy(kernel, x.dtype)
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, copy, stride, padding), x)(grad)
    # A convolution of the inputs with the gradients, over rows of the batch: what a kernel's place
    # meets lies `stride` apart, and behind the inputs goes what makes the result a kernel's size.
    around = [
        (before, size - 1 + (steps - 1) * stride + 1 - before - length)
        for (before, _), size, steps, length in zip(
            padding, kernel.shape[:2], grad.shape[1:3], x.shape[1:3]
        )
    ]
    dkernel = jax.lax.conv_general_dilated(
        x,
        grad,
        (1, 1),
        around,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=kernel.dtype,
    )
    return dx, dkernel


convolve.defvjp(_forward, _backward)


def _convolve(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT
    )


def _for_flax() -> Any:
    """What flax's layer convolves with."""

    def run(x: Array, kernel: Array, strides: Any, padding: Any, **fixed: Any) -> Array:
        sides = tuple((int(before), int(behind)) for before, behind in padding)
        return convolve(x, kernel, strides[0], sides)

    return run


def conv(
    features: int,
    dtype: jnp.dtype,
    name: str | None = None,
    *,
    size: int = 3,
    stride: int = 1,
    padding: Padding | None = None,
    zero: bool = False,
) -> nn.Conv:
    """A convolution [B, H, W, C] -> [B, H', W', features]; keeps the size by default.

    Args:
      features: output channels.
      dtype: compute dtype.
      name: of the submodule.
      size: kernel side.
      stride: step each way.
      padding: rows before and after, columns before and after; default keeps the size.
      zero: starts as zero, for the last layer of a denoiser.
    """
    around = ((size // 2, size // 2),) * 2
    init = nn.initializers.zeros_init() if zero else layers.fan_in_init
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=around if padding is None else padding,
        dtype=dtype,
        promote_dtype=layers.cast_all_but_kernel,
        conv_general_dilated_cls=_for_flax,
        kernel_init=layers.with_axes(init, None, None, "embed", "mlp"),
        bias_init=layers.with_axes(nn.initializers.zeros_init(), "mlp"),
        name=name,
    )


def own_pictures(x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
    """Every device keeps whole pictures; where they are small, XLA would rather split channels."""
    return placement.constrain(x, "batch", *[None] * (x.ndim - 1))


class GroupNorm(nn.Module):
    """GroupNorm over channels and places, in float32, returned in the input's dtype."""

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *S C"]:
        norm = nn.GroupNorm(
            num_groups=self.groups,
            epsilon=self.eps,
            dtype=jnp.float32,
            use_fast_variance=False,
            scale_init=layers.with_axes(nn.initializers.ones_init(), "norm"),
            bias_init=layers.with_axes(nn.initializers.zeros_init(), "norm"),
            name="norm",
        )
        return norm(x).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, the time added between; around it a skip."""

    features: int
    groups: int
    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BHWC: Float[Array, "B H W C"], time_BT: Float[Array, "B T"] | None = None
    ) -> Float[Array, "B H W F"]:
        x_BHWC = own_pictures(x_BHWC)
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm1")(x_BHWC))
        h = own_pictures(conv(self.features, self.dtype, "conv1")(h))
        if time_BT is not None:
            time = layers.dense(self.features, ("embed", "mlp"), self.dtype, "time_proj")
            h = h + time(nn.silu(time_BT))[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm2")(h))
        h = conv(self.features, self.dtype, "conv2")(h)
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = conv(self.features, self.dtype, "skip", size=1)(x_BHWC)
        return own_pictures(x_BHWC + h)


class Downsample(nn.Module):
    """Halves each side by a strided convolution; padding 1 all around, or behind only."""

    padding: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        padding = AROUND if self.padding else BEHIND
        return conv(x_BHWC.shape[-1], self.dtype, "conv", stride=2, padding=padding)(x_BHWC)


class Upsample(nn.Module):
    """Nearest neighbour to a given size, then a convolution."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BHWC: Float[Array, "B h w C"], size: tuple[int, int]
    ) -> Float[Array, "B H W C"]:
        for axis, wanted in zip((1, 2), size):
            x_BHWC = stretch(x_BHWC, axis, wanted)
        return conv(x_BHWC.shape[-1], self.dtype, "conv")(x_BHWC)


def stretch(x: Array, axis: int, wanted: int) -> Array:
    """Nearest neighbours along one axis, as torch chooses them."""
    length = x.shape[axis]
    if wanted == 2 * length:
        return jnp.repeat(x, 2, axis=axis)
    return jnp.take(x, jnp.arange(wanted) * length // wanted, axis=axis)


def flat_places(x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B S C"]:
    """Places in raster order as tokens."""
    return jax.lax.collapse(x_BHWC, 1, 3)
