"""Where a run writes: a local directory, or a bucket with a local directory before it.

Objects in a bucket cannot be appended to. A run on a bucket therefore writes its small files
(config, metrics, text tokenizer, samples) to a local directory that is uploaded before every
checkpoint, and checkpoints to the bucket itself. Twemoji is prepared on each machine, and data sets
in buckets are copied there (`data/copies.py`).
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import jax
from etils import epath

from lavit_jax.errors import UserError

SCHEME = "gs://"  # orbax writes checkpoints to no other store
NOT_MIRRORED = ("checkpoints", "compiled", "data")


def is_bucket(place: Any) -> bool:
    """Whether a work directory lies on an object store."""
    return str(place).startswith(SCHEME)


def _path(place: str | os.PathLike[str]) -> Path:
    """A local directory.

    Raises:
      UserError: it is in a store of another kind.
    """
    if "://" in str(place):
        raise UserError(f"{place}: expected a local directory or {SCHEME}BUCKET/FOLDER")
    return Path(place)


@dataclasses.dataclass(frozen=True)
class Storage:
    """Where a run writes.

    Attributes:
      name: what the user calls it.
      local: everything but checkpoints.
      checkpoints: directory of the checkpoints, a local or an epath one.
      publish: makes what is in `local` last; called before every checkpoint and at the end. Raises
        a `UserError` where a bucket cannot be reached.
    """

    name: str
    local: Path
    checkpoints: Any
    publish: Callable[[], None]


def on_disk(workdir: Path) -> Storage:
    """A local work directory, where everything lasts as it is written."""
    return Storage(str(workdir), workdir, workdir / "checkpoints", lambda: None)


def in_bucket(url: str, *, reading: bool = False) -> Storage:
    """A work directory on an object store; what it has so far is downloaded.

    Args:
      url: `gs://BUCKET/FOLDER`.
      reading: nothing will be written: a run that may be going on here is left alone.

    Raises:
      UserError: it cannot be reached.
    """
    # Readers of one machine must not take files from under each other.
    local = mirror(url, f"read-{os.getpid()}" if reading else str(jax.process_index()))
    if reading:
        atexit.register(shutil.rmtree, local, ignore_errors=True)
    remote = _remote(url)
    with reaching(url):
        _download(remote, local)
    sent = {path: _stamp(local / path) for path in _files(local)}
    # Checkpoints are made of parts by every process, the rest by the first.
    writes = jax.process_index() == 0 and not reading

    def publish() -> None:
        if writes:
            with reaching(url):
                _upload(local, remote, sent)

    return Storage(url, local, remote / "checkpoints", publish)


def mirror(url: str, of: str) -> Path:
    """The local directory before a bucket.

    Args:
      url: `gs://BUCKET/FOLDER`.
      of: whose it is.
    """
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{of}"
    return Path(tempfile.gettempdir()) / "lavit_jax" / name


def to_write(workdir: str | os.PathLike[str]) -> Storage:
    """The work directory of a run that is about to train; raises as `folder`."""
    return in_bucket(str(workdir)) if is_bucket(workdir) else on_disk(_path(workdir))


def to_read(workdir: str | os.PathLike[str]) -> Storage:
    """The work directory of a run whose model is used; raises as `folder`."""
    return in_bucket(str(workdir), reading=True) if is_bucket(workdir) else on_disk(_path(workdir))


def folder(place: str | os.PathLike[str]) -> Any:
    """A directory, here or in a bucket, as a path.

    Raises:
      UserError: it is in a store that is no bucket of ours.
    """
    return _remote(str(place)) if is_bucket(place) else _path(place)


@contextlib.contextmanager
def reaching(place: str | os.PathLike[str]) -> Iterator[None]:
    """Around work on a directory: what a store's client raises, and each its own, in one line.

    Raises:
      UserError: the directory is in a bucket and something was raised.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_bucket(place):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        cure = ": pip install 'lavit_jax[gcs]'" if isinstance(error, ImportError) else ""
        raise UserError(f"cannot reach {place}: {reason}{cure}") from error


def files(folder: Any) -> Iterator[Any]:
    """All files below a directory, here or in a bucket, in no order; some may go meanwhile."""
    for path in folder.iterdir():
        if path == folder:  # some stores list what stands for a folder in it
            continue
        if path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # it went
                yield from files(path)
        else:
            yield path


def _remote(url: str) -> epath.Path:
    # Orbax writes behind the client's back, and so do other processes: lists it keeps grow old.
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return epath.Path(url)


def _download(remote: epath.Path, local: Path) -> None:
    """Makes `local` what the bucket has, its prepared data aside: the bucket is what counts."""
    local.mkdir(parents=True, exist_ok=True)
    for entry in local.iterdir():
        if entry.name in NOT_MIRRORED:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not remote.exists():
        return
    for entry in remote.iterdir():
        if entry.name not in NOT_MIRRORED:
            _fetch(entry, local / entry.name)


def _fetch(entry: Any, target: Path) -> None:
    if not entry.is_dir():
        target.write_bytes(entry.read_bytes())
        return
    target.mkdir()
    for inner in entry.iterdir():
        _fetch(inner, target / inner.name)


def _upload(local: Path, remote: epath.Path, sent: dict[Path, tuple[int, int]]) -> None:
    """Sends what changed since the last time and removes what is gone; objects change at once."""
    found = {path: _stamp(local / path) for path in _files(local)}
    for path, stamp in found.items():
        if sent.get(path) == stamp:
            continue
        target = remote / path.as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((local / path).read_bytes())
        sent[path] = stamp
    for path in sent.keys() - found.keys():
        (remote / path.as_posix()).unlink(missing_ok=True)
        del sent[path]


def _files(local: Path) -> Iterator[Path]:
    """What is mirrored, without files that are still being written aside."""
    for path in sorted(local.rglob("*")):
        inside = path.relative_to(local)
        if path.is_file() and inside.parts[0] not in NOT_MIRRORED and path.suffix != ".tmp":
            yield inside


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
