"""KL autoencoder between pictures and latents, and its decode in tiles.

Legend: B batch, H height, W width (of latents h, w), C channels, Z latent channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lavit_jax.models import layers
from lavit_jax.models.attention import attend
from lavit_jax.models.convolutions import (
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    conv,
    flat_places,
)
from lavit_jax.models.pixel_config import AutoencoderConfig

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)
# Share of a tile's side that it has in common with the next (ours, as diffusers).
OVERLAP = 0.25


class Latents(NamedTuple):
    """A Gaussian over latents, not scaled."""

    mean_BhwZ: Float[Array, "B h w Z"]
    logvar_BhwZ: Float[Array, "B h w Z"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "B h w Z"]:
        noise = jax.random.normal(key, self.mean_BhwZ.shape)
        return self.mean_BhwZ + jnp.exp(0.5 * self.logvar_BhwZ) * noise


class PlaceAttention(nn.Module):
    """One head over all places; around it a skip."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        width = x_BHWC.shape[-1]
        h = flat_places(GroupNorm(self.groups, NORM_EPS, name="norm")(x_BHWC))
        q, k, v = (
            layers.dense(width, ("embed", None), self.dtype, name)(h)[:, :, None]
            for name in ("query", "key", "value")
        )
        out = layers.dense(width, (None, "embed"), self.dtype, "proj")(attend(q, k, v)[:, :, 0])
        return x_BHWC + out.reshape(x_BHWC.shape)


class _Half(nn.Module):
    """What encoder and decoder have in common."""

    config: AutoencoderConfig

    def residual(self, name: str, features: int, x: Array) -> Array:
        c = self.config
        return ResidualBlock(features, c.groups, NORM_EPS, c.compute_dtype, name=name)(x)

    def middle(self, x: Array) -> Array:
        c = self.config
        x = self.residual("middle_residual0", c.channels[-1], x)
        if c.middle_attention:
            x = PlaceAttention(c.groups, c.compute_dtype, name="middle_attention")(x)
        return self.residual("middle_residual1", c.channels[-1], x)

    def out(self, features: int, x: Array) -> Array:
        c = self.config
        x = nn.silu(GroupNorm(c.groups, NORM_EPS, name="norm")(x))
        return conv(features, c.compute_dtype, "out_conv")(x)


