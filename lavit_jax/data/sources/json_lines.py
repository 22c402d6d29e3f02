"""JSON lines: text, or captions beside the paths of image files in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import Broken, FileSource, Part, Raw

SUFFIXES = (".jsonl", ".ndjson")
PART_BYTES = 16 << 20
MAX_LINE = 64 << 20  # bytes


class JsonLinesSource(FileSource):
    """Parts are stretches of bytes: a line belongs to the part that it begins in."""

    suffixes = SUFFIXES

    def parts(self) -> list[Part]:
        """Stretches of about `PART_BYTES`."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            for start in range(0, max(size, 1), PART_BYTES):
                stop = min(start + PART_BYTES, size)
                found.append(Part(url, start, stop, stop - start, fingerprint))
        return found

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """One example for each line that is not blank."""
        for place, line in lines(part):
            if line is None:
                yield Broken("too large", f"{part.place}:byte {place}", "line of over 64 MB")
            elif line.strip():
                yield self._example(line, part.place, place)

    def _example(self, line: bytes, name: str, place: int) -> Raw | Broken:
        origin = f"{name}:byte {place}"
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            return Broken("not UTF-8", origin, str(error))
        except (ValueError, RecursionError) as error:
            return Broken("not JSON", origin, str(error)[:200])
        if not isinstance(row, dict):
            return Broken("not JSON", origin, f"expected an object, got {type(row).__name__}")
        names = list(row)
        caption = base.find_field(names, self._options.caption_field, base.CAPTION_FIELDS)
        image = base.find_field(names, self._options.image_field, base.IMAGE_FIELDS)
        field = base.find_field(names, "", base.KEY_FIELDS)
        key = str(row[field]) if field else f"{PurePosixPath(name).stem}-{place:012d}"
        captions = base.texts(row[caption]) if caption else ()
        if image is None:
            return Raw(key, origin, None, captions)
        content = _image(row[image], name)
        if isinstance(content, str):
            return Broken("no image", origin, content)
        questions, answers = base.texts(row.get("questions")), base.texts(row.get("answers"))
        return Raw(key, origin, content, captions, questions, answers)


def lines(part: Part) -> Iterator[tuple[int, bytes | None]]:
    """Places and contents of the lines that begin in a part; None for one that is too long."""
    with files.open_file(part.place) as file:
        place = part.start
        if place:
            # What is left of a line that begins in the part before is that part's.
            file.seek(place - 1)
            place += _skip(file) - 1
        while part.stop < 0 or place < part.stop:
            line = file.readline(MAX_LINE)
            if not line:
                return
            length = len(line)
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                length += _skip(file)
                yield place, None
            else:
                yield place, line
            place += length


def _skip(file: Any) -> int:
    """Goes past the end of a line; returns how many bytes that took."""
    passed = 0
    while True:
        line = file.readline(1 << 20)
        passed += len(line)
        if not line or line.endswith(b"\n"):
            return passed


def _image(value: Any, name: str) -> bytes | str:
    """The bytes of an image file beside the JSON lines; or what is wrong with its path."""
    if not isinstance(value, str) or not value or "\0" in value:
        return f"expected a path, got {value!r}"[:200]
    pure = PurePosixPath(value.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        return f"the path leads out of the folder: {value}"[:200]
    folder = name.rpartition("/")[0] or "."
    url = f"{folder}/{pure}"
    try:
        if files.is_local(url):
            path = Path(url.removeprefix("file://"))
            inside = Path(folder.removeprefix("file://")).resolve()
            if not path.resolve().is_relative_to(inside):
                return f"the path leads out of the folder: {value}"[:200]
        with files.open_file(url) as file:
            return file.read()
    except files.Unreadable as error:
        if not error.absent:
            raise
        return f"no such file: {value}"[:200]
    except (OSError, ValueError, RuntimeError) as error:  # a name that cannot be one
        return f"{type(error).__name__}: {value}"[:200]
