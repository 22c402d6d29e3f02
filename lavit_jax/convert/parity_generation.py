"""Compares what our own decoding writes with what a checkpoint's published code wrote.

The file holds no settings: those below are the ones every reference is made with. Prompts are the
published ones, so that a row judges decoding alone.

Legend: B rows, S prompt places, M new tokens, E llm width, V vocabulary.
"""

from __future__ import annotations

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

    def embedded(params: Any, ids: jax.Array) -> Prompt:
        embeds = llm.apply({"params": params}, ids, method="embed")
        return Prompt(embeds, jnp.ones(ids.shape, bool))

    @jax.jit
    def drawn(params: Any) -> jax.Array:
        prompt, other = embedded(params, ids_BS), embedded(params, start_B1)
        return generate.generate(
            llm, params, prompt, DRAWING, banned, stop_B, keys_B, unconditional=other
        ).ids_BM

    @jax.jit
    def scored(params: Any) -> jax.Array:
        """Follows the published ids, whatever ours would be."""
        both = decoding.stack(embedded(params, ids_BS), embedded(params, start_B1))
        logits_RV, context = decoding.prefill(llm, params, both, expected_BM.shape[1])
        scores = []
        for step, id_B in enumerate(expected_BM.T):
            scores.append(
                generate.next_scores(DRAWING, logits_RV, jnp.asarray(step), None, banned, stop_B)
            )
            id_R = jnp.tile(jnp.asarray(id_B, jnp.int32), 2)
            logits_RV, context = decoding.extend(llm, params, context, id_R)
        return jnp.stack(scores, axis=1)

    yield Result("t2i_greedy_ids", _like(drawn(params), expected_BM))
    if ref.has("t2i_scores"):
        yield Result("t2i_scores", scored(params))


def _like(ids_BM: jax.Array, expected_BM: np.ndarray) -> np.ndarray:
    """Our ids as wide as the published ones, which end where the longest row does."""
    ids, width = np.asarray(ids_BM), expected_BM.shape[1]
    return ids[:, :width] if (ids[:, width:] == PAD).all() else ids
