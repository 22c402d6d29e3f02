"""Elements that worker processes make, some ahead of what is read, in their order."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grain.python as grain
import numpy as np

from lavit_jax.data.workers import Answer, Workers

CHUNK = 8  # images of a question: little to wait for, yet much to do for each message
QUESTIONS = 2  # that a worker has at a time, so that it need not wait for the next
T = TypeVar("T")
U = TypeVar("U")
Asked = list[Answer[Any]]


class Ahead(grain.IterDataset[U], Generic[T, U]):
    """Each element of a parent, made of the arrays that worker processes make of its items.

    The state is the parent's at the element given out, as if nothing had been read ahead: the
    number of workers leaves no trace in it.
    """

    def __init__(
        self,
        parent: grain.IterDataset[T],
        workers: Workers[dict[str, np.ndarray]],
        items: Callable[[T], Sequence[Any]],
        finish: Callable[[T, dict[str, np.ndarray]], U],
    ) -> None:
        """Reads ahead.

        Args:
          parent: what is to be made.
          workers: that answer with `views.Stacks`; closing an iterator ends them.
          items: of an element; it may have none.
          finish: makes an element of its items' arrays, stacked in the order of items; empty where
            it has none.
        """
        super().__init__(parent)
        self._workers, self._items, self._finish = workers, items, finish

    def __iter__(self) -> AheadIterator[T, U]:
        return AheadIterator(self._parent.__iter__(), self._workers, self._items, self._finish)


class AheadIterator(grain.DatasetIterator[U], Generic[T, U]):
    """The iterator of `Ahead`."""

    def __init__(
        self,
        parent: grain.DatasetIterator[T],
        workers: Workers[dict[str, np.ndarray]],
        items: Callable[[T], Sequence[Any]],
        finish: Callable[[T, dict[str, np.ndarray]], U],
    ) -> None:
        super().__init__(parent)
        self._workers, self._items, self._finish = workers, items, finish
        self._begun: collections.deque[tuple[T, Asked, dict[str, Any]]] = collections.deque()
        self._asked = 0  # questions of what has begun
        self._state = parent.get_state()

    def __next__(self) -> U:
        while not self._begun or self._asked < QUESTIONS * len(self._workers):
            self._begin()
        element, asked, self._state = self._begun.popleft()
        self._asked -= len(asked)
        found = [answer.result() for answer in asked]
        names = found[0] if found else ()
        return self._finish(element, {n: np.concatenate([f[n] for f in found]) for n in names})

    def _begin(self) -> None:
        element = next(self._parent)
        items = self._items(element)
        chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
        asked = [self._workers.ask(chunk) for chunk in chunks]
        self._begun.append((element, asked, self._parent.get_state()))
        self._asked += len(asked)

    def get_state(self) -> dict[str, Any]:
        """The parent's, where the next element is the next to be given out."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was."""
        self._begun.clear()
        self._asked = 0
        self._parent.set_state(state)
        self._state = state

    def close(self) -> None:
        """Ends the workers too."""
        self._workers.close()
        super().close()

    def __str__(self) -> str:
        return f"AheadIterator(workers={len(self._workers)})"
