"""Feature decoder, its two condition heads and the one-pass pixel head (SPEC 5).

Legend: B batch, L codes of an image, N patches, D width, C code dimension.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lavit_jax.models import layers
from lavit_jax.models.attention import attend, policy_attend
from lavit_jax.models.config import DecoderConfig, PixelHeadConfig
from lavit_jax.models.vit import EncoderBlock, unpatchify

NORM_EPS = 1e-5


class DecoderBlock(nn.Module):
    """Self-attention of the queries, cross-attention to the codes, MLP."""

    config: DecoderConfig

    def _project(self, q_in: Array, kv_in: Array, name: str) -> tuple[Array, Array, Array]:
        c = self.config
        dtype = c.compute_dtype
        q = layers.head_projection(c.heads, c.head_dim, dtype, f"{name}_query")(q_in)
        k = layers.head_projection(c.heads, c.head_dim, dtype, f"{name}_key")(kv_in)
        v = layers.head_projection(c.heads, c.head_dim, dtype, f"{name}_value")(kv_in)
        return layers.projected(q, k, v)

    @nn.compact
    def __call__(
        self,
        x_BND: Float[Array, "B N D"],
        codes_BLD: Float[Array, "B L D"],
        mask_B1L: Float[Array, "B 1 L"],
    ) -> tuple[Float[Array, "B N D"], None]:
        c = self.config
        dtype = c.compute_dtype
        x_BND = layers.border(x_BND)
        h = layers.LayerNorm(NORM_EPS, name="norm0")(x_BND)
        out = layers.named(attend(*self._project(h, h, "self")), "context")
        x_BND = layers.attended(x_BND + layers.merge_heads(c.width, dtype, "self_proj")(out))
        h = layers.LayerNorm(NORM_EPS, name="norm1")(x_BND)
        # The published code adds -10000 to masked logits; a multiplicative mask gives the same
        # weights and lets the keep decisions carry gradient.
        q, k, v = self._project(h, codes_BLD, "cross")
        if c.norm_qk:
            # Without a bound these logits grow until every query reads a single code, whichever it
            # was; reconstructions then get worse the longer they are trained.
            q, k = layers.unit_rms(q).astype(dtype), layers.unit_rms(k).astype(dtype)
        out = policy_attend(q, k, v, mask_B1L, "clean")
        out = layers.named(out, "context")
        x_BND = layers.attended(x_BND + layers.merge_heads(c.width, dtype, "cross_proj")(out))
        h = layers.LayerNorm(NORM_EPS, name="norm2")(x_BND)
        return layers.border(x_BND + layers.Mlp(c.hidden, dtype, name="mlp")(h)), None


class FeatureDecoder(nn.Module):
    """Quantized vectors in kept order to x_rec, the encoder's features of all N patches.

    A code's position is its place among the kept, not in the image.
    """

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        tables = (c.patches, c.width)
        ranks = layers.with_axes(layers.embed_init, None, "embed")
        self.pos_embed = self.param("pos_embed", ranks, tables)
        places = layers.with_axes(layers.grid_init, None, "embed")
        self.query_embed = self.param("query_embed", places, tables)
        self.in_proj = layers.dense(c.width, (None, "embed"), c.compute_dtype)
        self.blocks = layers.stack(DecoderBlock, c.depth, c.remat, c.unroll)(c)
        self.norm = layers.LayerNorm(NORM_EPS)
        self.out1 = layers.dense(c.width, ("embed", None), c.compute_dtype)
        self.out2 = layers.dense(c.width, (None, "embed"), c.compute_dtype)

    def __call__(
        self, codes_BLC: Float[Array, "B L C"], valid_BL: Bool[Array, "B L"]
    ) -> Float[Array, "B N D"]:
        """Gathered form: kept codes left-aligned, `valid_BL` where they are real; L <= N."""
        positions = self.pos_embed[None, : codes_BLC.shape[1]]
        return self._decode(codes_BLC, positions, valid_BL.astype(jnp.float32))

    def masked(
        self, codes_BNC: Float[Array, "B N C"], keep_BN: Float[Array, "B N"]
    ) -> Float[Array, "B N D"]:
        """Masked form over all N patches; equals the gathered one, and carries gradient to
        `keep_BN`: also a dropped patch learns what its code would have been worth."""
        rank_BN = jnp.maximum(jnp.cumsum(keep_BN > 0.5, axis=1) - 1, 0)
        return self._decode(codes_BNC, self.pos_embed[rank_BN], keep_BN)

    def _decode(self, codes: Array, positions: Array, mask: Array) -> Float[Array, "B N D"]:
        dtype = self.config.compute_dtype
        # Every block reads the codes: where their gradients are summed over blocks, they would be
        # sent around to be split as the parameters are.
        codes = layers.border(self.in_proj(codes.astype(dtype)) + positions.astype(dtype))
        x = jnp.broadcast_to(
            self.query_embed.astype(dtype), (codes.shape[0], *self.query_embed.shape)
        )
        x, _ = self.blocks(x, codes, mask[:, None, :])
        return self.out2(jnp.tanh(self.out1(self.norm(x))))


class LowresHead(nn.Module):
    """Condition of the SD 1.5-style U-Net: Linear D -> 768."""

    features: int = 768

    @nn.compact
    def __call__(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B N F"]:
        return layers.dense(self.features, ("embed", None), x_BND.dtype, "proj")(x_BND)


class AttentionPool(nn.Module):
    """CLIP-style pool: the mean token, prepended, attends to all tokens."""

    heads: int
    features: int

    @nn.compact
    def __call__(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B F"]:
        width = x_BND.shape[-1]
        positions = self.param(
            "pos_embed",
            layers.with_axes(nn.initializers.normal(width**-0.5), None, "embed"),
            (x_BND.shape[1] + 1, width),
        )
        x = jnp.concatenate([x_BND.mean(axis=1, keepdims=True), x_BND], axis=1)
        x = x + positions.astype(x.dtype)
        per_head = width // self.heads
        q = layers.head_projection(self.heads, per_head, x.dtype, "query")(x[:, :1])
        k = layers.head_projection(self.heads, per_head, x.dtype, "key")(x)
        v = layers.head_projection(self.heads, per_head, x.dtype, "value")(x)
        return layers.merge_heads(self.features, x.dtype, "proj")(attend(q, k, v))[:, 0]


class HighresHead(nn.Module):
    """Condition of the SDXL-style U-Net: 768 and 1280 concatenated, and a pooled 1280."""

    heads: int
    first: int = 768
    second: int = 1280

    @nn.compact
    def __call__(
        self, x_BND: Float[Array, "B N D"]
    ) -> tuple[Float[Array, "B N F"], Float[Array, "B P"]]:
        one = layers.dense(self.first, ("embed", None), x_BND.dtype, "proj1")(x_BND)
        two = layers.dense(self.second, ("embed", None), x_BND.dtype, "proj2")(x_BND)
        pooled = AttentionPool(self.heads, self.second, name="pool")(x_BND)
        return jnp.concatenate([one, two], axis=-1), pooled


class PixelHead(nn.Module):
    """x_rec to a preview picture in one forward pass (ours).

    A linear readout of every patch, and a few blocks that correct it and start at no correction.
    """

    config: PixelHeadConfig

    def setup(self) -> None:
        c = self.config
        dtype = c.compute_dtype
        pixels = c.patch_size**2 * 3
        self.norm_in = layers.LayerNorm(NORM_EPS)
        self.linear = layers.dense(pixels, ("embed", None), dtype)
        self.in_proj = layers.dense(c.width, ("embed", None), dtype)
        places = layers.with_axes(layers.grid_init, None, "embed")
        self.pos_embed = self.param("pos_embed", places, (c.patches, c.width))
        self.blocks = layers.stack(EncoderBlock, c.depth, c.remat, c.unroll)(c)
        self.norm_out = layers.LayerNorm(NORM_EPS)
        self.out_proj = layers.dense(
            pixels, ("embed", None), dtype, kernel_init=nn.initializers.zeros
        )

    def readout(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B H W C"]:
        """What each feature says of its own patch: pixels around [0, 1], float32, not clipped."""
        return self._picture(self.linear(self.norm_in(x_BND)))

    def __call__(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B H W C"]:
        """Returns pixels around [0, 1], float32, not clipped."""
        x = self.norm_in(x_BND.astype(self.config.compute_dtype))
        patches = self.linear(x)
        x = self.in_proj(x) + self.pos_embed.astype(x.dtype)
        x, _ = self.blocks(x, None)
        return self._picture(patches + self.out_proj(self.norm_out(x)))

    def _picture(self, patches_BNP: Array) -> Float[Array, "B H W C"]:
        # A white page is the commonest picture; starting there saves the first few hundred steps.
        return unpatchify(patches_BNP.astype(jnp.float32), self.config.patch_size) + 1.0


def to_uint8(pixels: Float[Array, "*S"]) -> Array:
    """Pixels in [0, 1] to uint8, clipped and rounded."""
    return jnp.round(jax.lax.clamp(0.0, pixels, 1.0) * 255.0).astype(jnp.uint8)
