"""Buckets in memory, behind `gs://`, for all that is reached through epath."""

from pathlib import Path

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Buckets(MemoryFileSystem):
    """They have objects and no folders, and no client would rename a folder in one move.

    Attributes:
      read: paths of what was downloaded.
    """

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.read: list[str] = []

    def upload(self, folder: Path, url: str) -> None:
        """Puts all files of a folder there."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.pipe_file(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def _open(self, path: str, mode: str = "rb", **kwargs):
        if mode == "rb":
            self.read.append(path)
        return super()._open(path, mode, **kwargs)


def in_memory(monkeypatch: pytest.MonkeyPatch) -> Buckets:
    """Buckets of a test, empty at first."""
    buckets = Buckets()
    monkeypatch.setenv("EPATH_USE_TF", "false")
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: buckets)
    return buckets
