"""A small text encoder, for contrastive pretraining of the vision encoder (ours).

Legend: B batch, S tokens, F shared embedding width.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lavit_jax.models import layers
from lavit_jax.models.config import TextTowerConfig
from lavit_jax.models.vit import NORM_EPS, EncoderBlock


class TextTower(nn.Module):
    """Padded token ids to one embedding: the mean over the real tokens after a few blocks."""

    config: TextTowerConfig

    @nn.compact
    def __call__(self, ids_BS: Int[Array, "B S"]) -> Float[Array, "B F"]:
        """Id 0 is padding. Returns [B, F], not normalised, and a learned scale and bias apart."""
        c = self.config
        real_BS = ids_BS > 0
        table = self.param(
            "embedding", layers.with_axes(layers.embed_init, "vocab", "embed"), (c.vocab, c.width)
        )
        positions = self.param(
            "pos_embed", layers.with_axes(layers.embed_init, None, "embed"), (c.length, c.width)
        )
        x = layers.embedded(ids_BS, table, c.compute_dtype)
        x = x + positions[: ids_BS.shape[1]].astype(c.compute_dtype)
        mask_BQK = jnp.broadcast_to(real_BS[:, None, :], (*ids_BS.shape, ids_BS.shape[1]))
        x, _ = layers.stack(EncoderBlock, c.depth, c.remat, c.unroll)(c, name="blocks")(x, mask_BQK)
        x = layers.LayerNorm(NORM_EPS, name="norm")(x)
        weights = real_BS / jnp.maximum(real_BS.sum(axis=1, keepdims=True), 1)
        pooled = jnp.einsum("bs,bsd->bd", weights.astype(x.dtype), x)
        return layers.dense(c.embed_dim, ("embed", None), c.compute_dtype, "head")(pooled)


class ContrastiveScale(nn.Module):
    """The learned temperature and bias of the sigmoid loss (SigLIP's initial values)."""

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        log_scale = self.param("log_scale", nn.initializers.constant(2.302585), ())
        bias = self.param("bias", nn.initializers.constant(-10.0), ())
        return jnp.exp(log_scale), bias
