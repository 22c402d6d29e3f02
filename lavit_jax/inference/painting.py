"""Visual ids to pictures, by whichever pixel decoder the model has.

Legend: B pictures, L codes (padded).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.inference import prompts as layout
from lavit_jax.inference.engine import ROWS, Engine

DECODERS = ("onepass", "lowres", "highres")


@dataclasses.dataclass(frozen=True)
class PaintOptions:
    """Settings of a pixel decoder that samples; the one-pass head has none.

    Attributes:
      guidance: None is the decoder's own.
      steps: None is the decoder's own.
      seed: the same seed gives the same pictures.
    """

    guidance: float | None = None
    steps: int | None = None
    seed: int = 0


# Codes of each picture, int [kept], to pictures, uint8 [H, W, 3].
Paint = Callable[[Engine, Sequence[np.ndarray], PaintOptions], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Painter:
    """A pixel decoder.

    Attributes:
      modules: what the model must have for it.
      paint: how it paints.
    """

    modules: tuple[str, ...]
    paint: Paint


def _paint_onepass(
    engine: Engine, codes: Sequence[np.ndarray], options: PaintOptions
) -> list[np.ndarray]:
    """By the one-pass pixel head."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(codes), ROWS):
        part = codes[start : start + ROWS]
        ids_BL, count_B = padded(part, layout.bucket(len(part), ROWS), engine.config.max_kept)
        painted = engine.programs.paint(engine.params, engine.codebook, ids_BL, count_B)
        pictures += list(np.asarray(painted)[: len(part)])
    return pictures


def padded(codes: Sequence[np.ndarray], height: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes as one array [height, length], int32, and how many each row has."""
    ids_BL, count_B = np.zeros((height, length), np.int32), np.zeros(height, np.int32)
    for row, ids in enumerate(codes):
        count_B[row] = min(len(ids), length)
        ids_BL[row, : count_B[row]] = ids[:length]
    return ids_BL, count_B


# The one place where a pixel decoder is added, best first for a model that has several.
PAINTERS: Mapping[str, Painter] = {
    "onepass": Painter(("decoder", "pixel_head"), _paint_onepass),
}


def choose(engine: Engine, name: str | None) -> Paint:
    """The decoder of this name; the first one the model has for None.

    Raises:
      UserError: no such decoder, or the model has none.
    """
    if name is not None and name not in DECODERS:
        raise UserError(f"decoder is {name!r}, expected one of {', '.join(DECODERS)}")
    there = [key for key, painter in PAINTERS.items() if set(painter.modules) <= set(engine.params)]
    if name is None:
        if not there:
            engine.need(*PAINTERS["onepass"].modules)
        return PAINTERS[there[0]].paint
    if name not in there:
        raise UserError(f"this model has no {name} decoder; it has: {', '.join(there) or 'none'}")
    return PAINTERS[name].paint
