"""What checkpoints a run has, in what state they are, and taking away those nobody asks for.

Reads files alone: no device, no restore, safe beside a run that trains.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lavit_jax.errors import UserError
from lavit_jax.training import checksums
from lavit_jax.training.checkpoints import read_json, read_means
from lavit_jax.training.retention import Facts, Policy, kept
from lavit_jax.training.schedule import Phase, make_schedule, phase_at

# States of checksums that are there and have not been compared with the files, or are missing.
RECORDED, MISSING = "recorded", "missing"
PARTS = ("state", "position")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A folder among a run's checkpoints.

    Attributes:
      path: of the folder.
      step: its number.
      phase: of the schedule; "" where no config says.
      bytes: its size.
      time: when it was written, ISO 8601.
      complete: whether a run could go on from it; not what was being saved when a run was killed,
        nor what was set aside as damaged.
      checksums: of `checksums`, or RECORDED or MISSING.
      metrics: means over the steps before it.
    """

    path: Path
    step: int
    phase: str
    bytes: int
    time: str
    complete: bool
    checksums: str
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Inventory:
    """All of a run's checkpoints, oldest first, and the policy of its config."""

    entries: tuple[Entry, ...]
    policy: Policy

    @property
    def damaged(self) -> tuple[Entry, ...]:
        return tuple(each for each in self.entries if each.checksums == checksums.DAMAGED)


def take(folder: Path, *, verify: bool = False) -> Inventory:
    """Looks through a work directory, or its `checkpoints` folder.

    Args:
      folder: either.
      verify: read every file of complete checkpoints and compare checksums.

    Raises:
      UserError: no checkpoints are there.
    """
    place = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted((path for path in _listed(place) if _step(path) is not None), key=_order)
    if not found:
        raise UserError(f"{folder}: no checkpoints; expected a work directory of `lavit train`")
    stored = place.parent / "config.json"
    config = ConfigDict(read_json(stored)) if stored.is_file() else None
    phases = () if config is None else make_schedule(config)
    return Inventory(tuple(_entry(path, phases, verify) for path in found), _policy(config, phases))


def superfluous(inventory: Inventory, policy: Policy) -> tuple[Entry, ...]:
    """Complete checkpoints that a policy does not keep; damaged ones count for nothing and stay.

    Raises:
      UserError: nothing would be left.
    """
    complete = [
        each for each in inventory.entries if each.complete and each.checksums != checksums.DAMAGED
    ]
    stay = kept([Facts(each.step, each.phase, each.metrics) for each in complete], policy)
    if complete and not stay:
        raise UserError("that would take away every checkpoint: keep at least one")
    return tuple(each for each in complete if each.step not in stay)


def remove(entries: Sequence[Entry]) -> None:
    """Takes checkpoints away; one half removed is never taken for complete."""
    for each in entries:
        aside = each.path.with_name(f"{each.path.name}.pruned")
        each.path.rename(aside)
        shutil.rmtree(aside)


def _listed(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def _step(path: Path) -> int | None:
    number = path.name.partition(".")[0]
    return int(number) if number.isdigit() else None


def _order(path: Path) -> tuple[int, str]:
    return _step(path) or 0, path.name


def _entry(path: Path, phases: Sequence[Phase], verify: bool) -> Entry:
    step = _step(path) or 0
    files = [each.stat() for each in path.rglob("*") if each.is_file()]
    written = max((each.st_mtime for each in files), default=path.stat().st_mtime)
    complete = path.name.isdigit() and all((path / part).is_dir() for part in PARTS)
    known = bool(phases) and step <= phases[-1].end
    return Entry(
        path=path,
        step=step,
        phase=phase_at(tuple(phases), step).name if known else "",
        bytes=sum(each.st_size for each in files),
        time=datetime.datetime.fromtimestamp(written, datetime.UTC).isoformat(timespec="seconds"),
        complete=complete,
        checksums=_checksums(path, verify) if path.name.isdigit() else MISSING,
        metrics=read_means(path),
    )


def _checksums(path: Path, verify: bool) -> str:
    if verify:
        found = checksums.check(path)
        return MISSING if found == checksums.UNKNOWN else found
    return RECORDED if checksums.recorded(path) else MISSING


def _policy(config: ConfigDict | None, phases: Sequence[Phase]) -> Policy:
    ends = tuple(phase.end for phase in phases)
    if config is None:
        return Policy(1)
    wanted = config.checkpoint
    return Policy(wanted.keep, wanted.get("keep_every", 0), wanted.get("keep_best", ""), ends)
