"""Changes to next-token scores before one is chosen: pure functions of [B, V] arrays.

Impossible ids get -inf. Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Scores = Float[Array, "B V"]
Number = float | Float[Array, ""]


def suppress(scores_BV: Scores, banned_V: Bool[Array, "V"]) -> Scores:
    """Makes banned ids impossible."""
    return jnp.where(banned_V, -jnp.inf, scores_BV)


def hold_stop(
    scores_BV: Scores, stop_B: Int[Array, "B"], too_short: Bool[Array, ""] | bool
) -> Scores:
    """Makes each row's stop id impossible while the rows are too short to end."""
    is_stop_BV = jnp.arange(scores_BV.shape[1]) == stop_B[:, None]
    return jnp.where(too_short & is_stop_BV, -jnp.inf, scores_BV)


def penalize_repetition(scores_BV: Scores, seen_BV: Bool[Array, "B V"], penalty: Number) -> Scores:
    """Lowers the scores of ids chosen before: divides positive ones, multiplies negative ones."""
    lowered = jnp.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return jnp.where(seen_BV, lowered, scores_BV)


def ranked(
    scores_BV: Scores, k: int | None = None
) -> tuple[Float[Array, "B C"], Int[Array, "B C"]]:
    """The k likeliest ids' scores, best first, and the ids; all V of them for None."""
    return jax.lax.top_k(scores_BV, min(k or scores_BV.shape[1], scores_BV.shape[1]))


def keep_top_p(scores_BC: Float[Array, "B C"], p: Number) -> Float[Array, "B C"]:
    """Keeps the fewest likeliest whose probabilities sum to p or more; always the first.

    Args:
      scores_BC: best first.
      p: the sum.
    """
    chance = jax.nn.softmax(scores_BC, axis=-1)
    before = jnp.cumsum(chance, axis=-1) - chance
    kept = (before < p).at[:, 0].set(True)
    return jnp.where(kept, scores_BC, -jnp.inf)


def guide(
    conditional_BV: Scores, unconditional_BV: Scores, scale: float | Float[Array, "#B 1"]
) -> Scores:
    """u + s (c - u) of log-probabilities (Paper: Eq. 7); s = 1 is the conditional alone.

    Args:
      conditional_BV: scores given the prompt, any constant per row off.
      unconditional_BV: scores given no prompt.
      scale: s, of all rows or of each.
    """
    c = jax.nn.log_softmax(conditional_BV, axis=-1)
    u = jax.nn.log_softmax(unconditional_BV, axis=-1)
    return u + scale * (c - u)
