"""Packs examples of many lengths into rows of one length, so that hardly a token is padding.

Examples are taken a window at a time and put into the first row with room (first fit). A row that
is not full enough is not given out: its examples go first into the next window. What a row holds
depends on the examples alone, so a position in the stream is three small things: the next example,
the examples carried over, and the rows of this window given out so far.

Legend: S tokens of a row, J condition images of a row, N patches, H = W image side, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain.python as grain
import numpy as np

from lavit_jax.data.layout import Example
from lavit_jax.data.text import PAD_ID
from lavit_jax.errors import UserError

WINDOW = 128
FULL = 0.97  # share of useful tokens from which a row is given out
Row = list[Example]


class Examples(Protocol):
    """Endless examples in random access: a grain `MapDataset` is one."""

    def __getitem__(self, index: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Staged:
    """Endless examples that change with time.

    Attributes:
      rows: over all processes, from which each stage but the first holds, ascending.
      begun: the examples, given where in their numbering each stage but the first began.
    """

    rows: tuple[int, ...]
    begun: Callable[[tuple[int, ...]], Examples]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What fits a row.

    Attributes:
      tokens: S.
      images: J.
    """

    tokens: int
    images: int

    def check(self, example: Example) -> None:
        """Raises a `UserError` for an example that fits no row."""
        if len(example) > self.tokens:
            raise UserError(
                f"an example of {len(example)} tokens is longer than a row: raise "
                f"config.data.row_length={self.tokens}"
            )
        if _images(example) > self.images:
            raise UserError(
                f"a row must take an image: raise config.data.images_per_row={self.images}"
            )


def _images(example: Example) -> int:
    return int(example.condition is not None)


def first_fit(examples: Sequence[Example], limits: Limits) -> list[list[int]]:
    """Puts each example, in order, into the first row with room for it.

    Args:
      examples: what to pack.
      limits: of each row.

    Returns:
      Rows of places in `examples`.

    Raises:
      UserError: an example that fits no row.
    """
    rows: list[list[int]] = []
    tokens: list[int] = []
    images: list[int] = []
    for place, example in enumerate(examples):
        limits.check(example)
        most_tokens, most_images = limits.tokens - len(example), limits.images - _images(example)
        for row, used in enumerate(tokens):
            if used <= most_tokens and images[row] <= most_images:
                break
        else:
            row = len(rows)
            rows.append([])
            tokens.append(0)
            images.append(0)
        rows[row].append(place)
        tokens[row] += len(example)
        images[row] += _images(example)
    return rows


