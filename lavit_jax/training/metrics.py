"""Metrics to `metrics.jsonl`, TensorBoard and the console."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.parallel import peers
from lavit_jax.training.board import Board

# Shown on the console line, in this order, where a phase has them.
SHOWN = (
    "loss",
    "cosine_loss",
    "accuracy",
    "kept_mean",
    "codebook_in_use",
    "text_accuracy",
    "visual_loss",
    "denoise_noisy",
    "denoise_clear",
)
RECENT = 1000  # records that stay in memory


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a half-written last line is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class MetricWriter:
    """Writes one JSON object a step; on resume drops what came after the checkpoint's step.

    Use as a context manager. Of several processes the first one writes and speaks.

    Attributes:
      dropped: records that the start dropped: steps that have to be done again.
      recent: the last records, oldest first.
    """

    def __init__(
        self, workdir: Path, start: int, total: int, every: int, *, writes: bool = True
    ) -> None:
        """Drops records after the start.

        Args:
          workdir: of the run.
          start: the step it goes on from.
          total: steps of the whole run.
          every: steps between lines on the console and in TensorBoard.
          writes: whether this is the process that writes; the others only remember.
        """
        self._path, self._events = workdir / "metrics.jsonl", workdir / "tensorboard"
        self._total, self._every, self._writes = total, every, writes
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.dropped = 0
        self._console = Console(stderr=True, quiet=not writes)
        self._live = self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(
            "starting", total=total, completed=start, rate="", shown=""
        )
        self._open(start)

    def _open(self, start: int) -> None:
        records = read_metrics(self._path)
        kept = [record for record in records if record["step"] <= start]
        self.dropped = len(records) - len(kept)
        self.recent.clear()
        self.recent.extend(kept)
        if not self._writes:
            return
        disk.write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a", buffering=1)
        with disk.writing(self._events):
            self._board = Board(self._events, start + 1)

    def _close(self) -> None:
        if not self._writes:
            return
        with disk.writing(self._path):
            self._file.close()
        with disk.writing(self._events):
            self._board.close()

    def go_back(self, step: int) -> None:
        """Drops the records after a step; every process does."""
        if self._writes:
            self._close()
            self._open(step)
        # In a bucket the others have a copy of the file that is as old as the launch.
        first = peers.of_first(lambda: list(self.recent))
        self.recent.clear()
        self.recent.extend(first)

    def __enter__(self) -> MetricWriter:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        # What could not be written has been told by then.
        with contextlib.nullcontext() if error is None else contextlib.suppress(UserError):
            self._close()

    def write(
        self, step: int, phase: str, metrics: Mapping[str, float], rate: float, left: float
    ) -> None:
        """Records a step.

        Args:
          step: global step, from 1.
          phase: its phase's name.
          metrics: finite or not; JSON gets null for what is not finite.
          rate: steps per second.
          left: estimated seconds to the end of the run.
        """
        record: dict[str, Any] = {"step": step, "phase": phase}
        record |= {k: v if math.isfinite(v) else None for k, v in sorted(metrics.items())}
        self.recent.append(record)
        if not self._writes:
            return
        with disk.writing(self._path):
            self._file.write(json.dumps(record) + "\n")
        shown = "  ".join(f"{k} {metrics[k]:.3f}" for k in SHOWN if k in metrics)
        self._progress.update(
            self._task,
            completed=step,
            description=phase,
            rate=f"{rate:.2f} step/s",
            shown=shown,
        )
        if step % self._every == 0 or step == self._total:
            with disk.writing(self._events):
                self._board.add(step, {f"{phase}/{name}": value for name, value in metrics.items()})
            if not self._live:
                pace = f"{rate:.2f} step/s  {_clock(left)} left"
                print(f"{phase} {step}/{self._total}  {pace}  {shown}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Puts what was written where a kill cannot reach it, as a checkpoint needs it."""
        if not self._writes:
            return
        with disk.writing(self._path):
            os.fsync(self._file.fileno())
        with disk.writing(self._events):
            self._board.flush()

    def say(self, message: str) -> None:
        """One line on the console, above the progress bar."""
        self._console.print(message, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    return f"{minutes}:{seconds:02d}"
