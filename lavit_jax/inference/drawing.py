"""Visual ids from prompts of words and pictures, by guided sampling.

Legend: B drawings, R rows, M new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.inference import prompts as layout
from lavit_jax.inference import selection as selections
from lavit_jax.inference.engine import ROWS, Engine, Image, Prompt, as_picture, nonblank
from lavit_jax.inference.generate import SamplingConfig
from lavit_jax.inference.painting import Paint
from lavit_jax.inference.presets import DrawOptions
from lavit_jax.inference.programs import banned_ids
from lavit_jax.inference.scoring import text_given_image
from lavit_jax.inference.selection import Selection

# Published bounds on a drawing's ids, as shares of the patches: 20 and 200 of 256.
LEAST_DRAWN, MOST_DRAWN = 20 / 256, 200 / 256


class DrawPrompt(NamedTuple):
    """A prompt to draw from.

    Attributes:
      ids: words and [IMG] codes [/IMG] in order, then [IMG].
      words: the ids of its words alone.
      mixed: whether there are pictures in it.
    """

    ids: list[int]
    words: list[int]
    mixed: bool


def read_prompts(
    engine: Engine,
    prompts: Sequence[Prompt],
    before: Sequence[Image],
    select: Selection,
    seed: int,
) -> list[DrawPrompt]:
    """Prompts as ids.

    Args:
      engine: the model.
      prompts: words; or a list of words and pictures in any order.
      before: pictures that go before every prompt.
      select: which patches of pictures are kept.
      seed: of sampled selections, with a picture's place: those of `before` come first.

    Raises:
      UserError: an empty prompt, an image that cannot be read.
    """
    parts: list[list[Any]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            nonblank(prompt, "prompt")
        elif not prompt:
            raise UserError("the prompt is empty")
        parts.append([prompt] if isinstance(prompt, str) else list(prompt))
    pictures = [as_picture(image) for image in before]
    pictures += [piece for row in parts for piece in row if not isinstance(piece, str)]
    tokens = iter(engine.tokens(pictures, select, seed) if pictures else [])
    shared = [i for _ in before for i in engine.special.visual(next(tokens).ids)]
    read = []
    for row in parts:
        ids: list[int] = list(shared)
        words: list[int] = []
        for piece in row:
            if isinstance(piece, str):
                text = engine.text.encode(piece)
                ids, words = ids + text, words + text
            else:
                ids += engine.special.visual(next(tokens).ids)
        mixed = bool(before) or any(not isinstance(piece, str) for piece in row)
        read.append(DrawPrompt([*ids, engine.special.image_start], words, mixed))
    return read


def draw(
    engine: Engine,
    prompts: Sequence[DrawPrompt],
    n: int,
    options: DrawOptions,
    paint: Paint,
    seed: int,
) -> list[list[np.ndarray]]:
    """n pictures of each prompt, the likeliest of `options.best_of` candidates each.

    Raises:
      UserError: a prompt longer than the context, one without words and several candidates.
    """
    best_of = options.best_of
    if best_of > 1 and not all(prompt.words for prompt in prompts):
        raise UserError("best_of needs words in the prompt: candidates are ranked by them")
    jobs = [(row, number) for row in range(len(prompts)) for number in range(n * best_of)]
    codes = sample_codes(engine, prompts, jobs, options, seed)
    pictures = paint(codes, seed)
    if best_of > 1:
        words = [prompts[row].words for row, _ in jobs]
        scores = text_given_image(engine, pictures, words, select=selections.GREEDY, seed=0)
        best = np.reshape(scores, (-1, best_of)).argmax(axis=1)
        pictures = [pictures[group * best_of + place] for group, place in enumerate(best)]
    return [pictures[row * n : (row + 1) * n] for row in range(len(prompts))]


def sample_codes(
    engine: Engine,
    prompts: Sequence[DrawPrompt],
    jobs: Sequence[tuple[int, int]],
    options: DrawOptions,
    seed: int,
) -> list[np.ndarray]:
    """Codes of drawings, int32 each.

    Args:
      engine: the model.
      prompts: what to draw from.
      jobs: of each drawing which prompt it is of, and its number; a drawing depends on the seed
        and these two only.
      options: how.
      seed: see `jobs`.
    """
    engine.need("llm")
    root, fold = jax.random.key(seed), jax.random.fold_in
    keys = jax.vmap(lambda row, number: fold(fold(root, row), number))
    least, most = _bounds(engine, options)
    banned = banned_ids(engine.modules, text=False, first_text=options.first_suppressed)
    # With all text and [IMG] suppressed [/IMG] is the first id there is.
    score_all = options.first_suppressed > 0 or options.repetition_penalty != 1
    first = 0 if score_all else engine.special.image_end
    scales = [options.mixed_guidance if p.mixed else options.guidance for p in prompts]
    codes: list[np.ndarray] = []
    for start in range(0, len(jobs), ROWS):
        part = list(jobs[start : start + ROWS])
        height = layout.bucket(len(part), ROWS)
        arrays = engine.lay([prompts[row].ids for row, _ in part], height, most)
        filled = np.array(part + [part[-1]] * (height - len(part)), np.uint32)
        guidance = np.array([scales[row] for row in filled[:, 0]], np.float32)
        config = SamplingConfig(
            max_new=most,
            min_new=least,
            temperature=options.temperature or None,
            top_k=options.top_k if options.temperature else None,
            top_p=options.top_p if options.temperature else None,
            repetition_penalty=_none_if_one(options.repetition_penalty),
            guidance=None if (guidance == 1).all() else jnp.asarray(guidance),
        )
        found = engine.programs.sample(
            engine.params,
            None,
            None,
            *arrays,
            config,
            banned,
            jnp.full(height, engine.special.image_end),
            keys(filled[:, 0], filled[:, 1]),
            jnp.full((height, 1), engine.special.image_start),
            first=first,
        )
        ids_RM, lengths_R = jax.device_get(found)
        for row in range(len(part)):
            ids = ids_RM[row, : lengths_R[row]]
            codes.append(ids[ids >= engine.special.code(0)] - engine.special.code(0))
    return codes


def _bounds(engine: Engine, options: DrawOptions) -> tuple[int, int]:
    """The fewest and the most ids of a drawing."""
    patches, room = engine.config.patches, engine.config.max_kept
    most = options.max_ids or min(int(MOST_DRAWN * patches), room)
    if most > room:
        raise UserError(f"max_ids is {most}, but this model draws at most {room}")
    least = int(LEAST_DRAWN * patches) if options.min_ids is None else options.min_ids
    if options.min_ids is not None and least > most:
        raise UserError(f"min_ids is {least}, but a drawing has at most {most}")
    return min(least, most), most


def _none_if_one(penalty: float) -> float | None:
    return None if penalty == 1 else penalty
