"""Plain text files: a document ends where a blank line is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from lavit_jax.data.sources import files
from lavit_jax.data.sources.base import Broken, FileSource, Part, Raw
from lavit_jax.data.sources.json_lines import lines

SUFFIXES = (".txt",)


class PlainTextSource(FileSource):
    """One part for each file."""

    suffixes = SUFFIXES

    def parts(self) -> list[Part]:
        """The files."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            found.append(Part(url, size=size, fingerprint=fingerprint))
        return found

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The documents of a file."""
        stem = PurePosixPath(part.place).stem
        begin, held = 0, list[bytes]()
        for place, line in lines(part):
            if line is None:
                yield Broken("too large", f"{part.place}:byte {place}", "line of over 64 MB")
            elif line.strip():
                begin = begin if held else place
                held.append(line)
                continue
            if held:
                yield _document(stem, part.place, begin, held)
            held = []
        if held:
            yield _document(stem, part.place, begin, held)


def _document(stem: str, name: str, begin: int, held: list[bytes]) -> Raw:
    text = b"".join(held).strip()
    return Raw(f"{stem}-{begin:012d}", f"{name}:byte {begin}", None, (text,))
