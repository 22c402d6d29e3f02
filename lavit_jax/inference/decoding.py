"""The language model one token at a time: prompts in, next-token scores out, a cache between.

Legend: R rows, S prompt places, T places of the cache, E llm width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lavit_jax.models import llama, placement
from lavit_jax.models.llama import Caches, Llama

Params = Any


class Prompt(NamedTuple):
    """Left-padded prompts of any lengths, as embeddings.

    Attributes:
      embeds_RSE: embeddings of tokens and of condition features.
      mask_RS: False at padding; a row of padding alone fills up a batch and is never decoded.
    """

    embeds_RSE: Float[Array, "R S E"]
    mask_RS: Bool[Array, "R S"]


class Context(NamedTuple):
    """What has been read.

    Attributes:
      cache: keys and values of T places, the prompt's S first.
      readable_RT: False at the prompt's padding.
      gaps_R: how much padding a row has.
      filled: places in use, the same for all rows.
    """

    cache: Caches
    readable_RT: Bool[Array, "R T"]
    gaps_R: Int[Array, "R"]
    filled: Int[Array, ""]


def run(llm: Llama, params: Params, *args: Any, method: str) -> Any:
    """Runs a method of the module."""
    return llm.apply({"params": params}, *args, method=method)


def prefill(
    llm: Llama, params: Params, prompt: Prompt, room: int, first: int = 0
) -> tuple[Float[Array, "R V"], Context]:
    """Reads whole prompts.

    Args:
      llm: the module.
      params: its parameters.
      prompt: what to read.
      room: how many more tokens the context will take.
      first: ids before this one are not scored.

    Returns:
      Scores of each row's first new token, float32, and the context to go on from.
    """
    rows, places = prompt.mask_RS.shape
    total = places + room
    readable = jnp.pad(prompt.mask_RS, ((0, 0), (0, room)), constant_values=True)
    positions = jnp.maximum(jnp.cumsum(prompt.mask_RS, axis=1) - 1, 0)
    # Room still empty lies after every query.
    causal_ST = jnp.arange(total)[None] <= jnp.arange(places)[:, None]
    hidden, cache = run(
        llm,
        params,
        prompt.embeds_RSE,
        positions,
        causal_ST & readable[:, None],
        llama.empty_cache(llm.config, rows, total),
        method="hidden",
    )
    logits = run(llm, params, hidden[:, -1], first, method="logits")
    gaps = places - prompt.mask_RS.sum(axis=1)
    return logits, Context(_laid(cache), readable, gaps, jnp.asarray(places))


def extend(
    llm: Llama, params: Params, context: Context, ids_R: Int[Array, "R"], first: int = 0
) -> tuple[Float[Array, "R V"], Context]:
    """Reads one more token of every row; scores of the next, from id `first` on, float32."""
    embeds = run(llm, params, ids_R[:, None], method="embed")
    here = context.filled
    seen = jnp.arange(context.readable_RT.shape[1]) <= here
    hidden, cache = run(
        llm,
        params,
        embeds,
        (here - context.gaps_R)[:, None],
        (seen & context.readable_RT)[:, None],
        context.cache,
        here,
        method="hidden",
    )
    logits = run(llm, params, hidden[:, 0], first, method="logits")
    return logits, context._replace(cache=_laid(cache), filled=here + 1)


def _laid(cache: Caches) -> Caches:
    """Rows and heads of a cache on the devices that read them."""

    def one(x: Array) -> Array:
        names = ("batch", "act_heads", None, None)
        return placement.constrain(x, *[None] * (x.ndim - len(names)), *names)

    return jax.tree.map(one, cache)


def stack(first: Prompt, second: Prompt) -> Prompt:
    """The rows of both, the shorter ones padded on the left."""
    places = max(first.mask_RS.shape[1], second.mask_RS.shape[1])

    def widen(x: Array) -> Array:
        before = (places - x.shape[1], 0)
        return jnp.pad(x, ((0, 0), before, *[(0, 0)] * (x.ndim - 2)))

    return Prompt(*(jnp.concatenate([widen(a), widen(b)]) for a, b in zip(first, second)))


def repeat_rows(context: Context, times: int) -> Context:
    """Every row `times` times over, its copies side by side."""
    cache = jax.tree.map(lambda x: jnp.repeat(x, times, axis=-4), context.cache)
    return context._replace(
        cache=cache,
        readable_RT=jnp.repeat(context.readable_RT, times, axis=0),
        gaps_R=jnp.repeat(context.gaps_R, times),
    )


def reorder_rows(context: Context, source_R: Int[Array, "R"], prompt: int) -> Context:
    """Row r goes on from what row source_R[r] read after the first `prompt` places.

    A row and its source have the same prompt, whose places therefore stay as they are.
    """

    def taken(x: Array) -> Array:
        return x.at[..., prompt:, :].set(x[..., source_R, :, prompt:, :])

    return context._replace(cache=jax.tree.map(taken, context.cache))
