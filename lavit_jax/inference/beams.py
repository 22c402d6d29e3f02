"""Beam search in one compiled loop.

Legend: B rows asked for, W beams of a row, R = B W rows computed, C = 2 W candidates, S prompt
places, M new tokens, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lavit_jax.inference import decoding, logits
from lavit_jax.inference.decoding import Context, Params, Prompt
from lavit_jax.inference.generate import PAD
from lavit_jax.models.llama import Llama


@flax.struct.dataclass
class BeamConfig:
    """How beams are searched.

    A pytree: numbers may change from call to call of a compiled program; `beams`, `max_new` and
    `early_stopping` may not, they are part of the program.

    Attributes:
      beams: W.
      max_new: M, the most new tokens, the stop id included.
      min_new: tokens a beam has before it may stop.
      length_penalty: scores are summed log-probabilities over length to this power.
      early_stopping: a row is done once W beams have ended; otherwise once the best running beam,
        were it to end now, would not beat the worst of them.
      repetition_penalty: lowers log-probabilities of ids a beam has chosen before; None is 1.
    """

    beams: int = flax.struct.field(pytree_node=False)
    max_new: int = flax.struct.field(pytree_node=False)
    min_new: int | Int[Array, ""] = 0
    length_penalty: float | Float[Array, ""] = 1.0
    early_stopping: bool = flax.struct.field(pytree_node=False, default=False)
    repetition_penalty: float | Float[Array, ""] | None = None


class Beams(NamedTuple):
    """The W best continuations of each row, best first.

    Attributes:
      ids_BWM: ids, the stop id included where one ended the beam, then 0.
      lengths_BW: ids before the stop id.
      scores_BW: summed log-probability over length to the power of the length penalty, the stop
        id counted; -inf where there are fewer than W continuations.
    """

    ids_BWM: Int[Array, "B W M"]
    lengths_BW: Int[Array, "B W"]
    scores_BW: Float[Array, "B W"]


class _State(NamedTuple):
    step: Int[Array, ""]  # tokens chosen so far
    ids_BWM: Int[Array, "B W M"]  # running beams
    sums_BW: Float[Array, "B W"]
    ended: Beams
    done_B: Bool[Array, "B"]
    context: Context


def search(
    llm: Llama,
    params: Params,
    prompt: Prompt,
    config: BeamConfig,
    banned_V: Bool[Array, "V"],
    stop_B: Int[Array, "B"],
) -> Beams:
    """Continues prompts by beam search.

    To be compiled by the caller (`jax.jit`, with `llm` closed over).

    Args:
      llm: the module.
      params: its parameters.
      prompt: B left-padded prompts; rows that are all padding end at once.
      config: how to search.
      banned_V: ids that are never chosen.
      stop_B: the id that ends a beam of each row.
    """
    rows, beams = stop_B.shape[0], config.beams
    places = prompt.mask_RS.shape[1]
    first_BV, context = decoding.prefill(llm, params, prompt, config.max_new - 1)
    nothing = Beams(
        jnp.full((rows, beams, config.max_new), PAD, jnp.int32),
        jnp.zeros((rows, beams), jnp.int32),
        jnp.full((rows, beams), -jnp.inf),
    )
    state = _State(
        step=jnp.asarray(0),
        ids_BWM=nothing.ids_BWM,
        # All beams are alike at first: only one of them counts.
        sums_BW=jnp.where(jnp.arange(beams) > 0, -jnp.inf, jnp.zeros((rows, beams))),
        ended=nothing,
        done_B=~prompt.mask_RS.any(axis=1),
        context=decoding.repeat_rows(context, beams),
    )

    def choose(state: _State, logits_RV: Array) -> _State:
        log_probs = jax.nn.log_softmax(logits_RV, axis=-1)
        if config.repetition_penalty is not None:
            seen_RV = _chosen(state.ids_BWM, state.step, log_probs.shape[1])
            log_probs = logits.penalize_repetition(log_probs, seen_RV, config.repetition_penalty)
        log_probs = logits.suppress(log_probs, banned_V)
        too_short = state.step < config.min_new
        log_probs = logits.hold_stop(log_probs, jnp.repeat(stop_B, beams), too_short)
        return _advance(state, log_probs.reshape(rows, beams, -1), config, stop_B, places)

    def unfinished(state: _State) -> Array:
        return (state.step < config.max_new) & ~state.done_B.all()

    def read(state: _State) -> _State:
        last_BW = jax.lax.dynamic_index_in_dim(state.ids_BWM, state.step - 1, 2, keepdims=False)
        logits_RV, context = decoding.extend(llm, params, state.context, last_BW.reshape(-1))
        return choose(state._replace(context=context), logits_RV)

    state = choose(state, jnp.repeat(first_BV, beams, axis=0))
    return jax.lax.while_loop(unfinished, read, state).ended


def _chosen(ids_BWM: Array, count: Array, vocab: int) -> Bool[Array, "R V"]:
    """Which ids the running beams have chosen."""
    ids_RM = ids_BWM.reshape(-1, ids_BWM.shape[2])
    real_RM = jnp.broadcast_to(jnp.arange(ids_RM.shape[1]) < count, ids_RM.shape)
    rows = jnp.arange(len(ids_RM))[:, None]
    return jnp.zeros((len(ids_RM), vocab), bool).at[rows, ids_RM].max(real_RM)


def _normal(sums: Array, length: Array | int, config: BeamConfig) -> Array:
    return sums / jnp.asarray(length, jnp.float32) ** config.length_penalty


def _best(first: Beams, second: Beams, count: int) -> Beams:
    """The best `count` of both, best first; of equal ones the first's come first."""
    ids, lengths, scores = (jnp.concatenate([a, b], axis=1) for a, b in zip(first, second))
    scores, place = jax.lax.top_k(scores, count)
    return Beams(
        jnp.take_along_axis(ids, place[..., None], axis=1),
        jnp.take_along_axis(lengths, place, axis=1),
        scores,
    )


