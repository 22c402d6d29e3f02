"""Metrics to `metrics.jsonl`, TensorBoard and the console."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import tensorboardX
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

    Use as a context manager; `total` counts the steps of the whole run.
    """

    def __init__(self, workdir: Path, start: int, total: int, every: int) -> None:
        self._path = workdir / "metrics.jsonl"
        self._truncate(start)
        self._file = self._path.open("a", buffering=1)
        self._every = every
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=True
        )
        self._console = Console(stderr=True)
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
        self._total = total

    def _truncate(self, start: int) -> None:
        records = read_metrics(self._path)
        kept = [record for record in records if record["step"] <= start]
        aside = self._path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(aside, self._path)

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
        self._file.close()
        self._board.close()

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
        record = {"step": step, "phase": phase}
        record |= {k: v if math.isfinite(v) else None for k, v in sorted(metrics.items())}
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
            for name, value in metrics.items():
                self._board.add_scalar(f"{phase}/{name}", value, step)
            if not self._live:
                pace = f"{rate:.2f} step/s  {_clock(left)} left"
                print(f"{phase} {step}/{self._total}  {pace}  {shown}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Puts what was written where a kill cannot reach it, as a checkpoint needs it."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def say(self, message: str) -> None:
        """One line on the console, above the progress bar."""
        self._console.print(message, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    return f"{minutes}:{seconds:02d}"
