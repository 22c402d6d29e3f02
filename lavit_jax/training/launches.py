"""`WORKDIR/run.json`: what every launch of a run was, and where its time went."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lavit_jax import disk

FILE = "run.json"
PACKAGES = ("lavit_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
GIT_SECONDS = 5


class Launch:
    """This launch's entry, the last of the file; only the first process writes.

    A launch that was killed keeps the status "running" and the seconds of its last save.
    """

    def __init__(self, workdir: Path, config: ConfigDict, mesh: Mesh, resumed_from: int) -> None:
        """Adds an entry.

        Args:
          workdir: of the run.
          config: the experiment.
          mesh: its devices.
          resumed_from: the step it goes on from; 0 at the beginning.
        """
        self._path = workdir / FILE
        self._config = json.loads(json.dumps(config.to_dict(), default=list))
        self._before = read(workdir)
        self._entry: dict[str, Any] = {
            "launch": len(self._before) + 1,
            "started": _now(),
            "status": "running",
            "resumed_from": resumed_from,
            "command": shlex.join(sys.argv),
            "host": {
                "name": socket.gethostname(),
                "system": platform.platform(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
            },
            "mesh": {
                "axes": {name: int(size) for name, size in mesh.shape.items()},
                "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "processes": jax.process_count(),
            },
            "versions": versions(),
            "git": git_state(Path(__file__).parent),
        }
        self._write()

    def update(self, step: int, seconds: Mapping[str, float], status: str = "running") -> None:
        """Stores how far the launch got and where its time went."""
        rounded = {what: round(spent, 3) for what, spent in seconds.items()}
        self._entry |= {"status": status, "updated": _now(), "step": step, "seconds": rounded}
        self._write()

    def _write(self) -> None:
        if jax.process_index() != 0:
            return
        document = {"config": self._config, "launches": [*self._before, self._entry]}
        disk.write_text(self._path, json.dumps(document, indent=1) + "\n")


def read(workdir: Path) -> list[dict[str, Any]]:
    """The launches of a run so far; none where the file is missing or damaged."""
    try:
        return list(json.loads((workdir / FILE).read_text())["launches"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def total_seconds(workdir: Path) -> dict[str, float]:
    """Seconds of all launches together, by what they went to."""
    total: dict[str, float] = {}
    for launch in read(workdir):
        for what, spent in launch.get("seconds", {}).items():
            total[what] = total.get(what, 0.0) + spent
    return total


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository a folder lies in, and whether files differ; None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
