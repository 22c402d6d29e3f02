"""Visual ids to pictures, by whichever pixel decoder the model has.

Legend: B pictures, L codes (padded).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.inference import prompts as layout
from lavit_jax.inference.engine import ROWS, Engine
from lavit_jax.inference.pixels import Settings

ONE_PASS = "onepass"
DECODERS = (ONE_PASS, "lowres", "highres")
PREFERRED = (ONE_PASS, "highres", "lowres")  # a model's own is the first of them that it has
ONE_PASS_MODULES = ("decoder", "pixel_head")

# Codes of each picture, int [kept], and a seed to pictures, uint8 [H, W, 3].
Paint = Callable[[Sequence[np.ndarray], int], list[np.ndarray]]


def _paint_onepass(engine: Engine, codes: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """By the one-pass pixel head, which samples nothing: it has no use for a seed."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(codes), ROWS):
        part = codes[start : start + ROWS]
        height = layout.bucket(len(part), ROWS)
        ids_BL, count_B = layout.padded(part, height, engine.config.max_kept)
        painted = engine.programs.paint(engine.params, engine.codebook, ids_BL, count_B)
        pictures += list(np.asarray(painted)[: len(part)])
    return pictures


def names(engine: Engine) -> list[str]:
    """The decoders a model has, its own first."""
    onepass = set(ONE_PASS_MODULES) <= set(engine.params)
    return [
        name for name in PREFERRED if (onepass if name == ONE_PASS else name in engine.decoders)
    ]


def choose(engine: Engine, name: str | None, settings: Settings) -> Paint:
    """The decoder of this name, settled on how it paints; the first the model has for None.

    A diffusion decoder's weights are read now if they have not been, so that settings it cannot
    follow are told before anything is computed. The one-pass head has one size and no steps:
    all settings but a size are for the others.

    Raises:
      UserError: no such decoder, the model has none, or settings it cannot follow.
    """
    if name is not None and name not in DECODERS:
        raise UserError(f"decoder is {name!r}, expected one of {', '.join(DECODERS)}")
    there = names(engine)
    if name is None and not there:
        engine.need(*ONE_PASS_MODULES)
    name = name or there[0]
    if name not in there:
        raise UserError(f"this model has no {name} decoder; it has: {', '.join(there) or 'none'}")
    if name == ONE_PASS:
        if (settings.height, settings.width) != (None, None):
            raise UserError("the onepass decoder paints at one size: a size needs another decoder")
        return functools.partial(_paint_onepass, engine)
    decoder = engine.decoders[name]()
    decoder.check(settings)
    return functools.partial(decoder.paint, settings=settings)
