"""Prepared data sets in a bucket, as files of this machine: shards are read in random access.

Training copies a data set whole before its first step, to `config.data.cache`, where the next
launch finds it. Who only looks through one holds a few shards at a time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lavit_jax.data.sources import files
from lavit_jax.errors import UserError

INDEX = "index.json"
TOGETHER = 8  # shards copied at once
HELD = 4  # shards of a data set that is only looked through
SAY_SECONDS = 10.0
BLOCK = 8 << 20  # bytes
ANEW = "copy or prepare the data set anew"

Say = Callable[[str], None]


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a data set lies where shards cannot be read in random access."""
    return not files.is_local(str(folder))


def read(url: str, name: str) -> bytes | None:
    """A small file of a data set in a bucket; None if it is not there.

    Raises:
      UserError: the bucket cannot be read.
    """
    with _reading(url) as (fs, root):
        try:
            return fs.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None


def place(
    folder: str | os.PathLike[str], cache: str | os.PathLike[str] = "", say: Say = lambda _: None
) -> str:
    """Where a data set is on this machine: a folder is where it is, of a URL there is a copy.

    Args:
      folder: of the data set.
      cache: where copies are; "" is `~/.cache/lavit_jax/data`.
      say: told now and then how far it is, if there is something to copy.

    Raises:
      UserError: as `bring`.
    """
    if not is_remote(folder):
        return str(Path(str(folder).removeprefix("file://")).resolve())
    copy = _copy(str(folder), str(cache))
    if not copy.complete():
        bring([str(folder)], cache, say)
    return str(copy.target)


def bring(
    folders: Sequence[str], cache: str | os.PathLike[str] = "", say: Say = lambda _: None
) -> None:
    """Copies data sets here, or what is missing of them; those that are here already are left.

    Args:
      folders: of the data sets.
      cache: see `place`.
      say: told now and then how far it is.

    Raises:
      UserError: a bucket that cannot be read, too little room, a cache that cannot be written, or
        a shard that is not what its index says.
    """
    urls = dict.fromkeys(folder for folder in folders if is_remote(folder))
    copies = [_copy(url, str(cache)) for url in urls]
    if all(copy.complete() for copy in copies):
        return
    where = _cache(str(cache))
    try:
        where.mkdir(parents=True, exist_ok=True)
        with _alone(where, say):
            _check_room(copies, where)
            for copy in copies:
                copy.make(say)
    except OSError as error:
        raise UserError(f"config.data.cache={where}: {error.strerror or error}") from error


def _cache(asked: str) -> Path:
    if asked:
        return Path(asked).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "lavit_jax" / "data"


@functools.cache
def _copy(url: str, cache: str) -> Copy:
    """One and the same for all of a process, though the data set should be prepared anew."""
    return Copy(url, _cache(cache))


class Copy:
    """A data set in a bucket, and its copy here.

    Attributes:
      target: the copy's folder; its name tells what is in it, so another data set at the same URL
        has another.
    """

    def __init__(self, url: str, cache: Path) -> None:
        from lavit_jax.data.prepared import read_index

        self._url = url.rstrip("/")
        self._index = read_index(url)
        self._stored = json.dumps(self._index, sort_keys=True).encode()
        name = f"{self._url.rpartition('/')[2]}-{hashlib.sha256(self._stored).hexdigest()[:16]}"
        self.target = cache / name

    def missing(self) -> list[dict[str, Any]]:
        """The shards that are not here, or not whole."""
        here = self.target
        return [s for s in self._index["shards"] if _size(here / s["name"]) != s["bytes"]]

    def complete(self) -> bool:
        """Whether all is here."""
        return (self.target / INDEX).is_file() and not self.missing()

    def make(self, say: Say) -> None:
        """Copies what is missing, several shards at once; the index last."""
        self.target.mkdir(exist_ok=True)
        for left in self.target.glob(".*.part"):
            left.unlink()
        wanted = self.missing()
        total, done = sum(shard["bytes"] for shard in wanted), 0
        begun = told = time.monotonic()
        if total:
            say(f"copying {self._url} to {self.target}: {total / 1e9:.2f} GB")
        pool = concurrent.futures.ThreadPoolExecutor(TOGETHER)
        try:
            doing = {pool.submit(fetch, self._url, shard, self.target): shard for shard in wanted}
            for one in concurrent.futures.as_completed(doing):
                one.result()
                done += doing[one]["bytes"]
                if time.monotonic() - told > SAY_SECONDS:
                    told = time.monotonic()
                    say(_progress(self._url, done, total, told - begun))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        aside = self.target / f".{INDEX}.part"
        aside.write_bytes(self._stored)
        os.replace(aside, self.target / INDEX)


