"""JSON lines: text, or captions beside the paths of image files in a folder."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import Broken, FileSource, Part, Raw

SUFFIXES = (".jsonl", ".ndjson")
PART_BYTES = 16 << 20
MAX_LINE = 64 << 20  # bytes
# How large the images that lines name are is told by some of them.
PLACES, LINES = 4, 4  # looked at in a file, evenly spread; lines there
LOOK = 64 << 10  # bytes read at once for that
T = TypeVar("T")


class JsonLinesSource(FileSource):
    """Parts are stretches of bytes: a line belongs to the part that it begins in."""

    suffixes = SUFFIXES

    def parts(self) -> list[Part]:
        """Stretches of about `PART_BYTES`, the images that their lines name among them."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            share = self._share_of_lines(url, size)
            step = max(1, int(PART_BYTES * share))
            for start in range(0, max(size, 1), step):
                stop = min(start + step, size)
                found.append(Part(url, start, stop, int((stop - start) / share), fingerprint))
        return found

    def _share_of_lines(self, url: str, size: int) -> float:
        """Bytes of lines over those of lines and images, by a few of them."""
        line_bytes = image_bytes = 0
        for place in range(PLACES):
            part = Part(url, size * place // PLACES, size * (place + 1) // PLACES)
            for _, line in itertools.islice(lines(part, LOOK), LINES):
                line_bytes += len(line or b"")
                image_bytes += self._image_bytes(line or b"", url)
        return line_bytes / (line_bytes + image_bytes) if image_bytes else 1.0

    def _image_bytes(self, line: bytes, name: str) -> int:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return 0
        image = self._image_field(row) if isinstance(row, dict) else None
        found = _of_image(row[image], name, files.size_of) if image else ""
        return 0 if isinstance(found, str) else found[0]

    def _image_field(self, row: dict[str, Any]) -> str | None:
        return base.find_field(list(row), self._options.image_field, base.IMAGE_FIELDS)

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
        image = self._image_field(row)
        field = base.find_field(names, "", base.KEY_FIELDS)
        key = str(row[field]) if field else f"{PurePosixPath(name).stem}-{place:012d}"
        captions = base.texts(row[caption]) if caption else ()
        if image is None:
            return Raw(key, origin, None, captions)
        content = _of_image(row[image], name, _content)
        if isinstance(content, str):
            return Broken("no image", origin, content)
        questions, answers = base.texts(row.get("questions")), base.texts(row.get("answers"))
        return Raw(key, origin, content, captions, questions, answers)


def lines(part: Part, *block: int) -> Iterator[tuple[int, bytes | None]]:
    """Places and contents of the lines that begin in a part; None for one that is too long."""
    with files.open_file(part.place, *block) as file:
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


def _image_url(value: Any, name: str) -> tuple[str, str]:
    """The URL of an image file beside the JSON lines; or "" and what is wrong with its path."""
    if not isinstance(value, str) or not value or "\0" in value:
        return "", f"expected a path, got {value!r}"[:200]
    pure = PurePosixPath(value.replace("\\", "/"))
    if not pure.parts:
        return "", "the path is the folder itself"
    outside = f"the path leads out of the folder: {value}"[:200]
    if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        return "", outside
    folder = name.rpartition("/")[0] or "."
    url = f"{folder}/{pure}"
    if files.is_local(url):
        path = Path(url.removeprefix("file://"))
        inside = Path(folder.removeprefix("file://")).resolve()
        try:
            if not path.resolve().is_relative_to(inside):
                return "", outside
        except (OSError, ValueError, RuntimeError) as error:  # no path could be that
            return "", f"{type(error).__name__}: {value}"[:200]
    return url, ""


def _of_image(value: Any, name: str, ask: Callable[[str], T]) -> T | str:
    """What is asked about an image file, by its URL; or why there is none."""
    url, fault = _image_url(value, name)
    if not url:
        return fault
    try:
        return ask(url)
    except files.Unreadable as error:
        if not error.absent:
            raise
        return f"no such file: {value}"[:200]
    except (OSError, ValueError) as error:  # no file could have that name
        return f"{type(error).__name__}: {value}"[:200]


def _content(url: str) -> bytes:
    with files.open_file(url) as file:
        return file.read()
