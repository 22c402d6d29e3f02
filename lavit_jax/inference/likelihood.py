"""Log-likelihood of the ends of sequences.

Legend: R rows, S places, M places scored, E llm width, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lavit_jax.inference import decoding
from lavit_jax.inference.decoding import Params, Prompt
from lavit_jax.models import attention
from lavit_jax.models.llama import Llama

PLACES = 16  # scored at a time, so that no [R, S, V] array is ever held


def of_last(
    llm: Llama,
    params: Params,
    sequence: Prompt,
    ids_RM: Int[Array, "R M"],
    targets_R: Int[Array, "R"],
) -> Float[Array, "R"]:
    """Summed log-probability of each row's last ids, given all that stands before.

    Args:
      llm: the module.
      params: its parameters.
      sequence: R left-padded sequences of more than M places, whose last M are ids.
      ids_RM: those ids.
      targets_R: how many of them count in each row: the last ones; 0 sums to 0.
    """
    mask_RS, most = sequence.mask_RS, ids_RM.shape[1]
    hidden, _ = decoding.run(
        llm,
        params,
        sequence.embeds_RSE,
        jnp.maximum(jnp.cumsum(mask_RS, axis=1) - 1, 0),
        attention.causal_segment_mask(mask_RS.astype(jnp.int32)),
        method="hidden",
    )
    before_RME = hidden[:, -most - 1 : -1]

    def log_prob(place: tuple[Array, Array]) -> Array:
        hidden_RE, id_R = place
        logits = decoding.run(llm, params, hidden_RE, method="logits")
        chosen = jnp.take_along_axis(logits, id_R[:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    log_probs_MR = jax.lax.map(
        log_prob, (before_RME.swapaxes(0, 1), ids_RM.T), batch_size=min(PLACES, most)
    )
    counts_MR = jnp.arange(most)[:, None] >= most - targets_R
    return jnp.where(counts_MR, log_probs_MR, 0.0).sum(axis=0)