def fetch(url: str, shard: dict[str, Any], folder: Path) -> Path:
    """Copies a shard into a folder in one move, and compares it with what its index says.

    Raises:
      UserError: the bucket cannot be read, or has another shard.
      OSError: the folder cannot be written.
    """
    name, digest = shard["name"], hashlib.sha256()
    aside = folder / f".{name}.part"
    with _open(url, name) as source, aside.open("wb") as target:
        while True:
            with _reading(url):
                block = source.read(BLOCK)
            if not block:
                break
            digest.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    size, known = aside.stat().st_size, shard.get("sha256")
    if size != shard["bytes"]:
        wrong = f"has {size} bytes, its index says {shard['bytes']}"
    elif known and digest.hexdigest() != known:
        wrong = "has another checksum (sha256) than its index says"
    else:
        os.replace(aside, folder / name)
        return folder / name
    aside.unlink()
    raise UserError(f"{url}/{name} {wrong}: {ANEW}")


def _open(url: str, name: str) -> IO[bytes]:
    with _reading(url) as (fs, root):
        try:
            return fs.open(f"{root}/{name}", "rb", block_size=BLOCK)
        except FileNotFoundError:
            raise UserError(f"{url}/{name} is in the index and not there: {ANEW}") from None


class Passing:
    """Shards of a data set in a bucket, each here while it is among the last few read."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._folder = tempfile.TemporaryDirectory(prefix="lavit_shards_")

    def path(self, shard: dict[str, Any]) -> Path:
        """Fetches a shard.

        Raises:
          UserError: as `fetch`, or there is no room.
        """
        try:
            return fetch(self._url, shard, Path(self._folder.name))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"{self._folder.name}: {reason} (TMPDIR names another place)"
            ) from error

    def drop(self, shard: dict[str, Any]) -> None:
        """Removes it."""
        (Path(self._folder.name) / shard["name"]).unlink(missing_ok=True)


@contextlib.contextmanager
def _reading(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL; what it raises, and every client raises its own, in one line."""
    try:
        yield files.filesystem(url)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:
        raise UserError(f"cannot read {url}: {files.reason(error)}") from error


@contextlib.contextmanager
def _alone(where: Path, say: Say) -> Iterator[None]:
    """One process of this machine copies at a time; the others find what it has copied."""
    import fcntl

    with (where / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process copies to {where}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_room(copies: Sequence[Copy], where: Path) -> None:
    needed = sum(shard["bytes"] for copy in copies for shard in copy.missing())
    free = shutil.disk_usage(where).free
    if needed <= free:
        return
    ours = {copy.target for copy in copies}
    others = [path for path in where.iterdir() if path.is_dir() and path not in ours]
    used = sum(file.stat().st_size for path in others for file in path.iterdir())
    more = f" ({used / 1e9:.1f} GB are copies of {len(others)} other data sets)" if others else ""
    raise UserError(
        f"config.data.cache={where} has room for {free / 1e9:.1f} GB{more}, copies of the data "
        f"sets need {needed / 1e9:.1f} GB more: name a folder on a larger disk, or mount the "
        "bucket (gcsfuse) and name the mounted folder"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _progress(url: str, done: int, total: int, seconds: float) -> str:
    rate = done / seconds
    left = (total - done) / rate
    shown = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
    return (
        f"copying {url}: {done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s, "
        f"{shown} left"
    )
