"""The folder that is prepared: files in it are complete or absent, local or remote."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from lavit_jax import disk
from lavit_jax.data.prepare import claim
from lavit_jax.data.sources import files
from lavit_jax.errors import UserError

WORK = ".work"  # plan, receipts and unfinished files, until all is done
STOP = f"{WORK}/stop.json"  # tells workers on other machines to begin no more, and why
WRITER = "group_size:1"  # every record can be read alone, and its checksum checked


class Store:
    """A folder, by path or URL; what goes wrong there is a `UserError` that names it."""

    def __init__(self, url: str) -> None:
        self.url = url.removeprefix("file://").rstrip("/")
        self._fs, self._root = files.filesystem(self.url)
        self._local = files.is_local(self.url)

    def path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def exists(self, name: str) -> bool:
        with files.reading(self.url):
            return self._fs.exists(self.path(name))

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder as they are now, with the folder's."""
        self._fs.invalidate_cache()
        with files.reading(self.url):
            try:
                found = self._fs.ls(self.path(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted(f"{folder}/{path.rpartition('/')[2]}" for path in found)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with self.writing(), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self.path(name))

    def size(self, name: str) -> int:
        """Bytes of a file; -1 if it is not there."""
        with files.reading(self.url):
            try:
                return int(self._fs.size(self.path(name)))
            except FileNotFoundError:
                return -1

    def read_json(self, name: str) -> Any:
        """The content of a JSON file; None if it is not there.

        Raises:
          UserError: it cannot be read or parsed.
        """
        with files.reading(self.url):
            try:
                data = self._fs.cat_file(self.path(name))
            except FileNotFoundError:
                return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise UserError(f"{self.url}/{name}: not valid JSON ({error})") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes: errors become a `UserError` that names this folder."""
        try:
            with disk.writing(self.url):
                yield
        except UserError:
            raise
        except Exception as error:
            if self._local:
                raise
            # Every bucket's client has errors of its own.
            raise UserError(f"cannot write {self.url}: {files.reason(error)}") from error

    def write_json(self, name: str, document: Any) -> None:
        """Writes a JSON file in one move."""
        with self.scratch() as folder, self.writing():
            aside = folder / "document"
            aside.write_text(json.dumps(document, indent=1) + "\n")
            self.publish(aside, name)

    def records(self, aside: Path) -> RecordWriter:
        """A file of records in `scratch`."""
        return RecordWriter(self, aside)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on this machine for unfinished files; gone afterwards."""
        if not self._local:
            with tempfile.TemporaryDirectory(prefix="lavit_prepare_") as elsewhere:
                yield Path(elsewhere)
            return
        work = Path(self.path(WORK))
        with self.writing():
            work.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=work))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, aside: Path, name: str) -> None:
        """Moves a finished file of `scratch` here in one move, safe from power cuts."""
        with self.writing():
            self._publish(aside, name)

    def _publish(self, aside: Path, name: str) -> None:
        if not self._local:
            self._fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(aside), self.path(name))
            return
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def copy_together(self, names: list[str], target: str) -> None:
        """Writes the contents of files one after the other as one file."""
        with self.scratch() as folder:
            aside = folder / "together"
            with self.writing(), aside.open("wb") as file:
                for name in names:
                    with files.reading(self.url):
                        file.write(self._fs.cat_file(self.path(name)))
            self.publish(aside, target)

    def remove_work(self) -> None:
        """Removes what is only needed until all is done."""
        with self.writing(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self.path(WORK), recursive=True)

    def sweep(self) -> None:
        """Removes unfinished files that killed runs left."""
        if self._local:
            for left in Path(self.path(WORK)).glob("tmp-*"):
                shutil.rmtree(left, ignore_errors=True)

    def create(self, name: str, document: Any) -> bool:
        """Writes a small JSON file unless there is one; False if there is.

        Raises:
          UserError: it cannot be written.
        """
        data = (json.dumps(document, indent=1) + "\n").encode()
        try:
            self._fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(self.path(name), data, mode="create")
        except Exception as error:  # "there is one" is said differently by each store
            if not self.exists(name):
                raise UserError(f"cannot write to {self.url}: {files.reason(error)}") from error
            return False
        return True

    @contextlib.contextmanager
    def claimed(self, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keeps other processes out: of this machine, and of others where it is a bucket.

        Args:
          say: told what is waited for.

        Raises:
          UserError: one is at work here, or the folder cannot be written.
        """
        if not self._local:
            with claim.held(self, say):
                yield
            return
        import fcntl

        work = Path(self.path(WORK))
        try:
            work.mkdir(parents=True, exist_ok=True)
            file = (work / "lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write to {self.url}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is preparing {self.url}") from error
            yield


class RecordWriter:
    """Writes array_record; what that raises becomes a `UserError` that names the folder."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store = store
        with self._writing():
            self._file = ArrayRecordWriter(str(path), WRITER)

    def write(self, data: bytes) -> None:
        with self._writing():
            self._file.write(data)

    def close(self) -> None:
        """Has everything on disk."""
        with self._writing():
            self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # "write() failed: No space left on device; writing /..."
            words = disk.reason(error) or str(error).partition(";")[0]
            raise UserError(f"cannot write {self._store.url}: {words}") from error
