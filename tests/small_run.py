"""A run of a few steps of every phase, in this process or in one of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

from lavit_jax.training.metrics import read_metrics

STEPS = {
    "encoder": 6,
    "select": 4,
    "quantize": 4,
    "reconstruct": 2,
    "selector_alone": 2,
    "quantize_rest": 2,
    "unified": 8,
}
TOTAL = 22  # of the schedule "together"
OVERRIDES = (
    *(f"--config.phases.{name}.steps={steps}" for name, steps in STEPS.items()),
    "--config.checkpoint.every=3",
    "--config.log.every=1",
)


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Step and loss of every line of a run's metrics."""
    return [(record["step"], record["loss"]) for record in read_metrics(workdir / "metrics.jsonl")]


class Program:
    """`lavit train` with `configs/mini.py` and `OVERRIDES`, in a process of its own."""

    def __init__(self, workdir: Path, *arguments: str, config: str = "configs/mini.py") -> None:
        self._metrics = workdir / "metrics.jsonl"
        command = ["-m", "lavit_jax", "train", "--config", config, "--workdir", str(workdir)]
        self._process = subprocess.Popen(
            [sys.executable, *command, *OVERRIDES, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def signal_at(self, step: int, number: int) -> tuple[int, str]:
        """Sends a signal once a step is in the metrics; the exit status and all output."""
        while self._process.poll() is None and not self._reached(step):
            time.sleep(0.005)
        self._process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        """The exit status and all output."""
        output, _ = self._process.communicate()
        return self._process.returncode, output

    def _reached(self, step: int) -> bool:
        return self._metrics.exists() and f'"step": {step},' in self._metrics.read_text()
