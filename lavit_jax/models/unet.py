"""Conditional U-Net of both pixel decoders, SD 1.5-style and SDXL-style by its config (SPEC 9).

Legend: B batch, H height, W width, C channels, S places, L condition tokens, F condition width,
T width of the embedded time, P width of the pooled condition.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lavit_jax.models import layers, placement
from lavit_jax.models.attention import attend
from lavit_jax.models.convolutions import (
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    conv,
    flat_places,
    own_pictures,
)
from lavit_jax.models.pixel_config import UNetConfig

ATTENTION_NORM_EPS = 1e-6
BLOCK_NORM_EPS = 1e-5
# What the published code adds to the logits of masked condition tokens.
MASKED = -10000.0


class Condition(NamedTuple):
    """What a picture is painted from.

    Attributes:
      tokens_BLF: what the cross-attentions read.
      mask_BL: which of the tokens are real; None: all.
      pooled_BP: pooled condition, where the U-Net takes one.
      sizes_B6: original height, width, crop top, left, target height, width, likewise.
    """

    tokens_BLF: Float[Array, "B L F"]
    mask_BL: Bool[Array, "B L"] | None = None
    pooled_BP: Float[Array, "B P"] | None = None
    sizes_B6: Float[Array, "B 6"] | None = None


def join(first: Condition, second: Condition) -> Condition:
    """One batch of two, rows of the first before rows of the second."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def sinusoids(
    numbers: Float[Array, "*S"], width: int, cos_first: bool, shift: float
) -> Float[Array, "*S W"]:
    """Sines and cosines of numbers at `width // 2` frequencies, float32."""
    half = width // 2
    # By numpy: a compiler's exp differs by an ulp or two, which a time of 1000 multiplies.
    exponents = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32)
    frequencies = np.exp(exponents / np.float32(half - shift))
    angles = numbers.astype(jnp.float32)[..., None] * frequencies
    waves = [jnp.cos(angles), jnp.sin(angles)]
    embedded = jnp.concatenate(waves if cos_first else waves[::-1], axis=-1)
    return jnp.pad(embedded, [(0, 0)] * numbers.ndim + [(0, width % 2)])


def laid_out(tokens_BLF: Array, height: int, width: int) -> Float[Array, "B H W F"]:
    """Tokens of a square of places as a map of another size."""
    batch, count, features = tokens_BLF.shape
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"unet.placed needs a condition of a square of places, got {count} tokens")
    grid = tokens_BLF.reshape(batch, side, side, features)
    return jax.image.resize(grid, (batch, height, width, features), "nearest")


