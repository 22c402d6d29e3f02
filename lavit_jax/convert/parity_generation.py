"""Compares what our own decoding writes with what a checkpoint's published code wrote.

The file holds no settings: those below are the ones every reference is made with. Prompts are the
published ones, so that a row judges decoding alone.

Legend: B rows, S prompt places, M new tokens, E llm width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.convert.parity_base import Model, Reference, Result
from lavit_jax.data.layout import SpecialIds
from lavit_jax.inference import beams, decoding, generate
from lavit_jax.inference.beams import BeamConfig
from lavit_jax.inference.decoding import Prompt
from lavit_jax.inference.generate import PAD, SamplingConfig
from lavit_jax.inference.programs import banned_ids
from lavit_jax.models.llama import Llama

GREEDY = SamplingConfig(max_new=12, min_new=2)
CAPTION = BeamConfig(beams=2, max_new=12, min_new=4)
ANSWER = BeamConfig(beams=5, max_new=10, min_new=2, length_penalty=0.0, early_stopping=True)
DRAWING = SamplingConfig(max_new=10, min_new=4, guidance=4.0)


def check_text(model: Model, ref: Reference) -> Iterator[Result]:
    """Greedy text and both beam searches after images and questions."""
    if not (ref.has("prompt_embeds", "prompt_mask") and model.has("llm")):
        return
    prompt = Prompt(
        jnp.asarray(ref.arrays["prompt_embeds"]), jnp.asarray(ref.arrays["prompt_mask"] > 0)
    )
    if prompt.mask_RS.shape != prompt.embeds_RSE.shape[:2]:
        return  # the row of one of them tells
    rows = len(prompt.mask_RS)
    banned, stop_B = banned_ids(model.modules, text=True), jnp.full(rows, SpecialIds.eos)
    llm, params = model.modules.llm, model.params["llm"]
    if ref.has("greedy_ids"):
        keys_B = jax.random.split(jax.random.key(0), rows)
        run: Callable[..., Any] = jax.jit(
            lambda params: generate.generate(llm, params, prompt, GREEDY, banned, stop_B, keys_B)
        )
        yield Result("greedy_ids", _like(run(params).ids_BM, ref.arrays["greedy_ids"]))
    for name, config in (("beam2_caption_ids", CAPTION), ("beam5_answer_ids", ANSWER)):
        if ref.has(name):
            run = jax.jit(
                lambda params, config=config: beams.search(
                    llm, params, prompt, config, banned, stop_B
                )
            )
            yield Result(name, _like(run(params).ids_BWM[:, 0], ref.arrays[name]))


def check_drawing(model: Model, ref: Reference) -> Iterator[Result]:
    """Greedy visual ids under guidance, and the guided scores along the published ids."""
    if not (ref.has("t2i_prompt_ids", "t2i_greedy_ids") and model.has("llm")):
        return
    llm, params = model.modules.llm, model.params["llm"]
    sizes = model.modules.config.llm
    ids_BS = jnp.asarray(ref.input("t2i_prompt_ids"))
    rows = len(ids_BS)
    start_B1 = jnp.full((rows, 1), sizes.image_start)
    banned, stop_B = banned_ids(model.modules, text=False), jnp.full(rows, sizes.image_end)
    keys_B = jax.random.split(jax.random.key(0), rows)
    expected_BM = ref.arrays["t2i_greedy_ids"]

    @jax.jit
    def drawn(params: Any) -> jax.Array:
        prompt, other = (_embedded(llm, params, ids) for ids in (ids_BS, start_B1))
        return generate.generate(
            llm, params, prompt, DRAWING, banned, stop_B, keys_B, unconditional=other
        ).ids_BM

    yield Result("t2i_greedy_ids", _like(drawn(params), expected_BM))
    if ref.has("t2i_scores"):
        yield Result("t2i_scores", _guided_scores(model, ids_BS, start_B1, expected_BM))


def _guided_scores(
    model: Model, ids_BS: jax.Array, start_B1: jax.Array, follow_BM: np.ndarray
) -> np.ndarray:
    """Scores before each of the ids to follow, whatever ours would be, in float64.

    Guidance multiplies rounding by up to 2 s - 1. The published scores carry theirs; ours, added
    to it, would hide a difference as large as the tolerance.
    """
    sizes = dataclasses.replace(model.modules.config.llm, dtype="float64")
    llm, banned = Llama(sizes), banned_ids(model.modules, text=False)
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64), model.params["llm"]
        )
        stop_B = jnp.full(len(follow_BM), sizes.image_end)

        @jax.jit
        def begin(params: Any, ids: jax.Array, start: jax.Array) -> Any:
            both = decoding.stack(_embedded(llm, params, ids), _embedded(llm, params, start))
            return decoding.prefill(llm, params, both, follow_BM.shape[1])

        extend = jax.jit(functools.partial(decoding.extend, llm))
        logits_RV, context = begin(params, np.asarray(ids_BS), np.asarray(start_B1))
        scores = []
        for step, id_B in enumerate(follow_BM.T):
            scores.append(
                generate.next_scores(DRAWING, logits_RV, jnp.asarray(step), None, banned, stop_B)
            )
            logits_RV, context = extend(params, context, jnp.tile(jnp.asarray(id_B), 2))
        return np.stack([np.asarray(score) for score in scores], axis=1)


def _embedded(llm: Llama, params: Any, ids_BS: jax.Array) -> Prompt:
    embeds = decoding.run(llm, params, ids_BS, method="embed")
    return Prompt(embeds, jnp.ones(ids_BS.shape, bool))


def _like(ids_BM: jax.Array, expected_BM: np.ndarray) -> np.ndarray:
    """Our ids as wide as the published ones, which end where the longest row does."""
    ids, width = np.asarray(ids_BM), expected_BM.shape[1]
    return ids[:, :width] if (ids[:, width:] == PAD).all() else ids
