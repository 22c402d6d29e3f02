"""array_record shards: what `lavit data prepare` writes, or TFDS's `tf.train.Example`s."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from lavit_jax.data import record
from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import Broken, FileSource, Part, Raw

SUFFIXES = (".array_record", ".arrayrecord")
PART_BYTES = 64 << 20
_EXAMPLE = b"\x0a"  # how a tf.train.Example begins; ours begin otherwise


def _opened(path: str) -> ArrayRecordReader:
    """A reader; one of a file that breaks off would be silent, and have no records.

    Raises:
      RuntimeError: it is not whole.
      UserError: it cannot be read.
    """
    with contextlib.suppress(RuntimeError, ValueError):
        reader = ArrayRecordReader(path)
        if reader.ok():
            return reader
    files.check_readable(path)
    raise RuntimeError("no array_record file, or one that breaks off")


class ArrayRecordSource(FileSource):
    """Parts are ranges of records."""

    suffixes = SUFFIXES

    def parts(self) -> list[Part]:
        """Ranges of about `PART_BYTES`; a shard that cannot be opened is one, and says so."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            if not files.is_local(url):  # it would have to be fetched
                found.append(Part(url, size=size, fingerprint=fingerprint))
                continue
            try:
                count = _opened(url.removeprefix("file://")).num_records()
            except RuntimeError:
                found.append(Part(url, size=size, fingerprint=fingerprint))
                continue
            pieces = max(1, min(count, round(size / PART_BYTES)))
            ends = [count * piece // pieces for piece in range(pieces + 1)]
            found += [
                Part(url, start, stop, size // pieces, fingerprint)
                for start, stop in itertools.pairwise(ends)
            ]
        return found

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The records of a range."""
        with files.local_copy(part.place) as path:
            try:
                reader = _opened(path)
                count = reader.num_records()
            except RuntimeError as error:
                yield Broken("corrupt shard", part.place, str(error)[:200], self._lost(part))
                return
            for number in range(part.start, count if part.stop < 0 else part.stop):
                origin = f"{part.place}:record {number}"
                try:
                    (data,) = reader.read([number])
                except (RuntimeError, ValueError) as error:  # its checksum tells
                    files.check_damage(error, part.place)
                    yield Broken("corrupt record", origin, str(error)[:200])
                    continue
                yield self._example(data, origin, f"{PurePosixPath(part.place).stem}-{number:08d}")

    def _lost(self, part: Part) -> int:
        """Examples of a part whose shard cannot be opened: by the index of a prepared data set, or
        as many as in the first other shard that can be."""
        if part.stop >= 0:
            return max(1, part.stop - part.start)
        folder, _, name = part.place.rpartition("/")
        with contextlib.suppress(ValueError, KeyError, TypeError):  # among them: no index
            with files.open_file(f"{folder or '.'}/index.json") as file:
                shards = json.loads(file.read())["shards"]
            return max(1, {shard["name"]: shard["examples"] for shard in shards}[name])
        if files.is_local(part.place):
            for url in files.expand(self._spec, SUFFIXES):
                with contextlib.suppress(RuntimeError):
                    return max(1, _opened(url.removeprefix("file://")).num_records())
        return 1

    def _example(self, data: bytes, origin: str, key: str) -> Raw | Broken:
        if data.startswith(_EXAMPLE):
            return self._tf_example(data, origin, key)
        try:
            return record.decode(data, origin)
        except ValueError as error:
            return Broken("corrupt record", origin, str(error)[:200])

    def _tf_example(self, data: bytes, origin: str, key: str) -> Raw | Broken:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            features = tf_example_pb2.Example.FromString(data).features.feature
        except DecodeError as error:
            return Broken("corrupt record", origin, str(error)[:200])
        values: dict[str, Any] = {
            name: tuple(feature.bytes_list.value) for name, feature in features.items()
        }
        names = [name for name, value in values.items() if value]
        caption = base.find_field(
            names, self._options.caption_field, (*base.CAPTION_FIELDS, "captions/text")
        )
        image = base.find_field(names, self._options.image_field, base.IMAGE_FIELDS)
        field = base.find_field(names, "", base.KEY_FIELDS)
        if field:
            key = values[field][0].decode("utf-8", "replace")
        captions = values[caption] if caption else ()
        return Raw(key, origin, values[image][0] if image else None, captions)
