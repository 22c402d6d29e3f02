"""The iterator every data pipeline gives out."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import grain.python as grain
import numpy as np

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """Endless batches whose place in the stream can be saved and set.

    Wraps a grain iterator and closes it before the interpreter takes modules away: left to
    themselves, grain's iterators print an ignored exception then.
    """

    def __init__(self, iterator: grain.DatasetIterator[Batch]) -> None:
        self._held = [iterator]
        weakref.finalize(self, _close, self._held)

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The place in the stream: small and JSON-able."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was; what comes next is what came next there."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Ends the threads that prepare batches; nothing can be read afterwards."""
        _close(self._held)

    @property
    def _iterator(self) -> grain.DatasetIterator[Batch]:
        if not self._held:
            raise ValueError("these batches are closed")
        return self._held[0]


def _close(held: list[grain.DatasetIterator[Batch]]) -> None:
    while held:
        held.pop().close()
