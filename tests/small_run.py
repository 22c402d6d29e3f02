"""A run of a few steps of every phase, in this process or in one of its own."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
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
UNSEEN = (*OVERRIDES, "--config.log.sample_every=0")  # for runs whose samples no test looks at


def losses(workdir: Path) -> list[tuple[int, float]]:
    """Step and loss of every line of a run's metrics."""
    return [(record["step"], record["loss"]) for record in read_metrics(workdir / "metrics.jsonl")]


@contextlib.contextmanager
def nearly_full_disk(size: int) -> Iterator[None]:
    """Inside, no file of this process can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run_apart(workdir: Path, *arguments: str) -> int:
    """`lavit train` with `configs/mini.py`, in a process of its own; its exit status."""
    command = ["-m", "lavit_jax", "train", "--config", "configs/mini.py", "--workdir", str(workdir)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run([sys.executable, *command, *arguments], env=env, check=False).returncode
