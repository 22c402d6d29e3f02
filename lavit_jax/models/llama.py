"""Llama: RMSNorm, rotary positions, SwiGLU, grouped key/value heads, KV cache (SPEC 7).

Legend: B batch, S tokens given, T tokens in the cache, E width, H heads, G kv heads, d head
width, V vocabulary, layers leading where stacked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lavit_jax.models import attention, layers, placement
from lavit_jax.models.attention import Segments
from lavit_jax.models.config import LlamaConfig


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen: [layers, B, G, T, d] each, in the compute dtype.

    One of a single layer has no first axis.
    """

    k: Float[Array, "*layers B G T d"]
    v: Float[Array, "*layers B G T d"]


# One for all layers, or, where `config.stacked` is False, one of a single layer for each.
Caches = Cache | tuple[Cache, ...]


def empty_cache(config: LlamaConfig, batch: int, length: int) -> Caches:
    """A cache of zeros for `length` tokens."""

    shape = (batch, config.kv_heads, length, config.head_dim)

    def zeros(*layers: int) -> Cache:
        return Cache(*(jnp.zeros((*layers, *shape), config.compute_dtype) for _ in range(2)))

    return zeros(config.depth) if config.stacked else tuple(zeros() for _ in range(config.depth))


def rotate(
    x_BSHd: Float[Array, "B S H d"], positions_BS: Int[Array, "B S"], theta: float
) -> Float[Array, "B S H d"]:
    """Rotary embedding with the half-split convention of the public checkpoints."""
    half = x_BSHd.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BS[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    swapped = swapped_by_matmul if placement.on_tpu() else swapped_halves
    turned = layers.widened(x_BSHd) * cos + layers.widened(swapped(x_BSHd)) * sin
    return turned.astype(x_BSHd.dtype)


def swapped_halves(x: Float[Array, "*S d"]) -> Float[Array, "*S d"]:
    """The second half of the last axis, then the first."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)


def swapped_by_matmul(x: Float[Array, "*S d"]) -> Float[Array, "*S d"]:
    """`swapped_halves`, exactly, with a permutation matrix.

    XLA:TPU writes halves of a head's 128 lanes to memory one by one, each padded to 128 and some in
    float32, and reads them again to join them; what a matmul gives it adds where it is. Training a
    layer of 7B moves 13 % fewer bytes so, for 0.4 % more flops.
    """
    width = x.shape[-1]
    swap = np.roll(np.eye(width, dtype=np.float32), width // 2, axis=0)
    # Below the highest precision TPUs round float32 operands to bfloat16.
    return jnp.matmul(x, jnp.asarray(swap, x.dtype), precision=jax.lax.Precision.HIGHEST)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S E"]) -> Float[Array, "*S E"]:
        scale = self.param(
            "scale", layers.with_axes(nn.initializers.ones_init(), "norm"), (x.shape[-1],)
        )
        return (layers.unit_rms(x, self.eps) * scale).astype(x.dtype)


def read(
    config: LlamaConfig,
    q_BSHd: Float[Array, "B S H d"],
    k_BSGd: Float[Array, "B S G d"],
    v_BSGd: Float[Array, "B S G d"],
    cache: Cache | None,
    layer: Int[Array, ""] | None,
    positions_BS: Int[Array, "B S"],
    mask_BST: Bool[Array, "B S T"] | Segments,
    offset: Int[Array, ""],
) -> tuple[Float[Array, "B S H d"], Cache | None]:
    """Rotates, writes a layer's keys and values into the cache and attends to what is there.

    Args:
      config: sizes.
      q_BSHd: queries.
      k_BSGd: keys.
      v_BSGd: values.
      cache: of all layers, or of this one.
      layer: which one; None where the cache is of this one.
      positions_BS: rotary positions.
      mask_BST: see `Llama.hidden`.
      offset: where in the cache the S tokens are written.
    """
    q = rotate(q_BSHd, positions_BS, config.rope_theta)
    k = rotate(k_BSGd, positions_BS, config.rope_theta)
    if cache is None:
        q, k, v = layers.named(q, "query"), layers.named(k, "key"), layers.named(v_BSGd, "value")
        return attention.attend(q, k, v, mask_BST), None
    assert not isinstance(mask_BST, Segments)
    k, v = attention.heads_first(k), attention.heads_first(v_BSGd)
    if layer is None:
        # Updated and read in one shape: XLA:CPU does so in place, and copies in any other case.
        start = (0, 0, offset, 0)
        cache = Cache(
            jax.lax.dynamic_update_slice(cache.k, k, start),
            jax.lax.dynamic_update_slice(cache.v, v, start),
        )
        return attention.attend_cached(q, cache.k, cache.v, mask_BST), cache
    begin = (layer, 0, 0, offset, 0)
    cache = Cache(
        jax.lax.dynamic_update_slice(cache.k, k[None], begin),
        jax.lax.dynamic_update_slice(cache.v, v[None], begin),
    )
    k = jax.lax.dynamic_index_in_dim(cache.k, layer, keepdims=False)
    v = jax.lax.dynamic_index_in_dim(cache.v, layer, keepdims=False)
    return attention.attend_cached(q, k, v, mask_BST), cache


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
        out, cache = read(c, q, k, v, cache, layer, positions_BS, mask_BST, offset)
        x_BSE = x_BSE + layers.merge_heads(c.width, dtype, "proj", **linear)(out)
        x_BSE = layers.attended(x_BSE)
        h = RMSNorm(c.norm_eps, name="mlp_norm")(x_BSE)
        gate = layers.dense(c.hidden, ("embed", "mlp"), dtype, "gate", **linear)(h)
        up = layers.dense(c.hidden, ("embed", "mlp"), dtype, "up", **linear)(h)
        gate, up = layers.named(gate, "gate"), layers.named(up, "up")
        wide = placement.constrain(nn.silu(gate) * up, "batch", "length", "act_mlp")
        down = layers.dense(c.width, ("mlp", "embed"), dtype, "down", **linear)
        return (layers.border(x_BSE + down(wide)), cache), None


class FlatBlock(nn.Module):
    """The same block as a CPU decodes it fastest: kernels [out, in], those of one input in one.

    Its cache holds this layer alone.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x_BSE: Float[Array, "B S E"],
        cache: Cache | None,
        positions_BS: Int[Array, "B S"],
        mask_BST: Bool[Array, "B S T"],
        offset: Int[Array, ""],
    ) -> tuple[Float[Array, "B S E"], Cache | None]:
        c = self.config
        heads = (c.heads, c.kv_heads, c.kv_heads)
        h = RMSNorm(c.norm_eps, name="attention_norm")(x_BSE)
        qkv = layers.RowDense(sum(heads) * c.head_dim, c.compute_dtype, name="qkv")(h)
        qkv = qkv.reshape(*h.shape[:-1], sum(heads), c.head_dim)
        q, k, v = jnp.split(qkv, [c.heads, c.heads + c.kv_heads], axis=-2)
        out, cache = read(c, q, k, v, cache, None, positions_BS, mask_BST, offset)
        out = out.reshape(*h.shape[:-1], c.heads * c.head_dim)
        x_BSE = x_BSE + layers.RowDense(c.width, c.compute_dtype, name="proj")(out)
        h = RMSNorm(c.norm_eps, name="mlp_norm")(x_BSE)
        both = layers.RowDense(2 * c.hidden, c.compute_dtype, name="gate_up")(h)
        gate, up = jnp.split(both, 2, axis=-1)
        down = layers.RowDense(c.width, c.compute_dtype, name="down")
        return x_BSE + down(nn.silu(gate) * up), cache


