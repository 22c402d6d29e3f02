"""Checksums of a checkpoint's files, stored beside them once all are written.

Of several processes each reads its share of the files and stores a part. Files are read through
once more before a run goes on from them: what a disk got wrong is found while an older checkpoint
is still there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lavit_jax import disk
from lavit_jax.training import storage

PREFIX = "checksums"

# What is known of a checkpoint's files.
SOUND, DAMAGED, UNKNOWN = "sound", "damaged", "unknown"


def write(folder: Path, part: int = 0, parts: int = 1) -> None:
    """Stores the checksums of a part of a folder's files, in one move."""
    sums = {name: disk.sha256(folder / name) for name in _files(folder)[part::parts]}
    stored = folder / f"{PREFIX}-{part}-of-{parts}.json"
    disk.write_text(stored, json.dumps({"parts": parts, "sha256": sums}, indent=1) + "\n")


def recorded(folder: Any) -> bool:
    """Whether there are checksums of all of a folder's files; reads none of these."""
    return set(_files(folder)) <= set(_stored(folder))


def check(folder: Any, part: int = 0, parts: int = 1) -> str:
    """Compares a part of a folder's files with their checksums.

    Returns:
      SOUND, DAMAGED (a file is gone or another), or UNKNOWN where some have no checksum: a save
      was killed between its last file and its checksums.
    """
    stored = _stored(folder)
    names = sorted({*_files(folder), *stored})[part::parts]
    unknown = [name for name in names if name not in stored]
    for name in names:
        if name in stored and _sum_of(folder / name) != stored[name]:
            return DAMAGED
    return UNKNOWN if unknown else SOUND


def _files(folder: Any) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in storage.files(folder)
        if not (path.parent == folder and path.name.startswith(PREFIX))
    )


def _stored(folder: Any) -> dict[str, str]:
    """Checksums by file; none where a part cannot be read."""
    found: dict[str, str] = {}
    for path in folder.iterdir():
        if not path.name.startswith(PREFIX):
            continue
        try:
            found |= json.loads(path.read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _sum_of(path: Any) -> str:
    try:
        return disk.sha256(path)
    except OSError:
        return ""
