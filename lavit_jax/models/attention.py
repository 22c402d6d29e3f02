"""The only place where attention is computed, and the masks it is computed with.

Legend: B batch, Q queries, K keys, S both, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lavit_jax.models import placement, splash

PUBLISHED_EPS = 1e-6


class Segments(NamedTuple):
    """Packed rows: each token reads itself and what came before it in its own segment.

    Says the same as `causal_segment_mask` without an array of [S, S]; 0 is padding.
    """

    ids_BS: Int[Array, "B S"]


def packed_rows(segments_BS: Int[Array, "B S"], head_dim: int) -> Segments | Bool[Array, "B S S"]:
    """What the tokens of packed rows may read, for `attend`.

    Segments on TPUs, where a kernel skips what is masked; elsewhere the mask, made only once for
    all layers.
    """
    if placement.on_tpu() and splash.fits(segments_BS.shape[1], head_dim):
        return Segments(segments_BS)
    return causal_segment_mask(segments_BS)


def causal_segment_mask(segments_BS: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """True where query i may read key j: j <= i and both in the same, real (> 0) segment."""
    length = segments_BS.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    same = segments_BS[:, :, None] == segments_BS[:, None, :]
    return causal & same & (segments_BS[:, :, None] > 0)


def attend(
    q_BQHd: Float[Array, "B Q H d"],
    k_BKGd: Float[Array, "B K G d"],
    v_BKGd: Float[Array, "B K G d"],
    mask_BQK: Bool[Array, "B Q K"] | Segments | None = None,
    bias_BQK: Float[Array, "B Q K"] | None = None,
) -> Float[Array, "B Q H d"]:
    """Softmax attention with grouped key/value heads; softmax in float32.

    Args:
      q_BQHd: queries; H is a multiple of G.
      k_BKGd: keys.
      v_BKGd: values.
      mask_BQK: True where a query may read a key (broadcastable on Q). A row that may read
        nothing averages all values; such rows are padding and never used. `Segments` of packed
        rows are computed by a TPU kernel.
      bias_BQK: added to the scaled logits (broadcastable on Q).

    Returns:
      [B, Q, H, d] in the dtype of the queries.
    """
    if isinstance(mask_BQK, Segments):
        return splash.causal(q_BQHd, k_BKGd, v_BKGd, mask_BQK.ids_BS)
    return attend_cached(q_BQHd, heads_first(k_BKGd), heads_first(v_BKGd), mask_BQK, bias_BQK)


def attend_cached(
    q_BQHd: Float[Array, "B Q H d"],
    k_BGKd: Float[Array, "B G K d"],
    v_BGKd: Float[Array, "B G K d"],
    mask_BQK: Bool[Array, "B Q K"] | None = None,
    bias_BQK: Float[Array, "B Q K"] | None = None,
) -> Float[Array, "B Q H d"]:
    """`attend` to keys and values whose heads lead, as a cache holds them: nothing is copied."""
    batch, queries, heads, width = q_BQHd.shape
    groups, keys = k_BGKd.shape[1:3]
    # Heads lead and the queries that share a key/value head form one matrix: plain batched
    # matmuls, which every backend does fastest.
    q = heads_first(q_BQHd * width**-0.5).reshape(batch, groups, -1, width)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bgqd,bgkd->bgqk", q, k_BGKd, preferred_element_type=wide)
    logits = logits.reshape(batch, heads, queries, keys)
    if bias_BQK is not None:
        logits = logits + bias_BQK[:, None]
    if mask_BQK is not None:
        logits = jnp.where(mask_BQK[:, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BGKd.dtype)
    out = jnp.einsum("bgqk,bgkd->bgqd", weights.reshape(batch, groups, -1, keys), v_BGKd)
    return heads_first(out.reshape(batch, heads, queries, width))


def heads_first(x_BSHd: Array) -> Array:
    """[B, S, H, d] to [B, H, S, d], or back."""
    return x_BSHd.transpose(0, 2, 1, 3)


def _published_weights(logits_BHQK: Array, mask_BQK: Array) -> Array:
    """Multiplicative mask with the maximum over all keys and eps added after (SPEC 3)."""
    keys = logits_BHQK.shape[-1]
    top = jax.lax.stop_gradient(logits_BHQK.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits_BHQK - top) * mask_BQK[:, None]
    total = weights.sum(axis=-1, keepdims=True)
    return (weights + PUBLISHED_EPS / keys) / (total + PUBLISHED_EPS)


def _clean_weights(logits_BHQK: Array, mask_BQK: Array) -> Array:
    """Maximum over allowed keys only, no eps; a row with no allowed key weighs nothing (ours)."""
    allowed = mask_BQK[:, None] > 0.5
    lowest = jnp.finfo(jnp.float32).min
    top = jnp.where(allowed, logits_BHQK, lowest).max(axis=-1, keepdims=True)
    # A forbidden key may lie far above the allowed maximum. Its exponential is multiplied by a
    # zero, but the mask's own gradient sees it: bounded by one, as if it tied with the maximum.
    shifted = jnp.minimum(logits_BHQK - jax.lax.stop_gradient(jnp.maximum(top, lowest / 2)), 0.0)
    weights = jnp.exp(shifted) * mask_BQK[:, None]
    total = weights.sum(axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


_POLICY_WEIGHTS = {"published": _published_weights, "clean": _clean_weights}


def policy_attend(
    q_BQHd: Float[Array, "B Q H d"],
    k_BKHd: Float[Array, "B K H d"],
    v_BKHd: Float[Array, "B K H d"],
    mask_BQK: Float[Array, "B Q K"],
    form: str,
) -> Float[Array, "B Q H d"]:
    """Attention under a multiplicative 0/1 mask that carries gradient to the keep decisions.

    Args:
      q_BQHd: queries.
      k_BKHd: keys.
      v_BKHd: values.
      mask_BQK: float mask, 1 where a query may read a key (broadcastable on Q).
      form: "published" or "clean" (SPEC 3).

    Returns:
      [B, Q, H, d] in the dtype of the values.
    """
    q = heads_first(q_BQHd * q_BQHd.shape[-1] ** -0.5)
    k, v = heads_first(k_BKHd), heads_first(v_BKHd)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = _POLICY_WEIGHTS[form](logits, mask_BQK).astype(v.dtype)
    return heads_first(jnp.einsum("bhqk,bhkd->bhqd", weights, v))
