"""Reads what `lavit data prepare` wrote, in random access; what is broken is replaced."""

from __future__ import annotations

import bisect
import collections
import functools
import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from array_record.python.array_record_module import ArrayRecordReader

from lavit_jax.data import copies, record
from lavit_jax.data import images as image_data
from lavit_jax.data.sources.base import Broken, Raw
from lavit_jax.data.sources.files import check_damage
from lavit_jax.data.tally import Tally, Watch
from lavit_jax.errors import UserError

INDEX = "index.json"
PLAN = ".work/plan.json"
OPEN_SHARDS = 256
TRIES = 100  # neighbours tried in place of a broken example
LEAST_SPLIT = 10  # examples of which one is held out
Record = dict[str, Any]
T = TypeVar("T")


def read_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The index of a prepared folder.

    Raises:
      UserError: no such folder, one whose preparation has not finished, or a damaged index.
    """
    data = _file(folder, INDEX)
    if data is None:
        begun = _file(folder, PLAN) is not None
        hint = "its preparation has not finished" if begun else "no index"
        raise UserError(
            f"{folder} is not a prepared data set ({hint}): run `lavit data prepare SRC {folder}`"
        )
    try:
        index = json.loads(data)
        counts = [int(shard["examples"]) for shard in index["shards"]]
        if sum(counts) != index["examples"] or not counts:
            raise ValueError("counts do not add up")
        for shard in index["shards"]:
            if Path(shard["name"]).name != shard["name"] or int(shard["bytes"]) < 0:
                raise ValueError(f"no shard can be {shard['name']!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/{INDEX} is damaged: {error}") from error
    return index


def has_index(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder, or a URL, holds what has been finished.

    Raises:
      UserError: a bucket that cannot be read.
    """
    return _file(folder, INDEX) is not None


def _file(folder: str | os.PathLike[str], name: str) -> bytes | None:
    if copies.is_remote(folder):
        return copies.read(str(folder).rstrip("/"), name)
    path = Path(str(folder).removeprefix("file://")) / name
    return path.read_bytes() if path.is_file() else None


class ShardReader:
    """Records of many shards in one numbering; shards are opened when they are first read.

    Of a URL, a shard is fetched when it is first read and let go of after a few others.
    """

    def __init__(self, folder: str | os.PathLike[str], shards: Sequence[dict[str, Any]]) -> None:
        self._folder = str(folder).removeprefix("file://").rstrip("/")
        self._passing = copies.Passing(self._folder) if copies.is_remote(folder) else None
        self._most = OPEN_SHARDS if self._passing is None else copies.HELD
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(shard["examples"] for shard in shards))
        self._open: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process opens its shards itself."""
        return {**self.__dict__, "_open": collections.OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def origin(self, index: int) -> str:
        """Where a record is, for messages."""
        shard, place = self._find(index)
        return f"{self._folder}/{self._shards[shard]['name']}:record {place}"

    def read(self, index: int) -> bytes:
        """A record's bytes.

        Raises:
          RuntimeError: its shard is missing, truncated or damaged there.
        """
        shard, place = self._find(index)
        (data,) = self._reader(shard).read([place])
        return data

    def _find(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._open.get(shard)
            if reader is None:
                reader = ArrayRecordReader(self._path(shard))
                self._open[shard] = reader
                if len(self._open) > self._most:
                    last, _ = self._open.popitem(last=False)
                    if self._passing is not None:
                        self._passing.drop(self._shards[last])
            self._open.move_to_end(shard)
            return reader

    def _path(self, shard: int) -> str:
        if self._passing is not None:
            return str(self._passing.path(self._shards[shard]))
        return f"{self._folder}/{self._shards[shard]['name']}"


class Prepared(Sequence[Any]):
    """The stored examples: `Raw`, or `Broken` where a record cannot be read.

    Attributes:
      facts: the folder's index.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Opens a prepared folder.

        Raises:
          UserError: as `read_index`.
        """
        self.facts = read_index(folder)
        self._shards = ShardReader(folder, self.facts["shards"])

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        origin = self._shards.origin(index)
        try:
            return record.decode(self._shards.read(index), origin)
        except UserError:  # a bucket, not a record
            raise
        except (RuntimeError, ValueError, OSError) as error:
            check_damage(error, origin)  # a disk that fails would skip what is whole
            return Broken("corrupt record", origin, str(error)[:200])


class Sound(Sequence[T], Generic[T]):
    """Items of which none is broken: a broken one is replaced by the next that is not.

    So every place gives something, always the same, whoever asks; how many were replaced is
    counted, and too many stop the run.
    """

    def __init__(
        self, items: Sequence[Any], use: Callable[[Any], T | Broken], max_bad_share: float
    ) -> None:
        """Wraps items.

        Args:
          items: `Raw` or `Broken` ones.
          use: makes of a `Raw` what is wanted, or says why not.
          max_bad_share: the share of broken items past which reading stops.
        """
        self._items, self._use, self._watch = items, use, Watch(max_bad_share)

    @property
    def tally(self) -> Tally:
        """What was counted."""
        return self._watch.tally

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        """An item, or the next sound one.

        Raises:
          UserError: more than `max_bad_share` of what was read is broken.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        for step in range(TRIES):
            found = self._own((int(index) + step) % len(self))
            if found is not None:
                return found
        raise UserError(
            f"{TRIES} examples on end are broken: {self.tally.describe()}; prepare the data anew"
        )

    def _own(self, place: int) -> T | None:
        item = self._items[place]
        found = item if isinstance(item, Broken) else self._use(item)
        if isinstance(found, Broken):
            self._watch.broken(place, found)
            return None
        self._watch.good()
        return found


