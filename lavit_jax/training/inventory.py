"""What checkpoints a run has, in what state they are, and taking away those nobody asks for.

Reads files alone: no device, no restore, safe beside a run that trains. In a bucket it downloads
small JSON, and where there are checksums to verify what they are of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lavit_jax.disk import read_json
from lavit_jax.errors import UserError
from lavit_jax.training import checksums, storage
from lavit_jax.training.retention import Facts, Policy, kept
from lavit_jax.training.saved import REMOVED, finished, read_means, remove_from_bucket
from lavit_jax.training.schedule import Phase, make_schedule, phase_at

# States of checksums that are there and have not been compared with the files, or are missing.
RECORDED, MISSING = "recorded", "missing"
STORE = "store"  # in a bucket, which keeps its own
PARTS = ("state", "position")
PRUNED = ".pruned"  # what is being removed from a disk ends so


@dataclasses.dataclass(frozen=True)
class Entry:
    """A folder among a run's checkpoints.

    Attributes:
      path: of the folder.
      step: its number.
      phase: of the schedule; "" where no config says.
      bytes: its size.
      time: when it was written, ISO 8601; "" where a store does not say.
      complete: whether a run could go on from it; not what was being saved when a run was killed,
        nor what was set aside as damaged, nor what a run has moved away to remove it.
      checksums: of `checksums`, or RECORDED, MISSING or STORE.
      metrics: means over the steps before it.
    """

    path: Any
    step: int
    phase: str
    bytes: int
    time: str
    complete: bool
    checksums: str
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        """As seen from the folder of checkpoints."""
        parent = self.path.parent.name
        return f"{parent}/{self.path.name}" if parent == REMOVED else str(self.path.name)


@dataclasses.dataclass(frozen=True)
class Inventory:
    """All of a run's checkpoints, oldest first, and the policy of its config."""

    entries: tuple[Entry, ...]
    policy: Policy

    @property
    def damaged(self) -> tuple[Entry, ...]:
        return tuple(each for each in self.entries if each.checksums == checksums.DAMAGED)


def take(folder: Any, *, verify: bool = False) -> Inventory:
    """Looks through a work directory, or its `checkpoints` folder.

    Args:
      folder: either, here or in a bucket.
      verify: read every file of complete checkpoints and compare checksums.

    Raises:
      UserError: no checkpoints are there.
    """
    place = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    paths = [*_listed(place), *_listed(place / REMOVED)]
    found = sorted((path for path in paths if _step(path) is not None), key=_order)
    if not found:
        raise UserError(f"{folder}: no checkpoints; expected a work directory of `lavit train`")
    stored = place.parent / "config.json"
    config = ConfigDict(read_json(stored)) if stored.exists() else None
    phases = () if config is None else make_schedule(config)
    entries = (_entry(path, phases, verify) for path in found)
    return Inventory(tuple(each for each in entries if each is not None), _policy(config, phases))


def superfluous(inventory: Inventory, policy: Policy) -> tuple[Entry, ...]:
    """Complete checkpoints that a policy does not keep, and what was half removed.

    Damaged ones count for nothing and stay.

    Raises:
      UserError: nothing would be left.
    """
    complete = [
        each for each in inventory.entries if each.complete and each.checksums != checksums.DAMAGED
    ]
    stay = kept([Facts(each.step, each.phase, each.metrics) for each in complete], policy)
    if complete and not stay:
        raise UserError("that would take away every checkpoint: keep at least one")
    newest = max((each.step for each in complete), default=0)
    return tuple(
        each
        for each in inventory.entries
        if (each in complete and each.step not in stay) or _half_removed(each, newest)
    )


def remove(entries: Sequence[Entry]) -> None:
    """Takes checkpoints away; one half removed is never taken for complete."""
    for each in reversed(entries):  # what was half removed before what has its number now
        if not isinstance(each.path, Path):
            with contextlib.suppress(FileNotFoundError):  # as below
                remove_from_bucket(each.path)
            continue
        aside = each.path.with_suffix(PRUNED)
        try:
            each.path.rename(aside)
        except FileNotFoundError:  # a run here was quicker
            continue
        shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            shutil.rmtree(aside)  # to raise why


def _half_removed(entry: Entry, newest: int) -> bool:
    """Whether a removal was killed here; a save under way is of a step past the newest."""
    if isinstance(entry.path, Path):
        return entry.path.suffix == PRUNED or entry.path.parent.name == REMOVED
    return entry.path.name.isdigit() and not finished(entry.path) and entry.step < newest


def _listed(place: Any) -> list[Any]:
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def _step(path: Any) -> int | None:
    number = path.name.partition(".")[0]
    return int(number) if number.isdigit() else None


def _order(path: Any) -> tuple[int, str]:
    return _step(path) or 0, path.name


def _entry(path: Any, phases: Sequence[Phase], verify: bool) -> Entry | None:
    """What a folder is; None where a run removes it meanwhile."""
    try:
        found = _looked_at(path, phases, verify)
    except FileNotFoundError:
        if path.exists():
            raise
        return None
    return None if found.checksums == checksums.DAMAGED and not path.exists() else found


def _looked_at(path: Any, phases: Sequence[Phase], verify: bool) -> Entry:
    step = _step(path) or 0
    files = list(_facts(path))
    removed = path.parent.name == REMOVED
    complete = not removed and finished(path) and all((path / part).is_dir() for part in PARTS)
    known = bool(phases) and step <= phases[-1].end
    return Entry(
        path=path,
        step=step,
        phase=phase_at(tuple(phases), step).name if known else "",
        bytes=sum(size for size, _ in files),
        time=_iso(max((written for _, written in files), default=0)),
        complete=complete,
        checksums=_checksums(path, verify) if path.name.isdigit() and not removed else MISSING,
        metrics=_means(path),
    )


def _facts(folder: Any) -> Iterator[tuple[int, float]]:
    """Each file's size, and when it was written; 0 where a store does not say."""
    for file in storage.files(folder):
        with contextlib.suppress(FileNotFoundError):  # a run has removed or renamed it
            found = file.stat()
            if isinstance(file, Path):
                yield found.st_size, found.st_mtime
            else:
                yield found.length, found.mtime


def _means(path: Any) -> dict[str, float]:
    try:
        return read_means(path)
    except OSError:  # there is more to say of it
        return {}


def _iso(written: float) -> str:
    if not written:
        return ""
    return datetime.datetime.fromtimestamp(written, datetime.UTC).isoformat(timespec="seconds")


def _checksums(path: Any, verify: bool) -> str:
    if not isinstance(path, Path) and not checksums.recorded(path):
        return STORE
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
