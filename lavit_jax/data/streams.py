"""Several sources mixed: weights, epochs and caps of each, and weights that change with time.

`config.data.sources` has for each source:

    path        a folder or URL that `lavit data prepare` wrote; "" is `config.data.dataset`
    weight      its share of the examples, or of the tokens (`config.data.weigh_by`)
    kinds       shares of the kinds of examples made of it, each example of one kind by chance:
                image_text and text_image are both orders of the same pairs; text alone for text
    epochs      how often each example is seen at most; 0 is no limit
    cap         how many of its examples are used, the same in every epoch; 0 is all
    visual_ids  a folder that `lavit tokenize-dataset` wrote; "" for text, and for path ""

An example's place among all says which source it is from and which of that source it is, so there
is nothing to store but a place. A source that is used up leaves its share to the others.

Legend: S sources, P places of a period.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from lavit_jax.data.layout import Example
from lavit_jax.errors import UserError

PERIOD = 4096  # examples in which every source has its share to the nearest whole number
MEASURED = 256  # examples of a source whose tokens are counted, to weigh by tokens


@dataclasses.dataclass(frozen=True)
class Stream:
    """One source's examples in the order they are seen.

    Attributes:
      name: of the source.
      capacity: how many there are; None is no end.
      make: gives the n-th.
    """

    name: str
    capacity: int | None
    make: Callable[[int], Example]


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A stretch of places with one set of shares.

    Attributes:
      start: its first place.
      before_S: examples of each source in earlier stretches.
      source_P: the source at each place of a period.
      rank_P: how many examples of that source the period has before it.
      count_S: examples of each source in a period.
    """

    start: int
    before_S: np.ndarray
    source_P: np.ndarray
    rank_P: np.ndarray
    count_S: np.ndarray

    def find(self, place: int) -> tuple[int, int]:
        """The source at a place, and which of its examples."""
        periods, within = divmod(place - self.start, len(self.source_P))
        source = int(self.source_P[within])
        earlier = int(self.before_S[source] + periods * self.count_S[source])
        return source, earlier + int(self.rank_P[within])

    def counts(self, place: int) -> np.ndarray:
        """Examples of each source before a place of this stretch, [S]."""
        periods, within = divmod(place - self.start, len(self.source_P))
        rest = np.bincount(self.source_P[:within], minlength=len(self.count_S))
        return self.before_S + periods * self.count_S + rest

    def end(self, capacity_S: Sequence[int | None]) -> int | None:
        """The place by which a source is used up; None if none ever is."""
        ends = []
        for source, capacity in enumerate(capacity_S):
            if capacity is None or not self.count_S[source]:
                continue
            last = capacity - int(self.before_S[source]) - 1
            periods, rank = divmod(last, int(self.count_S[source]))
            within = np.flatnonzero(self.source_P == source)[rank]
            ends.append(self.start + periods * len(self.source_P) + int(within) + 1)
        return min(ends, default=None)


def spread(weights: Sequence[float]) -> np.ndarray:
    """A period in which each source has its share and is spread evenly: int64 [P]."""
    share_S = np.asarray(weights, np.float64) / np.sum(weights)
    count_S = np.where(share_S > 0, np.maximum(1, np.round(share_S * PERIOD)), 0).astype(np.int64)
    count_S[np.argmax(count_S)] += PERIOD - count_S.sum()
    source_P = np.repeat(np.arange(len(count_S)), count_S)
    when_P = np.concatenate([(np.arange(n) + 0.5) / max(1, n) for n in count_S])
    return source_P[np.argsort(when_P, kind="stable")]


class Mixture:
    """Examples of several streams in random access.

    Weights may change in stages; where each began is given to `begun`, for only whoever reads
    knows it.
    """

    def __init__(self, streams: Sequence[Stream], weights: Sequence[Sequence[float]]) -> None:
        """Mixes streams.

        Args:
          streams: sources.
          weights: for each stage the shares of examples of each source.
        """
        self._streams = tuple(streams)
        self._weights = tuple(tuple(stage) for stage in weights)
        self.begun = functools.lru_cache(maxsize=4)(self._begun)

    def _begun(self, places: tuple[int, ...]) -> Mixed:
        return Mixed(self._streams, self._weights[: len(places) + 1], places)

    def __getitem__(self, place: int) -> Example:
        return self.begun(())[place]


class Mixed:
    """The examples of a `Mixture` whose stages began at known places."""

    def __init__(
        self,
        streams: Sequence[Stream],
        weights: Sequence[Sequence[float]],
        begun: Sequence[int],
    ) -> None:
        self._streams = streams
        self._capacity_S = [stream.capacity for stream in streams]
        self._segments: list[_Segment] = []
        self._end: int | None = None
        starts = [0, *begun]
        before_S = np.zeros(len(streams), np.int64)
        for stage, (start, weight) in enumerate(zip(starts, weights, strict=True)):
            stop = starts[stage + 1] if stage + 1 < len(starts) else None
            before_S = self._add_stage(start, stop, weight, before_S)

    def _add_stage(
        self, start: int, stop: int | None, weight: Sequence[float], before_S: np.ndarray
    ) -> np.ndarray:
        """Adds stretches from start to stop, a new one whenever a source is used up."""
        while stop is None or start < stop:
            left_S = [
                0.0 if capacity is not None and used >= capacity else share
                for share, capacity, used in zip(weight, self._capacity_S, before_S, strict=True)
            ]
            if not any(left_S):
                self._end = start
                return before_S
            source_P = spread(left_S)
            rank_P = np.zeros(len(source_P), np.int64)
            for source in range(len(left_S)):
                chosen = source_P == source
                rank_P[chosen] = np.arange(chosen.sum())
            count_S = np.bincount(source_P, minlength=len(left_S))
            segment = _Segment(start, before_S, source_P, rank_P, count_S)
            self._segments.append(segment)
            end = segment.end(self._capacity_S)
            if end is None or (stop is not None and end >= stop):
                return before_S if stop is None else segment.counts(stop)
            start, before_S = end, segment.counts(end)
        return before_S

    def find(self, place: int) -> tuple[int, int]:
        """Which stream the example at a place is from, and which of its examples it is.

        Raises:
          UserError: every source is used up before.
        """
        if self._end is not None and place >= self._end:
            raise UserError(
                f"config.data.sources: all are used up after {self._end} examples: raise epochs "
                "or cap, or train for fewer steps"
            )
        return next(s for s in reversed(self._segments) if s.start <= place).find(place)

    def __getitem__(self, place: int) -> Example:
        stream, number = self.find(place)
        return self._streams[stream].make(number)


def mean_tokens(stream: Stream) -> float:
    """Tokens of a stream's example on average, by its first few: the same for all processes."""
    count = min(MEASURED, stream.capacity or MEASURED)
    return float(np.mean([len(stream.make(number)) for number in range(count)]))


def per_token(streams: Sequence[Stream], weights: Sequence[Sequence[float]]) -> list[list[float]]:
    """Shares of examples that give the sources these shares of tokens."""
    means = [mean_tokens(stream) for stream in streams]
    return [[w / mean for w, mean in zip(stage, means, strict=True)] for stage in weights]