def _settle(
    rows: list[list[int]], examples: Sequence[Example], tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Which rows are given out, and the places of the examples that wait for the next window.

    The first row goes out however full it is, so that no example waits for ever; and no more than
    half of a window waits, so that there is always something new to fill up with.
    """
    useful = [sum(len(examples[place]) for place in row) for row in rows]
    full = [row == 0 or useful[row] >= FULL * tokens for row in range(len(rows))]
    waiting = sum(len(row) for row, is_full in zip(rows, full, strict=True) if not is_full)
    for row in sorted(range(len(rows)), key=lambda row: -useful[row]):
        if not full[row] and waiting > len(examples) // 2:
            full[row] = True
            waiting -= len(rows[row])
    left = [place for row, is_full in zip(rows, full, strict=True) if not is_full for place in row]
    return [row for row, is_full in zip(rows, full, strict=True) if is_full], left


class PackedRows(grain.IterDataset[Row]):
    """Rows of examples; every example is in exactly one row of one process."""

    def __init__(
        self,
        examples: Examples | Staged,
        limits: Limits,
        window: int = WINDOW,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Packs without end.

        Args:
          examples: endless; where they are in stages, one begins with the window after its row.
          limits: of each row.
          window: examples considered at once.
          process_index: which rows are given out here: `process_index`, then every
            `process_count`-th of the stream, which is the same for all processes.
          process_count: number of processes.
        """
        super().__init__()
        self._make = lambda: PackedRowIterator(
            examples, limits, window, process_index, process_count
        )

    def __iter__(self) -> PackedRowIterator:
        return self._make()


@dataclasses.dataclass(frozen=True)
class _Place:
    """A place in the stream of rows.

    Attributes:
      next: first example not yet in a window.
      carried: examples the last window left over.
      rows: rows given out by earlier windows, over all processes.
      given: rows of this window given out, over all processes.
      begun: the first example of each stage that has begun, but of the first.
    """

    next: int = 0
    carried: tuple[int, ...] = ()
    rows: int = 0
    given: int = 0
    begun: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Window:
    """What a window's examples become, and where the next window begins."""

    rows: list[Row]
    left: tuple[int, ...]
    following: int


class PackedRowIterator(grain.DatasetIterator[Row]):
    """The iterator of `PackedRows`."""

    def __init__(
        self,
        examples: Examples | Staged,
        limits: Limits,
        window: int,
        process_index: int,
        process_count: int,
    ) -> None:
        super().__init__()
        self._staged = examples if isinstance(examples, Staged) else Staged((), lambda _: examples)
        self._limits, self._size = limits, window
        self._process_index, self._process_count = process_index, process_count
        self._place = _Place()
        self._window: _Window | None = None

    def __next__(self) -> Row:
        # A whole turn, of which one row is this process's: so all processes stand at one place,
        # and any of their states is every other's, also where there are more or fewer of them.
        turn = [self._following() for _ in range(self._process_count)]
        return turn[self._process_index]

    def _following(self) -> Row:
        while True:
            if self._window is None:
                self._window = self._pack()
            window, place = self._window, self._place
            if place.given < len(window.rows):
                self._place = dataclasses.replace(place, given=place.given + 1)
                return window.rows[place.given]
            rows = place.rows + len(window.rows)
            self._place = _Place(window.following, window.left, rows, begun=place.begun)
            self._window = None

    def _pack(self) -> _Window:
        place, carried = self._place, self._place.carried
        due = sum(place.rows >= row for row in self._staged.rows)
        begun = place.begun + (place.next,) * (due - len(place.begun))
        self._place = dataclasses.replace(place, begun=begun)
        stream = self._staged.begun(begun)
        following = place.next + self._size - len(carried)
        indices = [*carried, *range(place.next, following)]
        examples = [stream[index] for index in indices]
        rows, left = _settle(first_fit(examples, self._limits), examples, self._limits.tokens)
        return _Window(
            [[examples[place] for place in row] for row in rows],
            tuple(indices[place] for place in left),
            following,
        )

    def get_state(self) -> dict[str, Any]:
        """The place in the stream: a few integers."""
        place = self._place
        lists = {"carried": list(place.carried), "begun": list(place.begun)}
        return {**dataclasses.asdict(place), **lists}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was."""
        lists = {name: tuple(state.get(name, ())) for name in ("carried", "begun")}
        self._place = _Place(**{**state, **lists})
        self._window = None

    def __str__(self) -> str:
        return f"PackedRowIterator(window={self._size}, limits={self._limits})"


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Sizes of a row's arrays.

    Attributes:
      limits: S and J.
      patches: N.
      image_size: H = W.
    """

    limits: Limits
    patches: int
    image_size: int


def lay_row(
    row: Row, shape: RowShape, image: Callable[[int], np.ndarray | None]
) -> dict[str, np.ndarray]:
    """A row's examples as arrays of fixed shape.

    Args:
      row: its examples.
      shape: sizes.
      image: gives an image of the fixed list, uint8 [H, W, C]; None if it cannot be read any more:
        its example then has no target.

    Returns:
      ids: int32 [S].
      positions: int32 [S], from 0 in each example.
      segment_ids: int32 [S], 1, 2, ... by example; 0 is padding.
      loss: float32 [S], 1 where this token is a target that counts.
      feature: int32 [S], j * N + rank where slot j's rank-th kept patch stands, else -1.
      images: uint8 [J, H, W, C], zeros in unused slots.
      keep: uint8 [J, N], likewise.
    """
    tokens, slots = shape.limits.tokens, shape.limits.images
    laid: dict[str, np.ndarray] = {
        "ids": np.full(tokens, PAD_ID, np.int32),
        "positions": np.zeros(tokens, np.int32),
        "segment_ids": np.zeros(tokens, np.int32),
        "loss": np.zeros(tokens, np.float32),
        "feature": np.full(tokens, -1, np.int32),
        "images": np.zeros((slots, shape.image_size, shape.image_size, 3), np.uint8),
        "keep": np.zeros((slots, shape.patches), np.uint8),
    }
    start = slot = 0
    for segment, example in enumerate(row, start=1):
        place = slice(start, start + len(example))
        laid["ids"][place] = example.ids
        laid["positions"][place] = np.arange(len(example))
        laid["segment_ids"][place] = segment
        laid["loss"][place] = example.loss
        if example.condition is not None:
            offset = slot * shape.patches
            laid["feature"][place] = np.where(example.feature < 0, -1, example.feature + offset)
            pixels = image(example.condition.image)
            if pixels is None:
                laid["loss"][place] = 0
            else:
                laid["images"][slot] = pixels
            laid["keep"][slot] = example.condition.keep_N
            slot += 1
        start = place.stop
    return laid


def useful_share(segment_ids: np.ndarray) -> float:
    """The share of tokens that are not padding."""
    return float((segment_ids > 0).mean())
