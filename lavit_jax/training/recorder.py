"""Reads each step's metrics once the next is under way, so that devices never wait for it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lavit_jax.training.health import Health
from lavit_jax.training.metrics import MetricWriter
from lavit_jax.training.objectives import Batch
from lavit_jax.training.schedule import Phase
from lavit_jax.training.spikes import Spikes

if TYPE_CHECKING:
    from lavit_jax.training.run import Run


class Done(NamedTuple):
    """A step that has been started."""

    step: int
    metrics: dict[str, Any]
    batch: Batch


class Recorder:
    """Writes metrics and watches them, through one phase.

    What it remembers of the steps before is read from their records, so that a run that goes on
    judges as one that was never stopped.

    Attributes:
      skipped: steps in a row, up to the last read, whose gradients were not finite.
      spike: what the last step read has shown of a loss spike; "" for nothing.
      read: the step whose metrics were read last.
      last: that step with its batch, once this has read one.
    """

    def __init__(self, run: Run, phase: Phase, writer: MetricWriter) -> None:
        self._run, self._phase, self._writer = run, phase, writer
        self._pending: Done | None = None
        self._health = Health()
        self._spikes = Spikes(run.config.health.spike)
        self._times: list[float] = []
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self.read: int | None = None
        self.last: Done | None = None
        self.skipped, self.spike = 0, ""
        for record in writer.recent:
            if record["phase"] == phase.name:
                self._judge(record["step"], record)

    def add(self, step: int, metrics: dict[str, Any], batch: Batch) -> None:
        """Takes a step that has been started and reads the one before."""
        self.flush()
        self._pending = Done(step, metrics, batch)

    def flush(self) -> None:
        """Reads the step that has been started last, which waits for it."""
        if self._pending is None:
            return
        self.last, self._pending = self._pending, None
        step = self.last.step
        values = {name: float(v) for name, v in jax.device_get(self.last.metrics).items()}
        rate, left = self._pace(step)
        self._writer.write(step, self._phase.name, values, rate, left)
        self._judge(step, values)
        for name, value in values.items():
            if np.isfinite(value):
                self._sums[name] += value
                self._counts[name] += 1
        for warning in self._health.check(self._phase.name, step - self._phase.start, values):
            self._writer.say(warning)
        if self.spike:
            self._writer.say(f"warning: phase {self._phase.name!r}, step {step}: {self.spike}")

    def means(self) -> dict[str, float]:
        """Means of the metrics since this was asked last."""
        found = {name: self._sums[name] / count for name, count in self._counts.items()}
        self._sums.clear()
        self._counts.clear()
        return found

    @property
    def ahead(self) -> bool:
        """Whether a step has been started whose metrics have not been read."""
        return self._pending is not None

    def _judge(self, step: int, values: Mapping[str, Any]) -> None:
        self.read = step
        self.skipped = self.skipped + 1 if values.get("skipped") else 0
        loss = values["loss"]
        self.spike = "" if loss is None else self._spikes.add(loss)

    def _pace(self, step: int) -> tuple[float, float]:
        """Steps per second and seconds left."""
        self._times = [*self._times[-20:], time.monotonic()]
        gaps = np.diff(self._times)
        rate = 1.0 / float(np.median(gaps)) if len(gaps) else 0.0
        return rate, (self._run.total - step) / rate if rate else 0.0
