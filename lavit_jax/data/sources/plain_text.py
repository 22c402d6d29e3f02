"""Plain text files: a document ends where a blank line is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import PurePosixPath

from lavit_jax.data.sources import files
from lavit_jax.data.sources.base import Broken, FileSource, Part, Raw
from lavit_jax.data.sources.json_lines import lines

SUFFIXES = (".txt",)
PART_BYTES = 16 << 20


class PlainTextSource(FileSource):
    """Parts are stretches of bytes: a document is in the part where the blank line before it is."""

    suffixes = SUFFIXES

    def parts(self) -> list[Part]:
        """Stretches of about `PART_BYTES`; the last goes to the file's end."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            for start in range(0, max(size, 1), PART_BYTES):
                stop = start + PART_BYTES
                each = min(PART_BYTES, size - start)
                found.append(Part(url, start, stop if stop < size else -1, each, fingerprint))
        return found

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The documents of a part."""
        stem = PurePosixPath(part.place).stem
        begin, held = 0, list[bytes]()
        may_begin = part.start == 0
        for place, line in lines(dataclasses.replace(part, stop=-1)):
            ours = part.stop < 0 or place < part.stop
            if line is not None and line.strip():
                if held:
                    held.append(line)
                elif may_begin:
                    begin, held = place, [line]
                elif not ours:
                    return
                continue
            if held:
                yield _document(stem, part.place, begin, held)
                held = []
            if not ours:
                return
            if line is None:
                yield Broken("too large", f"{part.place}:byte {place}", "line of over 64 MB")
            may_begin = True
        if held:
            yield _document(stem, part.place, begin, held)


def _document(stem: str, name: str, begin: int, held: list[bytes]) -> Raw:
    text = b"".join(held).strip()
    return Raw(f"{stem}-{begin:012d}", f"{name}:byte {begin}", None, (text,))
