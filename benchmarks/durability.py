"""What it costs a run to be resumable: checkpoints while it goes on, and the way back to its first
step once it was killed.

    python benchmarks/durability.py WORKDIR --config configs/twemoji.py

WORKDIR is a finished run of that config, such as the quickstart's; it is only read. From the last
checkpoint before the final phase, copies of it train that phase a while, in turns with checkpoints
at the config's own cadence and without any, and are killed. Exit status 1: a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lavit_jax import config as configs
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.schedule import make_schedule

ROOT = Path(__file__).resolve().parents[1]
NEVER = 10**9  # steps between checkpoints
WARM = 20  # steps before the clock starts
SECONDS = 900  # that a launch may take
# The bars: what checkpoints may add to the time of steps, and how soon a killed run is at a step.
MOST_OVERHEAD = 0.02
MOST_RESUME_SECONDS = 20.0


def copy_of(workdir: Path, last: int, target: Path) -> Path:
    """The work directory as it was at checkpoint `last`; its data are shared."""
    target.mkdir()
    for entry in workdir.iterdir():
        if entry.name == "data":
            (target / "data").symlink_to(entry.resolve())
        elif entry.name == "compiled":  # by launches before this one, as in a real run
            shutil.copytree(entry, target / "compiled")
        elif entry.is_file():
            shutil.copy(entry, target)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (target / "metrics.jsonl").write_text("".join(lines[:last]))  # one a step
    shutil.copytree(workdir / "checkpoints" / str(last), target / "checkpoints" / str(last))
    return target


@contextlib.contextmanager
def training(spec: str, workdir: Path, every: int) -> Iterator[subprocess.Popen[bytes]]:
    """`lavit train` in a process of its own, killed in the end."""
    command = ["-m", "lavit_jax", "train", "--config", spec, "--workdir", str(workdir)]
    process = subprocess.Popen(
        [sys.executable, *command, f"--config.checkpoint.every={every}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def wait_for(step: int, workdir: Path, process: subprocess.Popen[bytes]) -> float:
    """When the metrics of a step are there, by `time.monotonic`."""
    path, begun = workdir / "metrics.jsonl", time.monotonic()
    while not (path.is_file() and (records := read_metrics(path)) and records[-1]["step"] >= step):
        if process.poll() is not None:
            raise SystemExit(f"training ended with status {process.returncode} before step {step}")
        if time.monotonic() - begun > SECONDS:
            raise SystemExit(f"no step {step} in {SECONDS} s")
        time.sleep(0.02)
    return time.monotonic()


def measure(spec: str, workdir: Path, start: int, every: int, steps: int) -> tuple[float, float]:
    """Seconds from the launch to its first step, and of `steps` steps once it is warm."""
    begun = time.monotonic()
    with training(spec, workdir, every) as process:
        first = wait_for(start + 1, workdir, process)
        warm = wait_for(start + WARM, workdir, process)
        last = wait_for(start + WARM + steps, workdir, process)
    return first - begun, last - warm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--config", default="configs/twemoji.py", metavar="FILE.py[:ARG]")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = configs.load_config(args.config, [])
    start, every = make_schedule(config)[-1].start, config.checkpoint.every
    # A whole number of cadences has as many checkpoints wherever it begins.
    with_saves, without, resumes = [], [], []
    with tempfile.TemporaryDirectory() as place:
        for turn in range(args.repeats):
            for cadence, found in ((every, with_saves), (NEVER, without)):
                workdir = copy_of(args.workdir, start, Path(place) / f"{turn}-{cadence}")
                resume, seconds = measure(args.config, workdir, start, cadence, every)
                resumes.append(resume)
                found.append(seconds)
                shutil.rmtree(workdir)
                print(f"every {cadence}: {seconds:.1f} s, resumed in {resume:.1f} s", flush=True)
    ratio = statistics.median(with_saves) / statistics.median(without)
    result = {
        "checkpoint_every": every,
        "checkpoint_overhead": ratio - 1,
        "seconds_with": with_saves,
        "seconds_without": without,
        "resume_to_first_step_seconds": statistics.median(resumes),
        "resumes": resumes,
    }
    print(json.dumps(result))
    return judge(result)


def judge(result: Mapping[str, Any]) -> int:
    """Prints each bar beside what was measured; 1 if one is missed."""
    overhead, resume = result["checkpoint_overhead"], result["resume_to_first_step_seconds"]
    print(f"checkpoints: {100 * overhead:+.1f} % of step time (bar {100 * MOST_OVERHEAD:g} %)")
    print(f"resume to the first step: {resume:.1f} s (bar {MOST_RESUME_SECONDS:g} s)")
    return int(overhead > MOST_OVERHEAD or resume > MOST_RESUME_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