def flattened(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a stacked Llama as those of one whose `config.stacked` is False."""
    blocks = params["blocks"]

    def rows(layer: int, *names: str, out_axes: int = 1) -> dict[str, Array]:
        kernels = [jnp.asarray(blocks[name]["kernel"][layer]) for name in names]
        flat = [kernel.reshape(-1, math.prod(kernel.shape[-out_axes:])) for kernel in kernels]
        return {"kernel": jnp.concatenate([kernel.T for kernel in flat])}

    made: dict[str, Any] = {
        "embedding": params["embedding"],
        "norm": params["norm"],
        "lm_head": {"kernel": jnp.asarray(params["lm_head"]["kernel"]).T},
    }
    for layer in range(len(blocks["down"]["kernel"])):
        norms = {
            name: {"scale": blocks[name]["scale"][layer]} for name in ("attention_norm", "mlp_norm")
        }
        made[f"blocks_{layer}"] = norms | {
            "qkv": rows(layer, "query", "key", "value", out_axes=2),
            "proj": rows(layer, "proj"),
            "gate_up": rows(layer, "gate", "up"),
            "down": rows(layer, "down"),
        }
    return made


class Llama(nn.Module):
    """Embeddings in, hidden states out; `embed` and `logits` are separate so that callers can
    mix continuous features into the sequence and score only the places they need."""

    config: LlamaConfig

    def setup(self) -> None:
        c = self.config
        init = layers.with_axes(layers.embed_init, "vocab", "embed")
        self.embedding = self.param("embedding", init, (c.vocab, c.width))
        in_axes = (0, *[nn.broadcast] * 3)
        blocks: Any
        if c.stacked:
            blocks = layers.stack(LlamaBlock, c.depth, c.remat, c.unroll, in_axes=in_axes)(c)
        else:
            blocks = [FlatBlock(c) for _ in range(c.depth)]
        self.blocks = blocks
        self.norm = RMSNorm(c.norm_eps)
        head = layers.VocabHead if c.stacked else layers.RowDense
        self.lm_head = head(c.vocab, c.compute_dtype)

    def embed(self, ids_BS: Int[Array, "B S"]) -> Float[Array, "B S E"]:
        """Token ids to embeddings in the compute dtype."""
        return layers.embedded(ids_BS, self.embedding, self.config.compute_dtype)

    def hidden(
        self,
        x_BSE: Float[Array, "B S E"],
        positions_BS: Int[Array, "B S"],
        mask_BST: Bool[Array, "B S T"] | Segments,
        cache: Caches | None = None,
        offset: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B S E"], Caches | None]:
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
        shared = (positions_BS, mask_BST, jnp.asarray(offset))
        if self.config.stacked:
            carry, _ = self.blocks((x_BSE, cache), jnp.arange(self.config.depth), *shared)
            x, cache = carry
            return self.norm(x), cache
        x, caches = x_BSE, []
        given: Any = cache or [None] * self.config.depth
        for block, own in zip(self.blocks, given, strict=True):
            x, extended = block(x, own, *shared)
            caches.append(extended)
        return self.norm(x), tuple(caches) if cache is not None else None

    def logits(self, hidden: Float[Array, "*S E"], first: int = 0) -> Float[Array, "*S V"]:
        """Scores of text ids, [IMG], [/IMG] and codes, those from id `first` on, float32."""
        return layers.widened(self.lm_head(hidden, first))

    def __call__(
        self,
        ids_BS: Int[Array, "B S"],
        positions_BS: Int[Array, "B S"],
        mask_BST: Bool[Array, "B S T"] | Segments,
    ) -> Float[Array, "B S V"]:
        """Token ids to logits, without a cache."""
        x, _ = self.hidden(self.embed(ids_BS), positions_BS, mask_BST)
        return self.logits(x)
