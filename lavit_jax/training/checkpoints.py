"""Checkpoints of everything a run needs to go on: state, data iterator, where in the schedule."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from lavit_jax.errors import UserError

logger = logging.getLogger(__name__)


class Checkpoints:
    """Numbered by global step under `WORKDIR/checkpoints`; complete or absent.

    Saves run in the background; orbax writes aside and renames. The last checkpoint of each
    phase is kept besides the newest ones.
    """

    def __init__(self, directory: Path, keep: int | None, milestones: tuple[int, ...] = ()) -> None:
        self.directory = directory
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(keep), policies.CustomSteps(milestones)]
            ),
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Starts saving; `position` is JSON: phase name and data iterator state."""
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

    def restore_latest(
        self, abstract: Callable[[dict[str, Any]], Any]
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest readable checkpoint, or None.

        Args:
          abstract: from a checkpoint's position to the shapes and shardings of its state.

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state, position = self._restore(step, abstract)
            except Exception as error:
                logger.warning(
                    "checkpoint %s is damaged (%s); trying the one before",
                    self.directory / str(step),
                    _first_line(error),
                )
                continue
            for damaged in (later for later in steps if later > step):
                self._manager.delete(damaged)
            return step, state, position
        if steps:
            raise UserError(
                f"{self.directory}: none of the checkpoints {steps} can be read; move the folder "
                "away to start anew"
            )
        return None

    def _restore(
        self, step: int, abstract: Callable[[dict[str, Any]], Any]
    ) -> tuple[Any, dict[str, Any]]:
        only_position = ocp.args.Composite(position=ocp.args.JsonRestore())
        position = self._manager.restore(step, args=only_position)["position"]
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract(position)))
        )
        return restored["state"], position

    def wait(self) -> None:
        """Blocks until every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every detail through absl; warnings are enough here."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    yield


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
      UserError: it cannot be parsed.
    """
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
