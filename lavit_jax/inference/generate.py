"""Greedy decoding and sampling in one compiled loop, with classifier-free guidance.

Legend: B rows asked for, R rows computed (2 B with guidance), S prompt places, M new tokens,
V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lavit_jax.inference import decoding, logits
from lavit_jax.inference.decoding import Context, Params, Prompt
from lavit_jax.models.llama import Llama

PAD = 0


@flax.struct.dataclass
class SamplingConfig:
    """How tokens are chosen.

    A pytree: numbers may change from call to call of a compiled program; `max_new`, `top_k` and
    which settings are None may not, they are part of the program.

    Attributes:
      max_new: M, the most new tokens, the stop id included.
      min_new: tokens a row has before it may stop.
      temperature: of sampling; None is greedy.
      top_k: sample among the k likeliest ids; None is all.
      top_p: sample among the fewest ids of this probability together; None is all.
      repetition_penalty: divides scores of ids chosen before; None is 1.
      guidance: s of `logits.guide`, of all rows or of each; None is no guidance.
    """

    max_new: int = flax.struct.field(pytree_node=False)
    min_new: int | Int[Array, ""] = 0
    temperature: float | Float[Array, ""] | None = None
    top_k: int | None = flax.struct.field(pytree_node=False, default=None)
    top_p: float | Float[Array, ""] | None = None
    repetition_penalty: float | Float[Array, ""] | None = None
    guidance: float | Float[Array, "*B"] | None = None


class Generated(NamedTuple):
    """New tokens.

    Attributes:
      ids_BM: ids chosen, the stop id included where one ended the row, then 0.
      lengths_B: ids before the stop id.
    """

    ids_BM: Int[Array, "B M"]
    lengths_B: Int[Array, "B"]


class _State(NamedTuple):
    step: Int[Array, ""]  # tokens chosen so far
    ids_BM: Int[Array, "B M"]
    lengths_B: Int[Array, "B"]
    done_B: Bool[Array, "B"]
    seen_BV: Bool[Array, "B V"] | None
    context: Context


def generate(
    llm: Llama,
    params: Params,
    prompt: Prompt,
    config: SamplingConfig,
    banned_V: Bool[Array, "V"],
    stop_B: Int[Array, "B"],
    keys_B: Key[Array, "B"],
    unconditional: Prompt | None = None,
    first: int = 0,
) -> Generated:
    """Continues prompts until each row's stop id, or `config.max_new` tokens.

    A row depends on its own prompt and key only, not on its place or company. To be compiled by
    the caller (`jax.jit`, with `llm` closed over).

    Args:
      llm: the module.
      params: its parameters.
      prompt: B left-padded prompts; rows that are all padding end at once.
      config: how to choose.
      banned_V: ids that are never chosen.
      stop_B: the id that ends each row.
      keys_B: randomness of each row; unused when greedy.
      unconditional: B prompts of the branch that guidance leads away from, of lengths of their
        own; read only when `config.guidance` is given.
      first: ids before this one are never chosen, nor scored, which saves time. A row's guided
        scores then lack a constant, which changes no choice.

    Raises:
      ValueError: guidance without `unconditional`; `first` with a repetition penalty, which is not
        indifferent to such a constant.
    """
    guided = config.guidance is not None
    if guided and unconditional is None:
        raise ValueError("config.guidance needs the unconditional prompts")
    if first and config.repetition_penalty is not None:
        raise ValueError("a repetition penalty needs the scores of all ids")
    rows, real_B = stop_B.shape[0], prompt.mask_RS.any(axis=1)
    both = decoding.stack(prompt, unconditional) if guided and unconditional else prompt
    first_RV, context = decoding.prefill(llm, params, both, config.max_new - 1, first)
    seen = None
    if config.repetition_penalty is not None:
        seen = jnp.zeros((rows, banned_V.shape[0]), bool)
    state = _State(
        step=jnp.asarray(0),
        ids_BM=jnp.full((rows, config.max_new), PAD, jnp.int32),
        lengths_B=jnp.zeros(rows, jnp.int32),
        done_B=~real_B,
        seen_BV=seen,
        context=context,
    )

    def choose(state: _State, logits_RV: Array) -> _State:
        seen, banned = state.seen_BV, banned_V[first:]
        scores = next_scores(config, logits_RV, state.step, seen, banned, stop_B - first)
        return _write(state, _pick(config, scores, keys_B, state.step) + first, stop_B)

    def unfinished(state: _State) -> Array:
        return (state.step < config.max_new) & ~state.done_B.all()

    def advance(state: _State) -> _State:
        last_B = jax.lax.dynamic_index_in_dim(state.ids_BM, state.step - 1, 1, keepdims=False)
        last_R = jnp.concatenate([last_B, last_B]) if guided else last_B
        logits_RV, context = decoding.extend(llm, params, state.context, last_R, first)
        return choose(state._replace(context=context), logits_RV)

    state = jax.lax.while_loop(unfinished, advance, choose(state, first_RV))
    return Generated(state.ids_BM, state.lengths_B)


def next_scores(
    config: SamplingConfig,
    logits_RV: Float[Array, "R V"],
    step: Int[Array, ""] | int,
    seen_BV: Bool[Array, "B V"] | None,
    banned_V: Bool[Array, "V"],
    stop_B: Int[Array, "B"],
) -> Float[Array, "B V"]:
    """What the next token is chosen by: guided, penalised, impossible ids at -inf.

    Args:
      config: how to choose.
      logits_RV: the model's scores; with guidance all conditional rows, then the unconditional.
      step: tokens chosen so far.
      seen_BV: ids chosen so far; read only when `config.repetition_penalty` is given.
      banned_V: ids that are never chosen.
      stop_B: the id that ends each row.
    """
    scores = logits_RV
    if config.guidance is not None:
        conditional, unconditional = jnp.split(logits_RV, 2)
        scores = logits.guide(conditional, unconditional, jnp.reshape(config.guidance, (-1, 1)))
    if config.repetition_penalty is not None and seen_BV is not None:
        scores = logits.penalize_repetition(scores, seen_BV, config.repetition_penalty)
    scores = logits.suppress(scores, banned_V)
    return logits.hold_stop(scores, stop_B, step < config.min_new)


def _pick(config: SamplingConfig, scores_BV: Array, keys_B: Array, step: Array) -> Int[Array, "B"]:
    if config.temperature is None:
        return scores_BV.argmax(axis=-1).astype(jnp.int32)
    scores = scores_BV / config.temperature
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
    if config.top_k is None and config.top_p is None:
        return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
    scores_BC, ids_BC = logits.ranked(scores, config.top_k)
    if config.top_p is not None:
        scores_BC = logits.keep_top_p(scores_BC, config.top_p)
    place_B = jax.vmap(jax.random.categorical)(keys, scores_BC)
    return jnp.take_along_axis(ids_BC, place_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def _write(state: _State, chosen_B: Array, stop_B: Array) -> _State:
    """Appends the chosen ids to the rows that have not ended."""
    ids_B = jnp.where(state.done_B, PAD, chosen_B)
    stopped = ~state.done_B & (chosen_B == stop_B)
    seen = state.seen_BV
    if seen is not None:
        seen = seen.at[jnp.arange(len(chosen_B)), chosen_B].set(True)
    return state._replace(
        step=state.step + 1,
        ids_BM=jax.lax.dynamic_update_slice(state.ids_BM, ids_B[:, None], (0, state.step)),
        lengths_B=state.lengths_B + ~(state.done_B | stopped),
        done_B=state.done_B | stopped,
        seen_BV=seen,
    )
