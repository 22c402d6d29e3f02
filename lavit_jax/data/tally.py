"""Counts examples, and what is broken by reason; stops what they are for when it is too much."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any, NamedTuple

from lavit_jax.data.sources.base import NOT_DOWNLOADED, Broken
from lavit_jax.errors import UserError

logger = logging.getLogger(__name__)

SETTING = "config.data.max_bad_share"
MAX_LOGGED = 1000
SOONEST = 200  # examples before a share means anything
MAX_BAD_SHARE = 0.01


class TooManyBroken(UserError):
    """More is broken than the user said may be."""


class Tally:
    """How many examples are good, and how many are broken for each reason.

    Attributes:
      good: examples.
      reasons: broken ones by reason.
      first: where the first of each reason is.
    """

    def __init__(self) -> None:
        self.good = 0
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add_broken(self, broken: Broken) -> None:
        self.reasons[broken.reason] += broken.count
        self.first.setdefault(broken.reason, broken.origin)

    def merge(self, other: Tally) -> None:
        """Adds what another has counted."""
        self.good += other.good
        self.reasons += other.reasons
        self.first = {**other.first, **self.first}

    @property
    def bad(self) -> int:
        """Broken examples; what could not be downloaded never was one."""
        return self.reasons.total() - self.reasons[NOT_DOWNLOADED]

    @property
    def seen(self) -> int:
        return self.good + self.bad

    @property
    def bad_share(self) -> float:
        return self.bad / self.seen if self.seen else 0.0

    def check(self, limit: float, setting: str, soonest: int = SOONEST) -> None:
        """Stops when too much is broken.

        Args:
          limit: the largest share that may be.
          setting: the name of the limit, for the message.
          soonest: fewer examples than this are never too few.

        Raises:
          TooManyBroken: with every reason, its count and its first example.
        """
        if self.seen >= soonest and self.bad_share > limit:
            raise TooManyBroken(
                f"{self.bad} of {self.seen} examples are broken ({self.bad_share:.1%}), more than "
                f"{setting}={limit:g} allows: {self.describe()}"
            )

    def describe(self) -> str:
        """Reasons, the most frequent first, with where the first of each is."""
        return "; ".join(
            f"{count} {reason} (first: {self.first[reason]})"
            for reason, count in self.reasons.most_common()
        )

    def to_json(self) -> dict[str, Any]:
        return {"good": self.good, "reasons": dict(self.reasons), "first": self.first}

    @classmethod
    def of_json(cls, stored: dict[str, Any]) -> Tally:
        tally = cls()
        tally.good = stored["good"]
        tally.reasons = Counter(stored["reasons"])
        tally.first = dict(stored["first"])
        return tally


class Note(NamedTuple):
    """What came of reading an example: `broken` is None where it is good."""

    place: int
    broken: Broken | None


class Watch:
    """Counts what a running loader reads, logs each broken example once, and stops at a limit.

    Attributes:
      tally: what was counted.
    """

    def __init__(self, max_bad_share: float) -> None:
        self.tally = Tally()
        self._limit = max_bad_share
        self._known: set[int] = set()
        self._lock = threading.Lock()

    def good(self) -> None:
        """Counts a good example."""
        with self._lock:
            self.tally.good += 1

    def broken(self, place: int, broken: Broken) -> None:
        """Counts a broken one.

        Args:
          place: which.
          broken: why.

        Raises:
          TooManyBroken: more than `max_bad_share` of what was read is broken.
        """
        with self._lock:
            self.tally.add_broken(broken)
            if place not in self._known and len(self._known) < MAX_LOGGED:
                self._known.add(place)
                logger.warning("skipped %s: %s %s", broken.origin, broken.reason, broken.detail)
            self.tally.check(self._limit, SETTING)

    def add(self, note: Note) -> None:
        """Counts what was noted elsewhere.

        Raises:
          TooManyBroken: as `broken`.
        """
        if note.broken is None:
            self.good()
        else:
            self.broken(note.place, note.broken)


class Notes(Watch):
    """Stands for a `Watch` in another process: counts for itself, never stops, and takes notes."""

    def __init__(self) -> None:
        super().__init__(max_bad_share=1.0)
        self._notes: list[Note] = []

    def good(self) -> None:
        """Notes a good example."""
        self.tally.good += 1
        self._notes.append(Note(-1, None))

    def broken(self, place: int, broken: Broken) -> None:
        """Notes a broken one."""
        self.tally.add_broken(broken)
        self._notes.append(Note(place, broken))

    def take(self) -> list[Note]:
        """The notes since the last time."""
        taken, self._notes = self._notes, []
        return taken
