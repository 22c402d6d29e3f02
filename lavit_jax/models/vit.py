"""EVA-CLIP vision encoder (SPEC 1) and the block it shares with the small text tower.

Legend: B batch, S tokens, N patches, D width, H heads, d head width, C colour channels.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lavit_jax.models import layers
from lavit_jax.models.attention import attend
from lavit_jax.models.config import EncoderConfig, TransformerConfig

NORM_EPS = 1e-6
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_images(images_BHWC: Array) -> Float[Array, "B H W C"]:
    """uint8 pictures to the encoder's input: CLIP mean and standard deviation, float32."""
    scaled = images_BHWC.astype(jnp.float32) / 255.0
    return (scaled - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)


def patchify(images_BHWC: Array, patch: int) -> Float[Array, "B N P"]:
    """Cuts images into patches in raster order; P = patch * patch * C, rows first."""
    batch, height, width, channels = images_BHWC.shape
    grid = images_BHWC.reshape(
        batch, height // patch, patch, width // patch, patch, channels
    ).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, -1, patch * patch * channels)


def unpatchify(patches_BNP: Array, patch: int) -> Float[Array, "B H W C"]:
    """Inverse of `patchify` for square images."""
    batch, count, size = patches_BNP.shape
    side = int(count**0.5)
    channels = size // patch**2
    grid = patches_BNP.reshape(batch, side, side, patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * patch, side * patch, channels)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP; query and value have biases, key has none."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BSD: Float[Array, "B S D"], mask_BQK: Bool[Array, "B Q K"] | None = None
    ) -> tuple[Float[Array, "B S D"], None]:
        c = self.config
        dtype = c.compute_dtype
        x_BSD = layers.border(x_BSD)
        h = layers.LayerNorm(NORM_EPS, name="norm1")(x_BSD)
        q = layers.head_projection(c.heads, c.head_dim, dtype, "query")(h)
        k = layers.head_projection(c.heads, c.head_dim, dtype, "key", use_bias=False)(h)
        v = layers.head_projection(c.heads, c.head_dim, dtype, "value")(h)
        out = layers.named(attend(*layers.projected(q, k, v), mask_BQK), "context")
        x_BSD = layers.attended(x_BSD + layers.merge_heads(c.width, dtype, "proj")(out))
        h = layers.LayerNorm(NORM_EPS, name="norm2")(x_BSD)
        return layers.border(x_BSD + layers.Mlp(c.hidden, dtype, name="mlp")(h)), None


class VisionEncoder(nn.Module):
    """Images to the residual stream after the last block, without a final norm (SPEC 1)."""

    config: EncoderConfig

    def setup(self) -> None:
        c = self.config
        self.patch_embed = layers.dense(c.width, (None, "embed"), c.compute_dtype)
        self.cls_token = self.param(
            "cls_token", layers.with_axes(layers.embed_init, "embed"), (c.width,)
        )
        self.pos_embed = self.param(
            "pos_embed",
            layers.with_axes(layers.grid_init, None, "embed"),
            (c.patches + 1, c.width),
        )
        self.blocks = layers.stack(EncoderBlock, c.depth, c.remat, c.unroll)(c)
        self.norm = layers.LayerNorm(NORM_EPS)
        self.head_proj = layers.dense(c.embed_dim, ("embed", None), c.compute_dtype)

    def features_with_cls(self, images_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B S D"]:
        """Normalised images [B, H, W, 3] to [B, 1 + N, D], [CLS] first."""
        c = self.config
        x = self.patch_embed(patchify(images_BHWC, c.patch_size).astype(c.compute_dtype))
        cls = jnp.broadcast_to(self.cls_token.astype(x.dtype), (x.shape[0], 1, c.width))
        x = jnp.concatenate([cls, x], axis=1) + self.pos_embed.astype(x.dtype)
        x, _ = self.blocks(x, None)
        return x

    def embed(self, images_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """The contrastive embedding of each image: head(norm([CLS])), not normalised."""
        return self.head(self.features_with_cls(images_BHWC)[:, 0])

    def head(self, cls_BD: Float[Array, "B D"]) -> Float[Array, "B F"]:
        """Final norm and linear head on [CLS]."""
        return self.head_proj(self.norm(cls_BD))

    def __call__(self, images_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B N D"]:
        """Normalised images [B, H, W, 3] to patch features x [B, N, D], [CLS] dropped."""
        return self.features_with_cls(images_BHWC)[:, 1:]
