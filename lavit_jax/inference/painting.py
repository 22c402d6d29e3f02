"""Visual ids to pictures, by whichever pixel decoder the model has.

Legend: B pictures, L codes (padded).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.inference import prompts as layout
from lavit_jax.inference.engine import ROWS, Engine
from lavit_jax.inference.pixels import Settings

DECODERS = ("onepass", "lowres", "highres")
ONE_PASS = ("decoder", "pixel_head")  # modules of the one-pass decoder


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


def _paint_diffusion(
    kind: str, engine: Engine, codes: Sequence[np.ndarray], options: PaintOptions
) -> list[np.ndarray]:
    """By one of the engine's diffusion decoders."""
    settings = Settings(guidance=options.guidance, steps=options.steps)
    most = engine.config.decoder.patches
    return engine.decoders[kind].paint([ids[:most] for ids in codes], options.seed, settings)


def _there(engine: Engine) -> dict[str, Paint]:
    """The decoders a model has, the one it uses by itself first."""
    found: dict[str, Paint] = {}
    if set(ONE_PASS) <= set(engine.params):
        found["onepass"] = _paint_onepass
    for kind in reversed(DECODERS):
        if kind in engine.decoders:
            found[kind] = functools.partial(_paint_diffusion, kind)
    return found


def choose(engine: Engine, name: str | None) -> Paint:
    """The decoder of this name; the first one the model has for None.

    Raises:
      UserError: no such decoder, or the model has none.
    """
    if name is not None and name not in DECODERS:
        raise UserError(f"decoder is {name!r}, expected one of {', '.join(DECODERS)}")
    there = _there(engine)
    if name is None:
        if not there:
            engine.need(*ONE_PASS)
        return next(iter(there.values()))
    if name not in there:
        raise UserError(f"this model has no {name} decoder; it has: {', '.join(there) or 'none'}")
    return there[name]
