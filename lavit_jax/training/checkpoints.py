"""Checkpoints of everything a run needs to go on: state, data iterator, where in the schedule."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.parallel import peers
from lavit_jax.training import checksums, saved
from lavit_jax.training.retention import Facts, Policy, kept

PhaseOf = Callable[[int], str]

COMMIT_POLL_SECONDS = 0.05
SLICED_BYTES = 64 << 20  # arrays above are worth slicing among the devices that hold them
UNFINISHED = "*.orbax-checkpoint-tmp*"


class Checkpoints:
    """Those of a run that trains, numbered by global step; complete or absent.

    Saves run in the background: orbax writes aside and renames, then checksums are stored. Old ones
    are renamed before they are deleted. A bucket cannot rename: there a mark is written last and
    removed first, and old ones go before the next save begins.
    """

    def __init__(
        self, directory: Path, policy: Policy, phase_of: PhaseOf = lambda step: ""
    ) -> None:
        """Makes the directory and takes away what killed saves and removals left there.

        Args:
          directory: for the checkpoints.
          policy: which of them stay.
          phase_of: from a step to its phase, for the policy.
        """
        self.directory = directory
        self._preservation = _Preservation(directory, policy, phase_of)
        here = isinstance(directory, Path)
        self._manager = saved.open_manager(
            directory,
            preservation_policy=self._preservation if here else None,
            create=True,
            cleanup_tmp_directories=True,
            todelete_subdir=saved.REMOVED if here else None,
        )
        self._delete_removed()
        self._identity = _identity(directory)
        self._newest: int | None = None  # the step that was saved last
        self._settled = threading.Event()  # no save is under way
        self._summing: threading.Thread | None = None

    def save(self, step: int, state: Any, position: saved.Position) -> None:
        """Starts saving.

        Args:
          step: the checkpoint's number.
          state: arrays.
          position: JSON: global step, data iterator state, and "metrics" to choose the best by.

        Raises:
          UserError: the directory is gone or another, or this or an earlier save cannot be written.
        """
        if step in self._manager.all_steps():
            return
        self._check_directory()
        self.wait()  # as orbax would; a save takes old ones away, so none may still be summed
        self.prune()
        self._preservation.metrics[step] = position.get("metrics", {})
        self._newest = step
        copies = jax.tree.map(_one_copy, state)
        self._guarded(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(copies), position=ocp.args.JsonSave(position)
                ),
            )
        )
        self._settled.clear()
        self._summing = threading.Thread(target=self._sum, args=(step,), daemon=True)
        self._summing.start()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, abstract: saved.Abstract) -> saved.Saved | None:
        """The newest readable checkpoint, or None; later ones are set aside as `STEP.damaged`.

        Args:
          abstract: from a checkpoint's position to the shapes and shardings of its state.

        Raises:
          UserError: there are checkpoints and none can be read. All stay as they are then: what
            is wrong may be something else.
        """
        found = saved.newest_readable(self._manager, self.directory, abstract)
        damaged = [step for step in self.steps() if found is not None and step > found.step]
        if damaged:
            if jax.process_index() == 0:
                for step in damaged:
                    self._set_aside(step)
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()
        return found

    def go_back(self, step: int, abstract: saved.Abstract) -> saved.Saved:
        """Restores an older checkpoint and takes away those after it, the newest first.

        So a run that is killed meanwhile never goes on from the last of them.
        """
        self.wait()
        found = saved.restore(self._manager, step, abstract)
        later = [each for each in reversed(self.steps()) if each > step]
        if isinstance(self.directory, Path):
            for each in later:
                self._manager.delete(each)
        else:
            self._remove_from_bucket(lambda: later)
        self._manager.wait_until_finished()
        self._delete_removed()
        return found

    def _set_aside(self, step: int) -> None:
        damaged = self.directory / str(step)
        names = [f"{step}.damaged", *(f"{step}.damaged-{count}" for count in range(2, 1000))]
        aside = next(p for p in map(self.directory.joinpath, names) if not p.exists())
        damaged.rename(aside)
        saved.tell(f"warning: set aside as {aside}")

    def wait(self) -> None:
        """Blocks until every save is on disk with its checksums.

        Raises:
          UserError: one could not be written.
        """
        self._guarded(self._manager.wait_until_finished)
        self._settled.set()
        if self._summing is not None:
            self._summing.join()
            if _identity(self.directory) != self._identity:  # the whole save went to a new one
                self._discard_unfinished()
            self._check_directory()
        self._delete_removed()

    def close(self) -> None:
        """Blocks until every save is on disk; nothing can be saved afterwards.

        Raises:
          UserError: one could not be written.
        """
        self.wait()
        self._guarded(self._manager.close)

    def prune(self) -> None:
        """Takes away what no policy keeps from a bucket; on a disk orbax does after every save.

        Every process asks, none while a save is under way. What cannot be taken away stays.
        """
        if isinstance(self.directory, Path):
            return

        def superfluous() -> Sequence[int]:
            try:
                return self._preservation.superfluous(self.steps())
            except Exception as error:  # whatever a store's client raises; later it may answer
                saved.tell(f"warning: old checkpoints stay for now: {saved.reason(error)}")
                return ()

        self._remove_from_bucket(superfluous)

    def _remove_from_bucket(self, chosen: Callable[[], Sequence[int]]) -> None:
        """Takes away the steps that the first process chooses; all of them know afterwards."""

        def remove() -> None:
            for step in chosen():
                try:
                    saved.remove_from_bucket(self.directory / str(step))
                except Exception as error:  # whatever a store's client raises
                    saved.tell(f"warning: step {step} is not removed: {saved.reason(error)}")

        peers.of_first(remove)
        self._guarded(self._manager.reload)

    def _delete_removed(self) -> None:
        if not isinstance(self.directory, Path) or jax.process_index() != 0:
            return
        for folder in (self.directory / saved.REMOVED).glob("*"):
            shutil.rmtree(folder, ignore_errors=True)  # what is left now goes another time

    def _check_directory(self) -> None:
        """Raises if the directory is gone, or another: a save under way then makes it anew."""
        if _identity(self.directory) != self._identity:
            raise UserError(f"cannot save: {self.directory} has vanished")

    def _guarded(self, work: Callable[[], Any]) -> None:
        """Does what writes; whatever orbax raises when that fails becomes one line."""
        try:
            work()
        except Exception as error:
            self._settled.set()
            self._discard_unfinished()
            self._check_directory()
            whole: list[int] = []
            with contextlib.suppress(Exception):  # of a store that cannot be reached now
                whole = saved.saved_steps(self.directory)[-1:]
            left = f"; step {whole[0]} is the newest that is whole" if whole else ""
            raise UserError(f"cannot save to {self.directory}: {_cause(error)}{left}") from error

    def _discard_unfinished(self) -> None:
        """Takes away what a save that failed has written; its room may be what is wanting."""
        if not isinstance(self.directory, Path):
            return
        disk.remove_unfinished(lambda: self.directory.glob(UNFINISHED))
        if _identity(self.directory) != self._identity:  # made anew by the save, if it is there
            with contextlib.suppress(OSError):
                if [path.name for path in self.directory.iterdir()] == [str(self._newest)]:
                    shutil.rmtree(self.directory / str(self._newest))
                self.directory.rmdir()
                self.directory.parent.rmdir()

    def _sum(self, step: int) -> None:
        """Waits until a save is complete, then stores this process's part of its checksums."""
        folder = self.directory / str(step)
        if not isinstance(folder, Path):
            return  # object stores keep checksums of their own
        while not folder.is_dir() and not self._settled.wait(COMMIT_POLL_SECONDS):
            pass
        if not folder.is_dir():
            return
        try:
            checksums.write(folder, jax.process_index(), jax.process_count())
        except (OSError, UserError) as error:  # the checkpoint is whole, or pruned by now
            if folder.is_dir():
                saved.tell(f"warning: no checksums of {folder}: {saved.reason(error)}")
        self._delete_removed()  # not to fill the disk until the next save


