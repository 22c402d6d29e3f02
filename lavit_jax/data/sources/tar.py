"""Tar shards as webdataset and img2dataset write them.

Members that share a name up to its first dot are one example. Everything is read in one pass,
straight from the stream: a member's name is a label and never a path on disk.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import Broken, Options, Part, Raw

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif"})
TEXTS = frozenset({"txt", "text", "caption"})
_BAD_HEADER = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
MAX_MEMBER = 256 << 20  # bytes; a larger member is no image and no caption
_GZIP = b"\x1f\x8b"
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, RuntimeError)


class TarSource:
    """One part for each shard."""

    def __init__(self, spec: str, options: Options) -> None:
        self._spec, self._options = spec, options

    def parts(self) -> list[Part]:
        """The shards."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            found.append(Part(url, size=size, fingerprint=fingerprint))
        return found

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The examples of a shard, in order."""
        with files.open_file(part.place) as file:
            yield from read_tar(file, part.place)


def read_tar(file: IO[bytes], name: str) -> Iterator[Raw | Broken]:
    """The examples of a tar stream, also a zipped one; damaged stretches stand as `Broken`.

    Args:
      file: the stream.
      name: of the shard, for messages.
    """
    key, members = "", dict[str, bytes]()
    try:
        for found in _members(_unzipped(file)):
            if isinstance(found, str):
                yield Broken("corrupt shard", name, found)
                continue
            path, content = found
            stem, extension = _split(path)
            if members and (stem != key or extension in members):
                yield _example(key, members, name)
                members = {}
            key = stem
            if content is None:
                yield Broken("too large", f"{name}:{path}", f"over {MAX_MEMBER >> 20} MB")
            elif extension in IMAGES or extension in TEXTS:
                members[extension] = content
    except _DAMAGE as error:
        yield Broken("corrupt shard", name, f"{type(error).__name__}: {error}"[:200])
        # The stream broke off inside a member: what came before it may be a whole example.
        if IMAGES & set(members) and TEXTS & set(members):
            yield _example(key, members, name)
        return
    if members:
        yield _example(key, members, name)


def _unzipped(file: IO[bytes]) -> IO[bytes]:
    """The tar itself: `tarfile` takes a zipped one that breaks off for whole, and no checksums."""
    start = file.read(len(_GZIP))
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if start == _GZIP else file  # type: ignore[return-value]


class _Header(tarfile.TarInfo):
    """Reports damaged headers, which `tarfile` skips in silence when told to go on after them."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        try:
            return super().fromtarfile(tar)
        except _BAD_HEADER:
            tar.damaged = True
            raise


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes | None] | str]:
    """Names and contents of regular members, and a line for each damaged stretch."""
    with tarfile.open(
        fileobj=file,
        mode="r|",
        tarinfo=_Header,
        ignore_zeros=True,  # goes on after damage
        errors="surrogateescape",
    ) as tar:
        tar.damaged = False  # type: ignore[attr-defined]
        end = 0
        while True:
            member = tar.next()
            if tar.damaged:  # type: ignore[attr-defined]
                tar.damaged = False  # type: ignore[attr-defined]
                yield f"damaged after byte {end}"
            if member is None:
                file.read(1)  # of a zipped one this compares the checksum
                return
            tar.members = []  # type: ignore[attr-defined]  # it remembers every member otherwise
            end = tar.offset
            # Regular members alone: a sparse one says how much room it wants.
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                continue
            if member.size > MAX_MEMBER:
                yield member.name, None
                continue
            reader = tar.extractfile(member)
            content = reader.read() if reader else b""
            if len(content) != member.size:
                raise EOFError(f"{member.name!r} ends after {len(content)} of {member.size} bytes")
            yield member.name, content


def _split(path: str) -> tuple[str, str]:
    """Webdataset's rule: the key goes up to the first dot of the file's own name."""
    pure = PurePosixPath(path)
    stem, _, extension = pure.name.partition(".")
    return str(pure.parent / stem), extension.lower()


def _example(key: str, members: dict[str, bytes], shard: str) -> Raw | Broken:
    origin = f"{shard}:{key}"
    image = next((content for name, content in members.items() if name in IMAGES), None)
    if image is None:
        return Broken("no image", origin)
    captions = tuple(content for name, content in members.items() if name in TEXTS)
    return Raw(key.encode("utf-8", "replace").decode(), origin, image, base.texts(captions))