class Encoder(_Half):
    """Pictures to mean and log variance of their latents."""

    @nn.compact
    def __call__(self, images_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w 2Z"]:
        c = self.config
        x = conv(c.channels[0], c.compute_dtype, "in_conv")(images_BHWC)
        for level, width in enumerate(c.channels):
            for i in range(c.layers):
                x = self.residual(f"down{level}_residual{i}", width, x)
            if level < len(c.channels) - 1:
                x = Downsample(0, c.compute_dtype, name=f"down{level}_sample")(x)
        return self.out(2 * c.latent_channels, self.middle(x))


class Decoder(_Half):
    """Latents to pictures."""

    @nn.compact
    def __call__(self, latents_BhwZ: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        c = self.config
        x = conv(c.channels[-1], c.compute_dtype, "in_conv")(latents_BhwZ)
        x = self.middle(x)
        for level in reversed(range(len(c.channels))):
            for i in range(c.layers + 1):
                x = self.residual(f"up{level}_residual{i}", c.channels[level], x)
            if level > 0:
                size = (2 * x.shape[1], 2 * x.shape[2])
                x = Upsample(c.compute_dtype, name=f"up{level}_sample")(x, size)
        return self.out(c.image_channels, x)


class Autoencoder(nn.Module):
    """Both halves; latents go in and out unscaled."""

    config: AutoencoderConfig

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        if c.quant_conv:
            self.quant_conv = conv(2 * c.latent_channels, c.compute_dtype, size=1)
        if c.post_quant_conv:
            self.post_quant_conv = conv(c.latent_channels, c.compute_dtype, size=1)

    def encode(self, images_BHWC: Float[Array, "B H W C"]) -> Latents:
        """Pictures in [-1, 1], sides multiples of `factor`, to a Gaussian over latents, float32."""
        x = self.encoder(images_BHWC.astype(self.config.compute_dtype))
        if self.config.quant_conv:
            x = self.quant_conv(x)
        mean, logvar = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return Latents(mean, jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, latents_BhwZ: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        """Latents to pictures around [-1, 1], float32, not clipped."""
        x = latents_BhwZ.astype(self.config.compute_dtype)
        if self.config.post_quant_conv:
            x = self.post_quant_conv(x)
        return self.decoder(x).astype(jnp.float32)

    def __call__(self, images_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """There and back by the mean."""
        return self.decode(self.encode(images_BHWC).mean_BhwZ)


def scale(config: AutoencoderConfig, latents: Array) -> Array:
    """Latents of the autoencoder to those that are diffused."""
    return (latents - config.shift) * config.scaling


def unscale(config: AutoencoderConfig, latents: Array) -> Array:
    """Inverse of `scale`."""
    return latents / config.scaling + config.shift


def to_unit(pixels: Array) -> Array:
    """Pictures from [-1, 1] to [0, 1], clipped."""
    return jnp.clip(pixels / 2 + 0.5, 0.0, 1.0)


def from_unit(pixels: Array) -> Array:
    """Pictures from [0, 1] to [-1, 1]."""
    return 2.0 * pixels - 1.0


def tile_starts(length: int, tile: int) -> tuple[int, ...]:
    """Where tiles begin along one side: evenly spread, neighbours overlapping by `OVERLAP`."""
    if tile >= length:
        return (0,)
    step = max(1, math.floor(tile * (1 - OVERLAP)))
    count = math.ceil((length - tile) / step) + 1
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count))


def _ramp(size: int, overlap: int) -> Float[Array, "size"]:
    """Weights of a tile along one side: rising over the overlap at both ends, never zero."""
    rise = jnp.minimum(jnp.arange(size), jnp.arange(size)[::-1]) + 1.0
    return jnp.minimum(rise / (overlap + 1), 1.0)


def decode_tiled(
    decode: Callable[[Array], Array],
    latents_BhwZ: Float[Array, "B h w Z"],
    tile: int,
    factor: int,
) -> Float[Array, "B H W C"]:
    """Decodes tile after tile and blends them, for pictures whose whole decode memory forbids.

    Norms and the middle attention see one tile at a time, so colours may drift a little between
    tiles; with a tile at least as large as the latents it is the whole decode.

    Args:
      decode: latents of one tile to its pixels.
      latents_BhwZ: unscaled latents.
      tile: side of a tile in latents.
      factor: pixels per latent.
    """
    batch, height, width, channels = latents_BhwZ.shape
    tall, wide = min(tile, height), min(tile, width)
    if (tall, wide) == (height, width):
        return decode(latents_BhwZ)
    starts = jnp.array(
        [(y, x) for y in tile_starts(height, tall) for x in tile_starts(width, wide)]
    )
    weight = functools.reduce(
        jnp.multiply.outer,
        [_ramp(side * factor, int(side * OVERLAP) * factor) for side in (tall, wide)],
    )[None, :, :, None]

    def add(canvas: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        total, weights = canvas
        cut = jax.lax.dynamic_slice(
            latents_BhwZ, (0, start[0], start[1], 0), (batch, tall, wide, channels)
        )
        place = (0, start[0] * factor, start[1] * factor, 0)
        pixels = decode(cut) * weight
        there = jax.lax.dynamic_slice(total, place, pixels.shape)
        known = jax.lax.dynamic_slice(weights, place, weight.shape)
        return (
            jax.lax.dynamic_update_slice(total, there + pixels, place),
            jax.lax.dynamic_update_slice(weights, known + weight, place),
        ), None

    out = jax.eval_shape(decode, latents_BhwZ[:, :tall, :wide])
    shape = (batch, height * factor, width * factor, out.shape[-1])
    start = (jnp.zeros(shape), jnp.zeros((1, *shape[1:3], 1)))
    (total, weights), _ = jax.lax.scan(add, start, starts)
    return total / weights
