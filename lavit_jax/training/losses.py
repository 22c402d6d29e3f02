"""Loss functions on arrays; all float32.

Legend: B batch, N patches, D width, F embedding width, S row length, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sigmoid_contrastive(
    image_BF: Float[Array, "B F"],
    text_BF: Float[Array, "B F"],
    same_BB: Float[Array, "B B"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """SigLIP's pairwise loss, and the share of images whose best text is their own.

    Args:
      image_BF: image embeddings, any length.
      text_BF: text embeddings, any length.
      same_BB: 1 where image i and text j belong together.
      scale: learned temperature.
      bias: learned bias.
    """
    image = image_BF / jnp.linalg.norm(image_BF, axis=-1, keepdims=True)
    text = text_BF / jnp.linalg.norm(text_BF, axis=-1, keepdims=True)
    logits = (image @ text.T).astype(jnp.float32) * scale + bias
    sign = 2.0 * same_BB - 1.0
    loss = -jax.nn.log_sigmoid(sign * logits).sum() / logits.shape[0]
    best = jnp.take_along_axis(same_BB, logits.argmax(axis=1)[:, None], axis=1)
    return loss, best.mean()


def cosine_distance(
    x_BND: Float[Array, "B N D"], x_rec_BND: Float[Array, "B N D"]
) -> Float[Array, ""]:
    """mean_i (1 - cos(x_i, x_rec_i)).  Paper: Eq. 4, first term."""
    x, rec = x_BND.astype(jnp.float32), x_rec_BND.astype(jnp.float32)
    dot = (x * rec).sum(axis=-1)
    norms = jnp.sqrt((x * x).sum(axis=-1) * (rec * rec).sum(axis=-1) + 1e-12)
    return (1.0 - dot / norms).mean()


def alikeness(x_BND: Float[Array, "B N D"]) -> Float[Array, ""]:
    """Mean squared cosine between any two features: 1 on a line, 1 / D all ways alike (ours)."""
    x_MD = x_BND.astype(jnp.float32).reshape(-1, x_BND.shape[-1])
    x_MD = x_MD / jnp.linalg.norm(x_MD, axis=-1, keepdims=True)
    moment_DD = x_MD.T @ x_MD / len(x_MD)
    return (moment_DD * moment_DD).sum()


def share_penalty(
    keep_BN: Float[Array, "B N"], target: float, over: str = "image"
) -> Float[Array, ""]:
    """(rho - mean_i M_i)^2.  Paper: Eq. 4, second term.

    Args:
      keep_BN: decisions.
      target: rho.
      over: "image": of each image, averaged. "batch": of the whole batch, so that images may keep
        more or less than others (ours).
    """
    share_B = keep_BN.mean(axis=1)
    return ((target - (share_B.mean() if over == "batch" else share_B)) ** 2).mean()


def masked_mean(values: Array, weights: Array) -> Float[Array, ""]:
    """Weighted mean; 0 where nothing weighs."""
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def next_token(
    logits_BSV: Float[Array, "B S V"],
    targets_BS: Int[Array, "B S"],
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Cross-entropy and correctness of each prediction."""
    shifted = logits_BSV - jax.lax.stop_gradient(logits_BSV.max(axis=-1, keepdims=True))
    picked = jnp.take_along_axis(shifted, targets_BS[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(shifted, axis=-1) - picked
    return loss, (logits_BSV.argmax(axis=-1) == targets_BS).astype(jnp.float32)
