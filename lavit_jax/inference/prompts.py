"""Prompts of words and pictures, of any lengths, as one left-padded batch.

Legend: R rows, S prompt places, J condition images of the batch's longest list, N patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from lavit_jax.data.text import PAD_ID
from lavit_jax.errors import UserError

PLACES = 16  # prompts are padded to a multiple of this, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Features:
    """The continuous features of an image in a prompt.

    Attributes:
      image: which one of the row's images.
      kept: L, how many features it has.
    """

    image: int
    kept: int


Row = Sequence[int | Features]


class Arrays(NamedTuple):
    """A batch of prompts.

    Attributes:
      ids_RS: token ids, pad where a feature or nothing stands.
      feature_RS: image * N + rank where a feature stands, else -1 (see `lavit.embed_mixed`).
      mask_RS: False at padding.
    """

    ids_RS: Int32[np.ndarray, "R S"]
    feature_RS: Int32[np.ndarray, "R S"]
    mask_RS: Bool[np.ndarray, "R S"]


def padded(codes: Sequence[np.ndarray], height: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes as one array [height, length], int32, and how many each row has."""
    ids_BL, count_B = np.zeros((height, length), np.int32), np.zeros(height, np.int32)
    for row, ids in enumerate(codes):
        count_B[row] = min(len(ids), length)
        ids_BL[row, : count_B[row]] = ids[:length]
    return ids_BL, count_B


def lay(rows: Sequence[Row], height: int, patches: int, context: int) -> Arrays:
    """Lays prompts out, each ending at the last place.

    Args:
      rows: ids and features in order.
      height: R, at least as many as there are rows; the others are all padding.
      patches: N.
      context: the most places a prompt may have.

    Raises:
      UserError: a prompt is longer than the context.
    """
    flat = [_flat(row, patches) for row in rows]
    longest = max(len(ids) for ids, _ in flat)
    if longest > context:
        raise UserError(
            f"the prompt has {longest} tokens, of which an image takes one for each patch it "
            f"keeps; this model reads at most {context}"
        )
    places = min(-(-longest // PLACES) * PLACES, context)
    arrays = Arrays(
        np.full((height, places), PAD_ID, np.int32),
        np.full((height, places), -1, np.int32),
        np.zeros((height, places), bool),
    )
    for number, (ids, feature) in enumerate(flat):
        real = slice(places - len(ids), places)
        arrays.ids_RS[number, real] = ids
        arrays.feature_RS[number, real] = feature
        arrays.mask_RS[number, real] = True
    return arrays


def _flat(row: Row, patches: int) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    feature: list[int] = []
    for part in row:
        if isinstance(part, Features):
            ids += [PAD_ID] * part.kept
            feature += range(part.image * patches, part.image * patches + part.kept)
        else:
            ids.append(part)
            feature.append(-1)
    return ids, feature


def bucket(count: int, most: int) -> int:
    """Rows to compute for `count` asked for: a power of two, so that few programs are compiled."""
    return min(1 << max(count - 1, 0).bit_length(), most)
