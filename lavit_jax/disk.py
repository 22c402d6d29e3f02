"""Files: read or written whole, or one clear line that says what is wrong."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lavit_jax.errors import UserError

# Only writing raises these: no room, a file or a quota too large, a file system mounted read-only.
NOT_TAKEN = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)

# Of several machines. One that is lost keeps its locks there, for minutes or for good.
SHARED = ("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb3")

REMOVE_SECONDS = 10.0  # how long writers of what failed may go on
REMOVE_LOOKS = 4  # in a row that find nothing of it
POLL_SECONDS = 0.05
BLOCK = 1 << 20  # bytes read at a time


def reason(error: BaseException) -> str | None:
    """The system's own words for why a disk did not take something; None for any other error.

    Libraries wrap them: orbax and tensorstore in the text of theirs, torch in nothing at all.
    """
    words = [os.strerror(number) for number in NOT_TAKEN]
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NOT_TAKEN:
            return os.strerror(seen.errno)
        for each in words:
            if each in str(seen):
                return each
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Names what is written where that fails; nothing inside may read from elsewhere.

    Raises:
      UserError: any error of the system's, or of a library that wraps one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = error.strerror or str(error) if isinstance(error, OSError) else reason(error)
        if words is None:
            raise
        raise UserError(f"cannot write {os.fspath(place)}: {words}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written aside; it takes the place of `path` at the end, or is gone.

    Raises:
      UserError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            yield aside
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one move."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one move."""
    with replacing(path) as aside:
        aside.write_bytes(data)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with this process, however that ends, and that no child inherits.

    There is none where the file system is one of several machines, or has no locks.

    Raises:
      BlockingIOError: another process holds it.
      OSError: the file cannot be made.
    """
    import fcntl  # which Windows has not

    with path.open("w") as file:
        if _file_system(path) not in SHARED:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass
        yield


def _file_system(path: Path) -> str:
    """The kind that a path lies on; "" where the system does not say."""
    device = path.stat().st_dev
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            return after.split()[0]
    return ""


def sha256(path: Path) -> str:
    """A file's checksum.

    Raises:
      OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:  # one in a bucket need not be what hashlib.file_digest wants
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hush_orbax() -> None:
    """What orbax raises is enough: it tells every detail through absl, and a save that fails once
    more for each of its threads."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").addFilter(_unheard)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


UNHEARD = ("Future exception was never retrieved", "Task exception was never retrieved")


def _unheard(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(UNHEARD)


def _unraisable(before: Callable[[Any], Any], told: Any) -> None:
    if str(told.exc_value) != "Event loop is closed":
        before(told)


def remove_unfinished(find: Callable[[], Iterable[Any]]) -> None:
    """Removes folders that others of this process's threads may still be writing to.

    Args:
      find: the folders that are there.
    """
    until, clean = time.monotonic() + REMOVE_SECONDS, 0
    # Whoever writes gives up at the first error, while others of its threads go on: look again.
    while clean < REMOVE_LOOKS and time.monotonic() < until:
        left = list(find())
        clean = 0 if left else clean + 1
        try:
            for folder in left:
                shutil.rmtree(folder)
        except OSError as error:
            if error.errno in DENIED:
                return
        time.sleep(POLL_SECONDS)


def read_json(path: Any) -> Any:
    """A JSON file's content.

    Raises:
      UserError: it cannot be parsed.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
