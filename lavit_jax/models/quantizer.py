"""Codebook: projection, nearest code, straight-through, EMA, k-means start (SPEC 4).

Legend: B batch, L tokens, M tokens of a batch, D width, C code dimension, K codes.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lavit_jax.models import layers
from lavit_jax.models.config import QuantizerConfig


@flax.struct.dataclass
class Codebook:
    """Codes and their running statistics; updated by EMA, never by gradient.

    Attributes:
      codes_KC: float32 vectors ids stand for.
      count_K: EMA of how many tokens of a batch chose each code.
    """

    codes_KC: Float[Array, "K C"]
    count_K: Float[Array, "K"]


def l2_normalize(x: Float[Array, "*S C"]) -> Float[Array, "*S C"]:
    """Unit length along the last axis, as torch's F.normalize (eps 1e-12)."""
    norm = jnp.sqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-24))
    return x / norm


def random_codebook(config: QuantizerConfig, key: PRNGKeyArray) -> Codebook:
    """Unit Gaussian directions, for shapes and for runs that never quantize."""
    codes = l2_normalize(jax.random.normal(key, (config.codes, config.code_dim)))
    return Codebook(codes, jnp.ones((config.codes,)))


class CodeProjection(nn.Module):
    """Linear D -> D, tanh, Linear D -> C: the features before L2 norm, float32."""

    config: QuantizerConfig

    @nn.compact
    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L C"]:
        f32 = jnp.dtype(jnp.float32)
        c = self.config
        h = jnp.tanh(layers.dense(c.width, ("embed", None), f32, "in_proj")(x_BLD.astype(f32)))
        return layers.dense(c.code_dim, (None, None), f32, "out_proj")(h)


def nearest_code(z_BLC: Float[Array, "*S C"], codes_KC: Float[Array, "K C"]) -> Int[Array, "*S"]:
    """Index of the nearest code to the L2-normalised features, by squared distance."""
    z = l2_normalize(z_BLC)
    distance = (
        (z * z).sum(axis=-1, keepdims=True)
        + (codes_KC * codes_KC).sum(axis=-1)
        - 2 * jnp.einsum("...c,kc->...k", z, codes_KC, precision="highest")
    )
    return distance.argmin(axis=-1).astype(jnp.int32)


def lookup(ids: Int[Array, "*S"], codes_KC: Float[Array, "K C"]) -> Float[Array, "*S C"]:
    """The stored vectors of the ids."""
    return codes_KC[ids]


def straight_through(z: Array, quantized: Array) -> Array:
    """The quantized value forward, the identity backward."""
    return z + jax.lax.stop_gradient(quantized - z)


def update_codebook(
    book: Codebook,
    z_MC: Float[Array, "M C"],
    ids_M: Int[Array, "M"],
    valid_M: Float[Array, "M"],
    key: PRNGKeyArray,
    config: QuantizerConfig,
) -> Codebook:
    """One EMA step on a batch's normalised features; dead codes restart on random ones.

    Under jit over a mesh M is the global batch, so the sums run over all devices.

    Args:
      book: current codes.
      z_MC: L2-normalised features.
      ids_M: their nearest codes.
      valid_M: 1 for real tokens, 0 for padding.
      key: for drawing the features that dead codes restart on.
      config: decay and the threshold of death.
    """
    hits_MK = jax.nn.one_hot(ids_M, config.codes, dtype=jnp.float32) * valid_M[:, None]
    count_K = hits_MK.sum(axis=0)
    mean_KC = l2_normalize(jnp.einsum("mk,mc->kc", hits_MK, z_MC))
    moved = l2_normalize(config.decay * book.codes_KC + (1 - config.decay) * mean_KC)
    codes = jnp.where(count_K[:, None] > 0, moved, book.codes_KC)
    ema = config.decay * book.count_K + (1 - config.decay) * count_K
    uniform = valid_M.sum() / config.codes
    dead = ema < config.reseed_below * uniform
    chance = valid_M / jnp.maximum(valid_M.sum(), 1.0)
    drawn = jax.random.choice(key, z_MC.shape[0], (config.codes,), p=chance)
    codes = jnp.where(dead[:, None], z_MC[drawn], codes)
    return Codebook(codes, jnp.where(dead, uniform, ema))


def kmeans(
    z_MC: Float[Array, "M C"], codes: int, key: PRNGKeyArray, iterations: int = 10
) -> Codebook:
    """Cosine k-means over real features (10 iterations, borrowed from BEiT-2).

    Empty clusters restart on random features. Needs at least one feature; features may be
    fewer than codes, some then start as duplicates and die or part later.
    """
    z = l2_normalize(z_MC)
    start_key, restart_key = jax.random.split(key)
    count = z.shape[0]
    start = jax.random.choice(start_key, count, (codes,), replace=count < codes)

    def step(centres_KC: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        ids_M = nearest_code(z, centres_KC)
        counts_K = jax.ops.segment_sum(jnp.ones(count), ids_M, codes)
        means_KC = l2_normalize(jax.ops.segment_sum(z, ids_M, codes))
        drawn = jax.random.randint(key, (codes,), 0, count)
        return jnp.where(counts_K[:, None] > 0, means_KC, z[drawn]), counts_K

    centres, counts = jax.lax.scan(step, z[start], jax.random.split(restart_key, iterations))
    # Counts start at their mean: k-means counts a far larger sample than a training batch.
    return Codebook(centres, jnp.full((codes,), counts[-1].mean()))


def usage(ids_M: Int[Array, "M"], valid_M: Float[Array, "M"], codes: int) -> Float[Array, "K"]:
    """How many valid tokens chose each code."""
    return jax.ops.segment_sum(valid_M, ids_M, codes)


def perplexity(count_K: Float[Array, "K"]) -> Float[Array, ""]:
    """exp of the entropy of code use: K when all codes are used alike, 1 when only one is."""
    p = count_K / jnp.maximum(count_K.sum(), 1e-9)
    return jnp.exp(-(p * jnp.log(jnp.maximum(p, 1e-12))).sum())
