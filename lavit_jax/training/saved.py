"""Reads checkpoints, numbered by global step: which there are, what they hold, whether whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.parallel import peers
from lavit_jax.training import checksums

Position = dict[str, Any]
Abstract = Callable[[Position], Any]  # see `read_latest`
LEFT_OUT = ocp.PLACEHOLDER

REMOVED = "removed"  # what no policy keeps is moved there, whole, before its files are deleted
MARK = "commit_success.txt"  # orbax writes it last in a bucket, and reads nothing without it


class Saved(NamedTuple):
    """A checkpoint that was read."""

    step: int
    state: Any
    position: Position


def read_means(folder: Any) -> dict[str, float]:
    """The metrics a checkpoint was saved with; none where there are none.

    Raises:
      OSError, or what a store's client raises: they cannot be read now.
    """
    try:
        return dict(json.loads((folder / "position" / "metadata").read_text())["metrics"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return {}


def remove_from_bucket(folder: Any) -> None:
    """Takes a checkpoint away that counts as none from the first moment on."""
    (folder / MARK).unlink(missing_ok=True)
    folder.rmtree()


def read_latest(directory: Path, abstract: Abstract) -> Saved | None:
    """The newest readable checkpoint, or None; never changes the directory.

    Safe beside a run that saves and prunes there.

    Args:
      directory: with checkpoints.
      abstract: from a checkpoint's position to the shapes and shardings of its state; arrays that
        are `LEFT_OUT` there are not read, and are `LEFT_OUT` in what is returned.

    Raises:
      UserError: there are checkpoints and none can be read.
    """
    if not directory.is_dir():
        return None
    manager = open_manager(directory, read_only=True, create=False, save_interval_steps=0)
    try:
        return newest_readable(manager, directory, abstract)
    finally:
        manager.close()


def read_step(directory: Path, step: int, abstract: Abstract) -> Saved:
    """One checkpoint; never changes the directory.

    Args:
      directory: with checkpoints.
      step: which.
      abstract: see `read_latest`.

    Raises:
      UserError: it is not there or cannot be read.
    """
    if not (directory / str(step)).is_dir():
        raise UserError(f"{directory} has no checkpoint of step {step}")
    manager = open_manager(directory, read_only=True, create=False, save_interval_steps=0)
    try:
        return restore(manager, step, abstract)
    except Exception as error:  # whatever a damaged file makes orbax raise
        raise UserError(f"{directory / str(step)} cannot be read ({reason(error)})") from error
    finally:
        manager.close()


def finished(folder: Any) -> bool:
    """Whether a folder is a checkpoint, readable or not, and not one half written or removed.

    A disk takes whole folders in and out by renaming them. A bucket cannot: there the mark is
    written last and removed first.
    """
    return folder.name.isdigit() and (isinstance(folder, Path) or (folder / MARK).exists())


def saved_steps(directory: Any) -> list[int]:
    """Steps of checkpoints, readable or not, oldest first; one still being written is none."""
    folders = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(folder.name) for folder in folders if finished(folder))


def any_saved(directory: Any) -> bool:
    """Whether there is a checkpoint, readable or not; one that is still being written is none."""
    return bool(saved_steps(directory))


def open_manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints in a directory; it reports to nobody."""
    disk.hush_orbax()
    whole = directory.absolute() if isinstance(directory, Path) else directory
    return ocp.CheckpointManager(whole, options=ocp.CheckpointManagerOptions(**options))


def newest_readable(
    manager: ocp.CheckpointManager, directory: Path, abstract: Abstract
) -> Saved | None:
    """The newest checkpoint that can be read, or None; says which are damaged.

    Raises:
      UserError: there are checkpoints and none can be read.
    """
    failed: set[int] = set()
    while left := set(manager.all_steps()) - failed:
        step = max(left)
        try:
            _check_sums(directory / str(step))
            return restore(manager, step, abstract)
        except Exception as error:  # whatever a damaged file makes orbax raise
            failed.add(step)
            if (directory / str(step)).exists():
                tell(f"warning: checkpoint {directory / str(step)} is damaged ({reason(error)})")
            # A run beside a reader may have saved a newer one and pruned the one being read.
            manager.reload()
    if failed:
        raise UserError(
            f"{directory}: none of the checkpoints {sorted(failed)} can be read; move the folder "
            "away to start anew"
        )
    return None


def _check_sums(folder: Path) -> None:
    """Raises if files have changed; all processes agree on it. Buckets look after their own."""
    if not isinstance(folder, Path):
        return
    found = checksums.check(folder, jax.process_index(), jax.process_count())
    if not peers.all_of(found != checksums.DAMAGED):
        raise ValueError("its files differ from their checksums")


def restore(manager: ocp.CheckpointManager, step: int, abstract: Abstract) -> Saved:
    """One checkpoint; raises whatever a damaged file makes orbax raise."""
    only_position = ocp.args.Composite(position=ocp.args.JsonRestore())
    position = manager.restore(step, args=only_position)["position"]
    wanted = abstract(position)
    how = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted))
    restored = manager.restore(step, args=ocp.args.Composite(state=how))
    return Saved(step, restored["state"], position)


def tell(line: str) -> None:
    """A line on stderr, at once: other threads may be printing."""
    print(line, file=sys.stderr, flush=True)


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
