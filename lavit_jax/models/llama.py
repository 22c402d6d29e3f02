"""Llama: RMSNorm, rotary positions, SwiGLU, grouped key/value heads, KV cache (SPEC 7).

Legend: B batch, S tokens given, T tokens in the cache, E width, H heads, G kv heads, d head
width, V vocabulary, layers leading where stacked.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lavit_jax.models import layers, placement
from lavit_jax.models.attention import Segments, attend
from lavit_jax.models.config import LlamaConfig


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen: [layers, B, T, G, d] each, in the compute dtype."""

    k: Float[Array, "layers B T G d"]
    v: Float[Array, "layers B T G d"]


def empty_cache(config: LlamaConfig, batch: int, length: int) -> Cache:
    """A cache of zeros for `length` tokens."""
    shape = (config.depth, batch, length, config.kv_heads, config.head_dim)
    return Cache(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))


def rotate(
    x_BSHd: Float[Array, "B S H d"], positions_BS: Int[Array, "B S"], theta: float
) -> Float[Array, "B S H d"]:
    """Rotary embedding with the half-split convention of the public checkpoints."""
    half = x_BSHd.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BS[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BSHd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BSHd.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S E"]) -> Float[Array, "*S E"]:
        scale = self.param(
            "scale", layers.with_axes(nn.initializers.ones_init(), "embed"), (x.shape[-1],)
        )
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt((h * h).mean(axis=-1, keepdims=True) + self.eps)
        return (h * scale).astype(x.dtype)


class LlamaBlock(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm; reads and extends its layer's cache.

    The whole cache is carried from layer to layer, so that a compiled decoding loop writes a token
    in place instead of copying what is there.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B S E"], Cache | None],
        layer: Int[Array, ""],
        positions_BS: Int[Array, "B S"],
        mask_BST: Bool[Array, "B S T"] | Segments,
        offset: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, "B S E"], Cache | None], None]:
        c = self.config
        dtype = c.compute_dtype
        linear: dict[str, Any] = {"use_bias": False, "how": c.matmul}
        x_BSE, cache = carry
        x_BSE = layers.border(x_BSE)
        h = RMSNorm(c.norm_eps, name="attention_norm")(x_BSE)
        q = layers.head_projection(c.heads, c.head_dim, dtype, "query", **linear)(h)
        k = layers.head_projection(c.kv_heads, c.head_dim, dtype, "key", **linear)(h)
        v = layers.head_projection(c.kv_heads, c.head_dim, dtype, "value", **linear)(h)
        q, k, v = layers.spread_heads(q), layers.spread_heads(k), layers.spread_heads(v)
        q, k = rotate(q, positions_BS, c.rope_theta), rotate(k, positions_BS, c.rope_theta)
        q, k, v = layers.named(q, "query"), layers.named(k, "key"), layers.named(v, "value")
        if cache is not None:
            start = (layer, 0, offset, 0, 0)
            cache = Cache(
                jax.lax.dynamic_update_slice(cache.k, k[None], start),
                jax.lax.dynamic_update_slice(cache.v, v[None], start),
            )
            k = jax.lax.dynamic_index_in_dim(cache.k, layer, keepdims=False)
            v = jax.lax.dynamic_index_in_dim(cache.v, layer, keepdims=False)
        out = attend(q, k, v, mask_BST)
        x_BSE = x_BSE + layers.merge_heads(c.width, dtype, "proj", **linear)(out)
        x_BSE = layers.named(layers.border(x_BSE), "attended")
        h = RMSNorm(c.norm_eps, name="mlp_norm")(x_BSE)
        gate = layers.dense(c.hidden, ("embed", "mlp"), dtype, "gate", **linear)(h)
        up = layers.dense(c.hidden, ("embed", "mlp"), dtype, "up", **linear)(h)
        gate, up = layers.named(gate, "gate"), layers.named(up, "up")
        wide = placement.constrain(nn.silu(gate) * up, "batch", "length", "act_mlp")
        down = layers.dense(c.width, ("mlp", "embed"), dtype, "down", **linear)
        return (layers.border(x_BSE + down(wide)), cache), None


class Llama(nn.Module):
    """Embeddings in, hidden states out; `embed` and `logits` are separate so that callers can
    mix continuous features into the sequence and score only the places they need."""

    config: LlamaConfig

    def setup(self) -> None:
        c = self.config
        init = layers.with_axes(layers.embed_init, "vocab", "embed")
        self.embedding = self.param("embedding", init, (c.vocab, c.width))
        in_axes = (0, *[nn.broadcast] * 3)
        self.blocks = layers.stack(LlamaBlock, c.depth, c.remat, c.unroll, in_axes=in_axes)(c)
        self.norm = RMSNorm(c.norm_eps)
        self.lm_head = layers.dense(c.vocab, ("embed", "vocab"), c.compute_dtype, use_bias=False)

    def embed(self, ids_BS: Int[Array, "B S"]) -> Float[Array, "B S E"]:
        """Token ids to embeddings in the compute dtype.

        Each device looks up the tokens of all that share the table with it, in its own columns;
        then they exchange. That moves embeddings of tokens, where gathering the table would move
        the whole vocabulary.
        """
        ids_BS = placement.constrain(ids_BS, "group", "length")
        x = self.embedding[ids_BS].astype(self.config.compute_dtype)
        return layers.border(placement.constrain(x, "group", "length", "embed"))

    def hidden(
        self,
        x_BSE: Float[Array, "B S E"],
        positions_BS: Int[Array, "B S"],
        mask_BST: Bool[Array, "B S T"] | Segments,
        cache: Cache | None = None,
        offset: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B S E"], Cache | None]:
        """Runs the layers and the final norm.

        Args:
          x_BSE: embeddings.
          positions_BS: rotary positions.
          mask_BST: which keys each query may read: T = S without a cache, else the cache's length;
            or the segments of packed rows, without a cache only.
          cache: keys and values seen so far, or None.
          offset: where in the cache these S tokens are written.

        Returns:
          hidden states [B, S, E] and the extended cache (None when none was given).
        """
        carry, _ = self.blocks(
            (x_BSE, cache),
            jnp.arange(self.config.depth),
            positions_BS,
            mask_BST,
            jnp.asarray(offset),
        )
        x, cache = carry
        return self.norm(x), cache

    def logits(self, hidden: Float[Array, "*S E"]) -> Float[Array, "*S V"]:
        """Scores over text ids, [IMG], [/IMG] and codes, float32."""
        return self.lm_head(hidden).astype(jnp.float32)

    def __call__(
        self,
        ids_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        mask_BST: Bool[Array, "B S T"] | Segments,
    ) -> Float[Array, "B S V"]:
        """Token ids to logits, without a cache."""
        x, _ = self.hidden(self.embed(ids_BS), positions_BS, mask_BST)
        return self.logits(x)
