"""The share of useful tokens, from packing examples of synthetic lengths with the real packer."""

from __future__ import annotations

import functools

import numpy as np

from lavit_jax.data.layout import Condition, Example
from lavit_jax.data.packing import Limits, PackedRows

# Kept patches of an image as SPEC 6 says: mean 88, 37 to 130.
KEPT_MEAN, KEPT_STD, KEPT_LEAST, KEPT_MOST = 88.0, 16.0, 37, 130
# Tokens of a web caption, of a question with its answer and of a paragraph: ours.
CAPTION = (20.0, 8.0, 5, 60)
QUESTION = (24.0, 6.0, 12, 48)
PARAGRAPH = (400.0, 200.0, 40, 1024)
ROWS = 256


def lengths(rng: np.random.Generator, kind: str, patches: int) -> tuple[int, int]:
    """Kept patches and other tokens of one example of a kind of `data.mixture`."""
    text = {"question": QUESTION, "text": PARAGRAPH}.get(kind, CAPTION)
    if kind == "text":
        return 0, _draw(rng, *text)
    scale = patches / 256
    kept = _draw(rng, KEPT_MEAN, KEPT_STD, KEPT_LEAST, KEPT_MOST)
    return max(1, round(kept * scale)), _draw(rng, *text) + 2  # [IMG] and [/IMG]


def _draw(rng: np.random.Generator, mean: float, std: float, least: int, most: int) -> int:
    return int(np.clip(round(rng.normal(mean, std)), least, most))


class _Synthetic:
    """Endless examples of random lengths; the same for an index every time."""

    def __init__(self, mixture: tuple[tuple[str, float], ...], patches: int, most: int) -> None:
        self._kinds = [kind for kind, _ in mixture]
        weights = np.array([weight for _, weight in mixture])
        self._weights, self._patches, self._most = weights / weights.sum(), patches, most

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((7, index))
        kind = self._kinds[rng.choice(len(self._kinds), p=self._weights)]
        kept, others = lengths(rng, kind, self._patches)
        size = min(kept + others, self._most)
        condition = None
        if kind in ("image_text", "question"):
            keep = (np.arange(self._patches) < kept).astype(np.uint8)
            condition = Condition(0, keep)
        ids = np.zeros(size, np.int32)
        return Example(ids, np.zeros(size, np.int8), np.full(size, -1, np.int32), condition)


@functools.cache
def useful_share(
    mixture: tuple[tuple[str, float], ...], patches: int, tokens: int, images: int, rows: int = ROWS
) -> tuple[float, float]:
    """Packs `rows` rows.

    Args:
      mixture: kinds of examples and their shares.
      patches: N.
      tokens: S.
      images: J.
      rows: how many.

    Returns:
      The share of tokens that are not padding, and of image slots that are used.
    """
    stream = iter(PackedRows(_Synthetic(mixture, patches, tokens), Limits(tokens, images)))
    packed = [next(stream) for _ in range(rows)]
    used = sum(len(example) for row in packed for example in row)
    seen = sum(example.condition is not None for row in packed for example in row)
    return used / (rows * tokens), seen / (rows * images)