def _advance(
    state: _State, log_probs_BWV: Array, config: BeamConfig, stop_B: Array, places: int
) -> _State:
    """Extends every row's running beams by one token and puts those that end aside."""
    rows, beams, vocab = log_probs_BWV.shape
    sums = (state.sums_BW[..., None] + log_probs_BWV).reshape(rows, beams * vocab)
    sums_BC, flat_BC = jax.lax.top_k(sums, 2 * beams)
    beam_BC, id_BC = flat_BC // vocab, (flat_BC % vocab).astype(jnp.int32)
    ids_BCM = jnp.take_along_axis(state.ids_BWM, beam_BC[..., None], axis=1)
    ids_BCM = jax.lax.dynamic_update_slice(ids_BCM, id_BC[..., None], (0, 0, state.step))
    length = state.step + 1
    stops_BC = id_BC == stop_B[:, None]

    # Of the candidates that end only those among the best W count, as published. At the last step
    # all of them end.
    last = length == config.max_new
    ends_BW = (stops_BC | last)[:, :beams] & jnp.isfinite(sums_BC[:, :beams])
    ends_BW &= ~state.done_B[:, None]
    scores = jnp.where(ends_BW, _normal(sums_BC[:, :beams], length, config), -jnp.inf)
    lengths = jnp.where(stops_BC[:, :beams], state.step, length).astype(jnp.int32)
    ended = _best(state.ended, Beams(ids_BCM[:, :beams], lengths, scores), beams)

    # At most W of 2 W candidates end (each beam has one stop id), so W go on.
    order = jnp.argsort(stops_BC, axis=1, stable=True)[:, :beams]
    beam_BW = jnp.take_along_axis(beam_BC, order, axis=1)
    source_R = (jnp.arange(rows)[:, None] * beams + beam_BW).reshape(-1)
    sums_BW = jnp.take_along_axis(sums_BC, order, axis=1)
    full = jnp.isfinite(ended.scores_BW).all(axis=1)
    if not config.early_stopping:
        full &= ended.scores_BW[:, -1] >= _normal(sums_BW[:, 0], length, config)
    return _State(
        step=length,
        ids_BWM=jnp.take_along_axis(ids_BCM, order[..., None], axis=1),
        sums_BW=sums_BW,
        ended=ended,
        done_B=state.done_B | full,
        context=state.context
        if beams == 1
        else decoding.reorder_rows(state.context, source_R, places),
    )
