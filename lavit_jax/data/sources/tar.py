"""Tar shards as webdataset and img2dataset write them.

Members that share a name up to its first dot are one example. Everything is read in one pass,
straight from the stream: a member's name is a label and never a path on disk.
"""

from __future__ import annotations

import gzip
import statistics
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import Broken, FileSource, Part, Raw
from lavit_jax.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif"})
TEXTS = frozenset({"txt", "text", "caption"})
_BAD_HEADER = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
_END = tarfile.EOFHeaderError  # type: ignore[attr-defined]
MAX_MEMBER = 256 << 20  # bytes; a larger member is no image and no caption
_GZIP = b"\x1f\x8b"
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, RuntimeError)


class TarSource(FileSource):
    """One part for each shard."""

    suffixes = SUFFIXES

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
            yield from read_tar(file, part.place, part.size, self._usual_size)

    def _usual_size(self) -> int:
        """What tells how much is missing of a shard that breaks off: the others are as long."""
        urls = files.expand(self._spec, SUFFIXES)
        return statistics.median_low(files.size_of(url)[0] for url in urls)


def read_tar(
    file: IO[bytes], name: str, size: int = 0, usual_size: Callable[[], int] = lambda: 0
) -> Iterator[Raw | Broken]:
    """The examples of a tar stream, also a zipped one; damaged stretches stand as `Broken`.

    Those count as many examples as would have been in them, by the examples before them.

    Args:
      file: the stream.
      name: of the shard, for messages.
      size: of the stream in bytes; 0 where it is not known.
      usual_size: that of a whole shard; asked for where this one breaks off.

    Raises:
      UserError: the stream cannot be read.
    """
    key, members = "", dict[str, bytes]()
    examples = end = 0
    tar = _unzipped(file)
    try:
        for found in _members(tar):
            if isinstance(found, _Gap):
                count = _about(found.bytes * (examples + bool(members)), end)
                yield Broken("corrupt shard", name, f"damaged after byte {end}", count)
                continue
            path, content, end = found
            stem, extension = _split(path)
            if members and (stem != key or extension in members):
                yield _example(key, members, name)
                members = {}
                examples += 1
            key = stem
            if content is None:
                yield Broken("too large", f"{name}:{path}", f"over {MAX_MEMBER >> 20} MB")
            elif extension in IMAGES or extension in TEXTS:
                members[extension] = content
    except UserError:
        raise
    except _DAMAGE as error:
        done = end if tar is file else file.tell()
        missing = max(size, usual_size()) - done
        count = _about(missing * (examples + bool(members)), done)
        yield Broken("corrupt shard", name, f"{type(error).__name__}: {error}"[:200], count)
        # The stream broke off inside a member: what came before it may be a whole example.
        if IMAGES & set(members) and TEXTS & set(members):
            yield _example(key, members, name)
        return
    if members:
        yield _example(key, members, name)


def _about(bytes_by_examples: int, bytes_read: int) -> int:
    """Examples that would have been in so many bytes; at least one was."""
    return max(1, round(bytes_by_examples / bytes_read)) if bytes_read else 1


class _Gap(NamedTuple):
    """A stretch that is damaged.

    Attributes:
      bytes: how long it is.
    """

    bytes: int


def _unzipped(file: IO[bytes]) -> IO[bytes]:
    """The tar itself: `tarfile` takes a zipped one that breaks off for whole, and no checksums."""
    start = file.read(len(_GZIP))
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if start == _GZIP else file  # type: ignore[return-value]


class _Header(tarfile.TarInfo):
    """Reports damaged headers and a missing end, which `tarfile` passes over in silence when told
    to go on after them."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        try:
            found = super().fromtarfile(tar)
        except _BAD_HEADER:
            tar.damaged = True
            raise
        except _END:
            tar.whole = True
            raise
        tar.whole = False
        return found


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes | None, int] | _Gap]:
    """Names, contents and ends of regular members, and each damaged stretch before the last."""
    with tarfile.open(
        fileobj=file,
        mode="r|",
        tarinfo=_Header,
        ignore_zeros=True,  # goes on after damage
        errors="surrogateescape",
    ) as tar:
        for name in ("damaged", "whole"):  # opening it has read the first header
            tar.__dict__.setdefault(name, False)
        end = 0
        while True:
            member = tar.next()
            if tar.damaged:  # type: ignore[attr-defined]
                tar.damaged = False  # type: ignore[attr-defined]
                if member is None:
                    raise EOFError(f"damaged after byte {end}")
                yield _Gap(member.offset - end)
            if member is None:
                if not tar.whole:  # type: ignore[attr-defined]
                    raise EOFError(f"no end of a tar after byte {end}")
                file.read(1)  # of a zipped one this compares the checksum
                return
            tar.members = []  # type: ignore[attr-defined]  # it remembers every member otherwise
            end = tar.offset
            # Regular members alone: a sparse one says how much room it wants.
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                continue
            if member.size > MAX_MEMBER:
                yield member.name, None, end
                continue
            reader = tar.extractfile(member)
            content = reader.read() if reader else b""
            if len(content) != member.size:
                raise EOFError(f"{member.name!r} ends after {len(content)} of {member.size} bytes")
            yield member.name, content, end


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
