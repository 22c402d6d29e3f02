"""Files of a source, local or anywhere fsspec reaches (gs://, s3://, ...)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import fsspec

from lavit_jax import disk
from lavit_jax.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK = 8 << 20  # read ahead, in bytes
_ABSENT = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),  # no file can have such a name
)
# What a file that is damaged leads its reader to ask for, and nobody could give.
_IMPOSSIBLE = (ValueError, OverflowError, MemoryError)


class Unreadable(UserError):
    """The system, or a bucket's client, did not give a file: what is in it may be sound.

    Attributes:
      absent: there is no such file.
    """

    absent = False


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Around what reads: any error, and every bucket's client has its own, names the place.

    Raises:
      Unreadable: instead of it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> Unreadable:
    told = Unreadable(f"cannot read {url}: {reason(error)}")
    number = error.errno if isinstance(error, OSError) else None
    absent = FileNotFoundError | IsADirectoryError | UnicodeError
    told.absent = isinstance(error, absent) or number in _ABSENT
    return told


def reason(error: Exception) -> str:
    """An error in one line: the system's words, or the first of its own."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, FileNotFoundError):  # whose text is a path
        return os.strerror(errno.ENOENT)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class _Told:
    """A file whose failures to be read are told from damage that a reader finds in it."""

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file, self._url = file, url

    def read(self, size: int = -1) -> bytes:
        return self._asked(self._file.read, size)

    def readline(self, size: int = -1) -> bytes:
        return self._asked(self._file.readline, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._asked(self._file.seek, offset, whence)

    def _asked(self, do: Callable[..., Any], *arguments: int) -> Any:
        try:
            return do(*arguments)
        except _IMPOSSIBLE:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                raise
            raise _unreadable(self._url, error) from error

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it.

    Raises:
      UserError: a scheme that nothing installed can read.
    """
    with reading(url):
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
        with reading(one):
            if any(sign in path for sign in "*?["):
                names = [n for n in fs.glob(path) if n.endswith(tuple(suffixes))]
            elif fs.isdir(path):
                inside = [n for n in fs.find(path) if _visible(n, path)]
                names = [n for n in inside if n.endswith(tuple(suffixes))]
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


def open_file(url: str, block: int = _BLOCK) -> IO[bytes]:
    """Opens a file to read.

    Args:
      url: of the file.
      block: bytes that are read ahead of a bucket's.

    Raises:
      Unreadable: it cannot be, now or when it is read.
    """
    with reading(url):
        if is_local(url):
            file: IO[bytes] = open(url.removeprefix("file://"), "rb")  # noqa: SIM115
        else:
            fs, path = filesystem(url)
            file = fs.open(path, "rb", block_size=block)
    return cast("IO[bytes]", _Told(file, url))


def check_readable(url: str) -> None:
    """Reads a file through, for readers that do not say what kept them from it.

    Raises:
      Unreadable: the system does not give it.
    """
    with open_file(url) as file:
        while file.read(_BLOCK):
            pass


def check_damage(error: Exception, url: str) -> None:
    """Tells the system's errors from damage, both of which array_record's reader calls one name.

    Raises:
      Unreadable: it is one of the system's.
    """
    _, failed, what = str(error).partition("() failed: ")  # "pread() failed: Input/output error;"
    if failed:
        raise Unreadable(f"cannot read {url}: {what.partition(';')[0]}") from error


def size_of(url: str, anew: bool = False) -> tuple[int, str]:
    """Bytes of a file, and a fingerprint that changes when the file does.

    Args:
      url: of the file.
      anew: asks a bucket, whatever its client remembers.

    Raises:
      Unreadable: there is no such file, or it cannot be asked for.
    """
    with reading(url):
        if is_local(url):
            status = os.stat(url.removeprefix("file://"))
            return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
        fs, path = filesystem(url)
        if anew:
            fs.invalidate_cache(path)
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
        with reading(url):
            try:
                fs.get_file(path, target)
            except OSError as error:
                if error.errno not in disk.NOT_TAKEN:
                    raise
                told = f"{folder}: {error.strerror} (TMPDIR names another place)"
                raise UserError(told) from error
        yield target