@dataclasses.dataclass
class _Preservation:
    """A policy, as orbax asks for it too."""

    directory: Path
    policy: Policy
    phase_of: PhaseOf
    metrics: dict[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        gone = self.superfluous([each.step for each in checkpoints])
        return [each.step not in gone for each in checkpoints]

    def superfluous(self, steps: Sequence[int]) -> list[int]:
        """Those of the steps that need not stay."""
        for step in steps:
            if step not in self.metrics:
                self.metrics[step] = saved.read_means(self.directory / str(step))
        stay = kept([Facts(n, self.phase_of(n), self.metrics[n]) for n in steps], self.policy)
        return [step for step in steps if step not in stay]


def _one_copy(array: Any) -> Any:
    """Of a small array that each device of this process alone holds whole, the first one's.

    Orbax would cut it and write a slice from every device, which takes far longer.
    """
    alone = isinstance(array, jax.Array) and jax.process_count() == 1
    if not alone or not array.is_fully_replicated or array.nbytes > SLICED_BYTES:
        return array
    return array.addressable_data(0)


def _identity(directory: Path) -> tuple[int, int] | None:
    """What a directory is whatever its name; None where it is gone, or in a bucket."""
    if not isinstance(directory, Path) or not directory.is_dir():
        return None
    found = directory.stat()
    return found.st_dev, found.st_ino


def _cause(error: BaseException) -> str:
    """The system's own words, which orbax and tensorstore wrap in theirs."""
    known = (os.strerror(number) for number in (errno.EACCES, errno.EIO))
    words = (each for each in known if each in str(error))
    return disk.reason(error) or next(words, saved.reason(error))
