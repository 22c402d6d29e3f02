"""Text after prompts of words and pictures, by beam search or sampling.

Legend: R rows, W beams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.inference.beams import BeamConfig
from lavit_jax.inference.engine import Engine, PromptBatch
from lavit_jax.inference.generate import SamplingConfig
from lavit_jax.inference.presets import TextOptions
from lavit_jax.inference.programs import banned_ids
from lavit_jax.inference.selection import Selection


class Said(NamedTuple):
    """A text the model wrote.

    Attributes:
      text: without what it was prompted with.
      score: what beams are ordered by: summed log-probability over length to the power of the
        length penalty; None for a sampled text.
    """

    text: str
    score: float | None


def write(
    engine: Engine,
    prompts: Sequence[Sequence[Any]],
    options: TextOptions,
    *,
    n_best: int = 1,
    select: Selection,
    seed: int,
) -> list[list[Said]]:
    """Continues prompts with text.

    Args:
      engine: the model.
      prompts: each a list of pictures (read as conditions), texts and lists of ids, in any order.
      options: how.
      n_best: texts of each prompt, best first; at most as many as there are beams.
      select: which patches of the pictures are kept.
      seed: of sampling, of texts and of patches.

    Raises:
      UserError: more texts wanted than beams, or a prompt longer than the context.
    """
    engine.need("llm")
    if not 1 <= n_best <= options.beams:
        raise UserError(f"n_best is {n_best}, expected 1 to the {options.beams} of beams")
    said: list[list[Said]] = []
    root = jax.random.key(seed)
    for batch in engine.condition_batches(prompts, select, seed, options.max_new):
        if options.temperature is None:
            found = _searched(engine, batch, options, n_best)
        else:
            found = _sampled(engine, batch, options, jax.random.fold_in(root, len(said)))
        said += [
            [Said(_cut(engine.text.decode(ids), options.cut), score) for ids, score in row]
            for row in found
        ]
    return said


Row = list[tuple[list[int], float | None]]


def _searched(
    engine: Engine, batch: PromptBatch, options: TextOptions, n_best: int
) -> Iterator[Row]:
    config = BeamConfig(
        beams=options.beams,
        max_new=options.max_new,
        min_new=options.min_new,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        repetition_penalty=_penalty(options),
    )
    found = engine.programs.search(*_inputs(engine, batch, config))
    ids, lengths, scores = jax.device_get(found)
    for r in range(batch.rows):
        yield [
            (ids[r, w, : lengths[r, w]].tolist(), float(scores[r, w]))
            for w in range(n_best)
            if np.isfinite(scores[r, w])
        ]


def _sampled(
    engine: Engine, batch: PromptBatch, options: TextOptions, key: jax.Array
) -> Iterator[Row]:
    config = SamplingConfig(
        max_new=options.max_new,
        min_new=options.min_new,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=_penalty(options),
    )
    keys_R = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(batch.arrays.ids_RS)))
    found = engine.programs.sample(*_inputs(engine, batch, config), keys_R)
    ids, lengths = jax.device_get(found)
    for r in range(batch.rows):
        yield [(ids[r, : lengths[r]].tolist(), None)]


def _inputs(engine: Engine, batch: PromptBatch, config: Any) -> tuple[Any, ...]:
    banned = banned_ids(engine.modules, text=True)
    stops = jnp.full(len(batch.arrays.ids_RS), engine.special.eos)
    pictures = (batch.features_BLE, batch.image_RJ)
    return (engine.params, *pictures, *batch.arrays, config, banned, stops)


def _penalty(options: TextOptions) -> float | None:
    return None if options.repetition_penalty == 1 else options.repetition_penalty


def _cut(text: str, marks: Sequence[str]) -> str:
    for mark in marks:
        text = text.partition(mark)[0]
    return text.strip()