class TimeMlp(nn.Module):
    """Linear, SiLU, Linear to the width of the embedded time."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BW: Float[Array, "B W"]) -> Float[Array, "B T"]:
        h = layers.dense(self.width, ("embed", "mlp"), self.dtype, "fc1")(x_BW.astype(self.dtype))
        return layers.dense(self.width, ("mlp", "embed"), self.dtype, "fc2")(nn.silu(h))


class TransformerBlock(nn.Module):
    """Self-attention of places, cross-attention to the condition, gated MLP."""

    heads: int
    dtype: jnp.dtype

    def _attend(self, name: str, x: Array, read: Array, bias: Array | None) -> Array:
        width = x.shape[-1]
        q, k, v = (
            layers.head_projection(
                self.heads, width // self.heads, self.dtype, f"{name}_{part}", use_bias=False
            )(source)
            for part, source in (("query", x), ("key", read), ("value", read))
        )
        out = attend(q, k, v, bias_BQK=bias)
        return layers.merge_heads(width, self.dtype, f"{name}_proj")(out)

    @nn.compact
    def __call__(
        self,
        x_BSC: Float[Array, "B S C"],
        tokens_BLF: Float[Array, "B L F"],
        bias_B1L: Float[Array, "B 1 L"] | None,
    ) -> tuple[Float[Array, "B S C"], None]:
        width = x_BSC.shape[-1]
        x_BSC = own_pictures(x_BSC)
        h = layers.LayerNorm(BLOCK_NORM_EPS, name="norm1")(x_BSC)
        x_BSC = own_pictures(x_BSC + self._attend("self", h, h, None))
        h = layers.LayerNorm(BLOCK_NORM_EPS, name="norm2")(x_BSC)
        x_BSC = own_pictures(x_BSC + self._attend("cross", h, tokens_BLF, bias_B1L))
        h = layers.LayerNorm(BLOCK_NORM_EPS, name="norm3")(x_BSC)
        h = layers.dense(8 * width, ("embed", "mlp"), self.dtype, "gated")(h)
        h, gate = jnp.split(h, 2, axis=-1)
        h = layers.dense(width, ("mlp", "embed"), self.dtype, "out")(h * layers.gelu(gate))
        return own_pictures(x_BSC + h), None


class SpatialTransformer(nn.Module):
    """Transformer blocks over all places of a level; around them a skip."""

    heads: int
    depth: int
    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x_BHWC: Float[Array, "B H W C"],
        tokens_BLF: Float[Array, "B L F"],
        bias_B1L: Float[Array, "B 1 L"] | None,
    ) -> Float[Array, "B H W C"]:
        width = x_BHWC.shape[-1]
        h = flat_places(GroupNorm(self.groups, ATTENTION_NORM_EPS, name="norm")(x_BHWC))
        h = layers.dense(width, ("embed", None), self.dtype, "in_proj")(h)
        blocks = layers.stack(TransformerBlock, self.depth, "none", 1)
        h, _ = blocks(self.heads, self.dtype, name="blocks")(h, tokens_BLF, bias_B1L)
        h = layers.dense(width, (None, "embed"), self.dtype, "out_proj")(h)
        return x_BHWC + h.reshape(x_BHWC.shape)


class UNet(nn.Module):
    """Noisy latents, time and condition to the prediction (noise, or what the schedule names)."""

    config: UNetConfig

    def _residual(self, name: str, features: int, *args: Array) -> Array:
        c = self.config
        block = nn.remat(ResidualBlock, prevent_cse=False) if c.remat else ResidualBlock
        return block(features, c.groups, c.norm_eps, c.compute_dtype, name=name)(*args)

    def _attention(self, name: str, level: int, x: Array, read: tuple[Array, Any]) -> Array:
        c = self.config
        block = nn.remat(SpatialTransformer, prevent_cse=False) if c.remat else SpatialTransformer
        heads, depth = c.heads[level], c.depths[level]
        return block(heads, depth, c.groups, c.compute_dtype, name=name)(x, *read)

    @nn.compact
    def __call__(
        self,
        latents_BHWC: Float[Array, "B H W C"],
        time_B: Float[Array, "B"],
        condition: Condition,
    ) -> Float[Array, "B H W c"]:
        """Returns the prediction, float32.

        Args:
          latents_BHWC: noisy latents.
          time_B: time step of each, whole or not.
          condition: what is painted.
        """
        c = self.config
        dtype = c.compute_dtype
        time = placement.constrain(self._time(time_B, condition), "batch", None)
        read = self._read(condition)
        x = latents_BHWC.astype(dtype)
        if c.placed:
            x = jnp.concatenate([x, laid_out(read[0], *x.shape[1:3])], axis=-1)
        x = conv(c.channels[0], dtype, "in_conv")(x)
        skips = [x]
        for level, width in enumerate(c.channels):
            for i in range(c.layers[level]):
                x = self._residual(f"down{level}_residual{i}", width, x, time)
                if c.down_attention[level]:
                    x = self._attention(f"down{level}_attention{i}", level, x, read)
                skips.append(x)
            if level < c.levels - 1:
                x = Downsample(c.padding, dtype, name=f"down{level}_sample")(x)
                skips.append(x)
        x = self._middle(x, time, read)
        for level in reversed(range(c.levels)):
            for i in range(c.layers[level] + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._residual(f"up{level}_residual{i}", c.channels[level], x, time)
                if c.up_attention[level]:
                    x = self._attention(f"up{level}_attention{i}", level, x, read)
            if level > 0:
                _, height, wide, _ = skips[-1].shape
                x = Upsample(dtype, name=f"up{level}_sample")(x, (height, wide))
        x = nn.silu(GroupNorm(c.groups, c.norm_eps, name="norm")(x))
        return conv(c.out_channels, dtype, "out_conv", zero=True)(x).astype(jnp.float32)

    def _middle(self, x: Array, time: Array, read: tuple[Array, Array | None]) -> Array:
        c = self.config
        if c.middle == "none":
            return x
        x = self._residual("middle_residual0", c.channels[-1], x, time)
        if c.middle == "plain":
            return x
        x = self._attention("middle_attention", c.levels - 1, x, read)
        return self._residual("middle_residual1", c.channels[-1], x, time)

    def _time(self, time_B: Array, condition: Condition) -> Float[Array, "B T"]:
        """Embedded time; where the U-Net takes them, sizes and pooled condition added."""
        c = self.config
        waves = sinusoids(time_B, c.channels[0], c.cos_first, c.freq_shift)
        time = TimeMlp(c.time_width, c.compute_dtype, name="time")(waves)
        if not c.sized:
            return time
        if condition.pooled_BP is None or condition.sizes_B6 is None:
            raise ValueError("this U-Net needs a pooled condition and sizes")
        sizes = sinusoids(condition.sizes_B6, c.size_width, c.cos_first, c.freq_shift)
        added = jnp.concatenate(
            [condition.pooled_BP, sizes.reshape(sizes.shape[0], -1).astype(time.dtype)], axis=-1
        )
        return time + TimeMlp(c.time_width, c.compute_dtype, name="added")(added)

    def _read(self, condition: Condition) -> tuple[Array, Array | None]:
        """Condition tokens and the bias on the logits of those that are not real."""
        tokens = condition.tokens_BLF.astype(self.config.compute_dtype)
        if condition.mask_BL is None:
            return tokens, None
        return tokens, jnp.where(condition.mask_BL, 0.0, MASKED)[:, None, :]
