"""How likely words are given a picture, and a picture given words, by the one language model.

Legend: R rows, S places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.inference.engine import ROWS, Engine, Image, PromptBatch, as_picture
from lavit_jax.inference.prompts import PLACES
from lavit_jax.inference.selection import Selection


@dataclasses.dataclass(frozen=True)
class Score:
    """Log-likelihoods of a picture and a text, in nats, of all tokens together.

    Attributes:
      text_given_image: log p(text, its end | picture as condition).
      image_given_text: log p(the picture's ids, their end | text).
      text_tokens: of the text, its end counted.
      image_tokens: of the picture, its end counted.
    """

    text_given_image: float
    image_given_text: float
    text_tokens: int
    image_tokens: int


def score(
    engine: Engine,
    images: Sequence[Image],
    texts: Sequence[str],
    *,
    select: Selection,
    seed: int,
) -> list[Score]:
    """Scores pairs of pictures and texts; one of either goes with all of the other.

    Raises:
      UserError: other numbers of pictures than texts, a pair longer than the context.
    """
    words = [engine.text.encode(text) for text in texts]
    pairs = _pairs(len(images), len(words))
    tokens = engine.tokens(images, select, seed)
    forward = text_given_image(engine, images, words, select=select, seed=seed)
    rows = [[*words[t], *engine.special.visual(tokens[i].ids)] for i, t in pairs]
    backward: list[float] = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        counts = [tokens[i].kept + 1 for i, _ in pairs[start : start + ROWS]]
        batch = engine.lay_conditions([[row] for row in part], None, (), 0)
        backward += _likelihood(engine, batch, counts)
    return [
        Score(ahead, back, len(words[t]) + 1, tokens[i].kept + 1)
        for (i, t), ahead, back in zip(pairs, forward, backward)
    ]


def text_given_image(
    engine: Engine,
    images: Sequence[Image],
    words: Sequence[Sequence[int]],
    *,
    select: Selection,
    seed: int,
) -> list[float]:
    """log p(text, its end | picture) of pairs, as `score` pairs them, from the texts' ids."""
    engine.need("llm")
    pairs = _pairs(len(images), len(words))
    pictures = [as_picture(image) for image in images]
    ended = [[*ids, engine.special.eos] for ids in words]
    seen = engine.see(pictures, select, seed) if len(pictures) == 1 else None
    found: list[float] = []
    for start in range(0, len(pairs), ROWS):
        part = pairs[start : start + ROWS]
        prompts = [[pictures[i], ended[t]] for i, t in part]
        if seen is not None:
            batch = engine.lay_conditions(prompts, seen, [0] * len(part), 0)
        else:
            shown = engine.see([pictures[i] for i, _ in part], select, seed, first=start)
            batch = engine.lay_conditions(prompts, shown, range(len(part)), 0)
        found += _likelihood(engine, batch, [len(ended[t]) for _, t in part])
    return found


def _likelihood(engine: Engine, batch: PromptBatch, counts: Sequence[int]) -> list[float]:
    height, places = batch.arrays.ids_RS.shape
    most = min(-(-max(counts) // PLACES) * PLACES, places - 1)
    targets = np.zeros(height, np.int32)
    targets[: len(counts)] = counts
    found = engine.programs.likelihood(
        engine.params,
        batch.features_BLE,
        batch.image_RJ,
        *batch.arrays,
        jnp.asarray(targets),
        most=most,
    )
    return np.asarray(found)[: batch.rows].tolist()


def _pairs(images: int, texts: int) -> list[tuple[int, int]]:
    """Which picture goes with which text."""
    if images != texts and 1 not in (images, texts):
        raise UserError(f"{images} images and {texts} texts: give one of either, or equally many")
    count = max(images, texts) if images and texts else 0
    return [(k if images > 1 else 0, k if texts > 1 else 0) for k in range(count)]