class Own(Sound[T]):
    """Items of which none stands for another: None in the place of a broken one.

    For what is read beside something else of the same item, which a neighbour would not fit.
    """

    def __getitem__(self, index: Any) -> Any:
        """An item, or None.

        Raises:
          UserError: as `Sound`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._own(int(index) % len(self))


class Split(Sequence[T], Generic[T]):
    """A data set without its held-out examples, or those alone: every so-manieth is held out."""

    def __init__(self, items: Sequence[T], held_out: int, train: bool) -> None:
        """Splits items.

        Args:
          items: all of them.
          held_out: how many are held out, about, and no more than one in `LEAST_SPLIT`.
          train: the many, not the held-out few.

        Raises:
          UserError: too few items.
        """
        if len(items) < LEAST_SPLIT:
            raise UserError(f"a data set needs at least {LEAST_SPLIT} examples, got {len(items)}")
        self._items, self._train = items, train
        self._every = max(LEAST_SPLIT, len(items) // max(1, held_out))

    def __len__(self) -> int:
        held = len(self._items) // self._every
        return len(self._items) - held if self._train else held

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index = int(index) % len(self)
        if self._train:
            return self._items[index + index // (self._every - 1)]
        return self._items[(index + 1) * self._every - 1]


def examples(
    folder: str | os.PathLike[str], image_size: int, max_bad_share: float
) -> Sound[Record]:
    """Decoded examples of a prepared folder.

    Args:
      folder: the data set.
      image_size: of the model; large JPEGs are decoded no larger than needs be.
      max_bad_share: see `Sound`.

    Returns:
      Records: key (str), image (uint8 [H, W, 3]; None for text alone), captions, questions and
      answers (tuples of str).

    Raises:
      UserError: as `read_index`.
    """
    return Sound(Prepared(folder), functools.partial(_decoded, image_size), max_bad_share)


def own_examples(
    folder: str | os.PathLike[str], image_size: int, max_bad_share: float
) -> Own[Record]:
    """The same, but None where one cannot be read."""
    return Own(Prepared(folder), functools.partial(_decoded, image_size), max_bad_share)


def texts(folder: str | os.PathLike[str], max_bad_share: float) -> Sound[Record]:
    """The same examples with their images left undecoded: None.

    Raises:
      UserError: as `read_index`.
    """
    return Sound(Prepared(folder), _texts, max_bad_share)


def _decoded(image_size: int, raw: Raw) -> Record | Broken:
    found = _texts(raw)
    if isinstance(found, Broken) or raw.image is None:
        return found
    try:
        found["image"] = image_data.decode_image(raw.image, raw.origin, least=image_size)
    except image_data.ImageError as error:
        return Broken(error.reason, raw.origin, str(error))
    return found


def _texts(raw: Raw) -> Record | Broken:
    if not raw.captions:
        return Broken("empty caption", raw.origin)
    return {
        "key": raw.key,
        "captions": raw.captions,
        "questions": raw.questions,
        "answers": raw.answers,
        "image": None,
    }
