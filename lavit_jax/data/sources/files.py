"""Files of a source, local or anywhere fsspec reaches (gs://, s3://, ...)."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec

from lavit_jax.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 8 << 20  # read ahead, in bytes


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it.

    Raises:
      UserError: a scheme that nothing installed can read.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        hint = " (pip install gcsfs)" if url.startswith(("gs://", "gcs://")) else ""
        raise UserError(f"cannot read {url}: {error}{hint}") from error


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def braces(spec: str) -> list[str]:
    """`x-{00..03}.tar` as x-00.tar to x-03.tar; anything else as it is."""
    found = _RANGE.search(spec)
    if not found:
        return [spec]
    first, last = found.groups()
    numbers = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    rest = braces(spec[found.end() :])
    return [f"{spec[: found.start()]}{n}{end}" for n, end in itertools.product(numbers, rest)]


def expand(spec: str, suffixes: Sequence[str]) -> list[str]:
    """The files a specification names, sorted: a file, a folder, a glob or a range in braces.

    Args:
      spec: a path or URL; of a folder, the files in it are meant, at any depth.
      suffixes: which files of a folder count.

    Raises:
      UserError: there are none.
    """
    found: list[str] = []
    for one in braces(spec):
        fs, path = filesystem(one)
        if any(sign in path for sign in "*?["):
            names = [n for n in fs.glob(path) if n.endswith(tuple(suffixes))]
        elif fs.isdir(path):
            names = [n for n in fs.find(path) if n.endswith(tuple(suffixes)) and _visible(n, path)]
        elif fs.exists(path):
            names = [path]
        else:
            raise UserError(f"no such file or folder: {one}")
        found += [name if is_local(one) else fs.unstrip_protocol(name) for name in sorted(names)]
    if not found:
        raise UserError(f"{spec} has no files that end in {', '.join(suffixes)}")
    return found


def _visible(name: str, folder: str) -> bool:
    inside = name[len(folder) :].strip("/").split("/")
    return not any(part.startswith(".") for part in inside)


def open_file(url: str) -> IO[bytes]:
    """Opens a file to read."""
    if is_local(url):
        return open(url.removeprefix("file://"), "rb")
    fs, path = filesystem(url)
    return fs.open(path, "rb", block_size=_BLOCK)


def size_of(url: str) -> tuple[int, str]:
    """Bytes of a file, and a fingerprint that changes when the file does."""
    if is_local(url):
        status = os.stat(url.removeprefix("file://"))
        return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
    fs, path = filesystem(url)
    facts = fs.info(path)
    mark = next(
        (facts[k] for k in ("etag", "ETag", "md5Hash", "mtime", "created") if k in facts), ""
    )
    return int(facts["size"]), f"{facts['size']}-{mark}"


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """A path on this machine with the file's content, for readers that need one."""
    if is_local(url):
        yield url.removeprefix("file://")
        return
    fs, path = filesystem(url)
    with tempfile.TemporaryDirectory(prefix="lavit_shard_") as folder:
        target = str(Path(folder) / "shard")
        fs.get_file(path, target)
        yield target
