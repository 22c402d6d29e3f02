"""Keep/drop decisions (SPEC 2).

Legend: B batch, N patches, D width, L static length of gathered kept patches.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from lavit_jax.models import layers
from lavit_jax.models.config import SelectorConfig

KEEP, DROP = 0, 1


class Selector(nn.Module):
    """Log-probabilities of keeping (channel 0) and dropping (channel 1), always float32."""

    config: SelectorConfig

    @nn.compact
    def __call__(self, x_BND: Float[Array, "B N D"]) -> Float[Array, "B N 2"]:
        width = self.config.width
        f32 = jnp.dtype(jnp.float32)
        h = layers.LayerNorm(1e-5, name="norm")(x_BND.astype(f32))
        h = layers.gelu(layers.dense(width, ("embed", None), f32, "in_proj")(h))
        local, context = jnp.split(h, [width // 2], axis=-1)
        context = jnp.broadcast_to(context.mean(axis=1, keepdims=True), context.shape)
        h = jnp.concatenate([local, context], axis=-1)
        h = layers.gelu(layers.dense(width // 2, (None, None), f32, "out1")(h))
        h = layers.gelu(layers.dense(width // 4, (None, None), f32, "out2")(h))
        return jax.nn.log_softmax(layers.dense(2, (None, None), f32, "out3")(h), axis=-1)


def gumbel_keep(
    log_probs_BN2: Float[Array, "B N 2"], key: PRNGKeyArray, temperature: float = 1.0
) -> Float[Array, "B N"]:
    """Hard 0/1 decisions by straight-through Gumbel-softmax; gradients are the soft ones."""
    noise = jax.random.gumbel(key, log_probs_BN2.shape, jnp.float32)
    soft = jax.nn.softmax((log_probs_BN2 + noise) / temperature, axis=-1)[..., KEEP]
    hard = (soft > 0.5).astype(jnp.float32)
    return hard + soft - jax.lax.stop_gradient(soft)


def random_keep(
    key: PRNGKeyArray, shape: tuple[int, ...], share: float
) -> tuple[Float[Array, "B N"], Float[Array, "B N"]]:
    """Decisions that know nothing of the picture, and scores to rank them by.

    Ours: each row's own share is uniform between none and twice `share` (at most all), so that
    what learns on them meets short and long rows alike.

    Args:
      key: decides.
      shape: B, N.
      share: of the patches, on average (where it is 1/2 or less).
    """
    share_key, patch_key = jax.random.split(key)
    share_B1 = jax.random.uniform(share_key, (shape[0], 1), maxval=min(2 * share, 1.0))
    scores_BN = -jax.random.uniform(patch_key, shape)
    return at_least_one(scores_BN > -share_B1, scores_BN).astype(jnp.float32), scores_BN


def greedy_keep(log_probs_BN2: Float[Array, "B N 2"]) -> Float[Array, "B N"]:
    """Keeps the patches more likely kept than dropped; the best one where that is none."""
    scores = log_probs_BN2[..., KEEP]
    keep = scores > log_probs_BN2[..., DROP]
    return at_least_one(keep, scores).astype(jnp.float32)


def threshold_keep(
    log_probs_BN2: Float[Array, "B N 2"], threshold: float | Float[Array, ""]
) -> Float[Array, "B N"]:
    """Keeps the patches of a keep probability above the threshold; the best one if none is."""
    scores = log_probs_BN2[..., KEEP]
    return at_least_one(jnp.exp(scores) > threshold, scores).astype(jnp.float32)


def sampled_keep(
    log_probs_BN2: Float[Array, "B N 2"], keys_B: Key[Array, "B"]
) -> Float[Array, "B N"]:
    """Draws every decision by its probability, each row with a key of its own."""
    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs_BN2.shape[1:]))(keys_B)
    noisy = log_probs_BN2 + noise
    return at_least_one(noisy[..., KEEP] > noisy[..., DROP], noisy[..., KEEP]).astype(jnp.float32)


def top_keep(
    log_probs_BN2: Float[Array, "B N 2"], budget: int | Int[Array, ""]
) -> Float[Array, "B N"]:
    """Keeps the `budget` patches of highest keep score of every row; of equal ones the first."""
    order = jnp.argsort(-log_probs_BN2[..., KEEP], axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    return (rank < budget).astype(jnp.float32)


def at_least_one(keep_BN: Bool[Array, "B N"], scores_BN: Float[Array, "B N"]) -> Bool[Array, "B N"]:
    """Keeps the patch of highest score in rows that keep nothing."""
    best = jax.nn.one_hot(scores_BN.argmax(axis=1), scores_BN.shape[1], dtype=bool)
    return jnp.where(keep_BN.any(axis=1, keepdims=True), keep_BN, best)


def limit_kept(
    keep_BN: Float[Array, "B N"], scores_BN: Float[Array, "B N"], most: int
) -> Float[Array, "B N"]:
    """Keeps at most `most` patches of each row, those of highest score; values pass through."""
    if most >= keep_BN.shape[1]:
        return keep_BN
    ranked = jnp.where(keep_BN > 0.5, scores_BN, -jnp.inf)
    _, index = jax.lax.top_k(ranked, most)
    rows = jnp.arange(keep_BN.shape[0])[:, None]
    allowed = jnp.zeros(keep_BN.shape, bool).at[rows, index].set(True)
    return keep_BN * allowed


class Kept(NamedTuple):
    """Kept patches in raster order, left-aligned: `index_BL` into N, `valid_BL` where real."""

    index_BL: Int[Array, "B L"]
    valid_BL: Bool[Array, "B L"]


def kept_index(keep_BN: Float[Array, "B N"], length: int) -> Kept:
    """Gathers the indices of kept patches to the front of a padded [B, length] array."""
    order = jnp.argsort(keep_BN < 0.5, axis=1, stable=True)[:, :length]
    count = (keep_BN > 0.5).sum(axis=1, keepdims=True)
    return Kept(order, jnp.arange(length)[None] < count)


def keep_entropy(log_probs_BN2: Float[Array, "B N 2"]) -> Float[Array, ""]:
    """Mean entropy of the decisions, in nats (0 to 0.693)."""
    return -(jnp.exp(log_probs_BN2) * log_probs_BN2).sum(axis=-1).mean()
