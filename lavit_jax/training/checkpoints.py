"""Checkpoints of everything a run needs to go on: state, data iterator, where in the schedule."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from lavit_jax.errors import UserError

Position = dict[str, Any]
Abstract = Callable[[Position], Any]


class Saved(NamedTuple):
    """A checkpoint that was read."""

    step: int
    state: Any
    position: Position


class Checkpoints:
    """Those of a run that trains, numbered by global step; complete or absent.

    Saves run in the background; orbax writes aside and renames. The last checkpoint of each
    phase is kept besides the newest ones.
    """

    def __init__(self, directory: Path, keep: int, milestones: tuple[int, ...] = ()) -> None:
        self.directory = directory
        self._manager = _manager(
            directory,
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), policies.CustomSteps(milestones)]
            ),
            create=True,
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, position: Position) -> None:
        """Starts saving; `position` is JSON: global step and data iterator state."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
            ),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, abstract: Abstract) -> Saved | None:
        """The newest readable checkpoint, or None; later ones are set aside as `STEP.damaged`.

        Args:
          abstract: from a checkpoint's position to the shapes and shardings of its state.

        Raises:
          UserError: there are checkpoints and none can be read. All stay as they are then: what
            is wrong may be something else.
        """
        found = _newest_readable(self._manager, self.directory, abstract)
        damaged = [step for step in self.steps() if found is not None and step > found.step]
        if damaged:
            if jax.process_index() == 0:
                for step in damaged:
                    self._set_aside(step)
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()
        return found

    def _set_aside(self, step: int) -> None:
        damaged = self.directory / str(step)
        names = [f"{step}.damaged", *(f"{step}.damaged-{count}" for count in range(2, 1000))]
        aside = next(p for p in map(self.directory.joinpath, names) if not p.exists())
        damaged.rename(aside)
        _tell(f"warning: set aside as {aside}")

    def wait(self) -> None:
        """Blocks until every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Blocks until every save is on disk; nothing can be saved afterwards."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_latest(directory: Path, abstract: Abstract) -> Saved | None:
    """The newest readable checkpoint, or None; never changes the directory.

    Safe beside a run that saves and prunes there.

    Args:
      directory: with checkpoints.
      abstract: from a checkpoint's position to the shapes and shardings of its state.

    Raises:
      UserError: there are checkpoints and none can be read.
    """
    if not directory.is_dir():
        return None
    manager = _manager(directory, read_only=True, create=False, save_interval_steps=0)
    try:
        return _newest_readable(manager, directory, abstract)
    finally:
        manager.close()


def any_saved(directory: Path) -> bool:
    """Whether there is a checkpoint, readable or not; one that is still being written is none."""
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    # Orbax tells every detail through absl; errors are enough here.
    logging.set_verbosity(logging.ERROR)
    return ocp.CheckpointManager(
        directory.absolute(), options=ocp.CheckpointManagerOptions(**options)
    )


def _newest_readable(
    manager: ocp.CheckpointManager, directory: Path, abstract: Abstract
) -> Saved | None:
    failed: set[int] = set()
    while left := set(manager.all_steps()) - failed:
        step = max(left)
        try:
            return _restore(manager, step, abstract)
        except Exception as error:  # whatever a damaged file makes orbax raise
            failed.add(step)
            if (directory / str(step)).exists():
                _tell(f"warning: checkpoint {directory / str(step)} is damaged ({_reason(error)})")
            # A run beside a reader may have saved a newer one and pruned the one being read.
            manager.reload()
    if failed:
        raise UserError(
            f"{directory}: none of the checkpoints {sorted(failed)} can be read; move the folder "
            "away to start anew"
        )
    return None


def _restore(manager: ocp.CheckpointManager, step: int, abstract: Abstract) -> Saved:
    only_position = ocp.args.Composite(position=ocp.args.JsonRestore())
    position = manager.restore(step, args=only_position)["position"]
    restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract(position)))
    )
    return Saved(step, restored["state"], position)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
      UserError: it cannot be parsed.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
