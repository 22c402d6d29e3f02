"""Kills a small training run at random moments, also in the middle of saves: what comes out in the
end must be what comes out of a run that nobody disturbs, to the last bit.

    python benchmarks/kills.py --kills 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from lavit_jax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[1]
STEPS = {"encoder": 15, "select": 12, "quantize": 12, "unified": 21}
OVERRIDES = (
    *(f"--config.phases.{name}.steps={steps}" for name, steps in STEPS.items()),
    "--config.checkpoint.every=3",
    "--config.log.every=1",
)
SECONDS = 300  # that a launch may take to its first sign of work
# When to kill: a while after the launch has done a step, or has begun to save.
STEP, SAVE = "step", "save"


@contextlib.contextmanager
def batches_logged(path: Path) -> Iterator[None]:
    """Writes down which examples every step reads, as training inside goes on."""
    from lavit_jax.training import phase_start

    compiled_step = phase_start.compiled_step

    def logged(run: Any, phase: Any) -> Any:
        step_fn = compiled_step(run, phase)

        def step(state: Any, batch: Any) -> Any:
            _log(path, int(state.step) + 1, batch)
            return step_fn(state, batch)

        return step

    phase_start.compiled_step = logged
    try:
        yield
    finally:
        phase_start.compiled_step = compiled_step


def rows_of(batch: Mapping[str, Any]) -> list[int]:
    """A checksum of all that a step reads, for each row that this process has of it."""
    held = {name: _held(batch[name]) for name in sorted(batch)}
    digests = [0] * len(next(iter(held.values())))
    for array in held.values():
        for place, row in enumerate(array):
            digests[place] = zlib.crc32(np.ascontiguousarray(row).tobytes(), digests[place])
    return digests


def _held(array: Any) -> np.ndarray:
    """The rows of a batch's array that this process has."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    parts = {part.index[0].start or 0: part.data for part in array.addressable_shards}
    return np.concatenate([np.asarray(parts[first]) for first in sorted(parts)])


def _log(path: Path, step: int, batch: Mapping[str, Any]) -> None:
    """The step, its rows' checksums, and the places in the data set where the batch has them."""
    index = _held(batch["index"]).tolist() if "index" in batch else None
    with path.open("a") as file:
        record = {"step": step, "rows": rows_of(batch), "index": index}
        file.write(json.dumps(record) + "\n")


def examples_seen(path: Path) -> dict[int, Any]:
    """What each step read when it was done for the last time, which is the time that counts."""
    found: dict[int, Any] = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # killed while it was written
            record = json.loads(line)
            found[record.pop("step")] = record
    return found


class Training:
    """`lavit train` with a log of its batches, in a process of its own."""

    def __init__(
        self,
        workdir: Path | str,
        log: Path,
        overrides: Sequence[str],
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._workdir, self._log = workdir, log
        arguments = ["--config", "configs/mini.py", "--workdir", str(workdir), *overrides]
        self._lines = self._logged()
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--log", str(log), "--", "train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )

    def kill(self, when: str, seconds: float) -> tuple[int, str]:
        """Kills so many seconds after the first step or save; exit status and all output."""
        begun = time.monotonic()
        sign = self._saving if when == SAVE else lambda: self._logged() > self._lines
        while self._process.poll() is None and not sign():
            if time.monotonic() - begun > SECONDS:
                raise TimeoutError(f"no {when} in {SECONDS} s")
            time.sleep(0.002)
        time.sleep(seconds)
        return self.signal(signal.SIGKILL)

    def signal(self, *numbers: int) -> tuple[int, str]:
        """Sends signals one after the other; exit status and all output."""
        for number in numbers:
            self.send(number)
            time.sleep(0.05 * (len(numbers) > 1))
        return self.end()

    def send(self, number: int) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Waits; exit status and all output."""
        output, _ = self._process.communicate()
        return self._process.returncode, output

    def _logged(self) -> int:
        return self._log.read_text().count("\n") if self._log.exists() else 0

    def _saving(self) -> bool:
        return self._logged() > self._lines and any(
            "tmp" in path.name for path in Path(self._workdir, "checkpoints").glob("*")
        )


def moments(count: int, seed: int) -> list[tuple[str, float]]:
    """When to kill: every third time within a save, else anywhere in a stretch of steps."""
    chance = random.Random(seed)
    return [
        (SAVE, chance.uniform(0, 0.05)) if number % 3 == 1 else (STEP, chance.uniform(0, 0.6))
        for number in range(count)
    ]


def _run(workdir: Path, log: Path) -> str:
    status, output = Training(workdir, log, OVERRIDES).end()
    if status:
        raise SystemExit(f"training ended with status {status}:\n{output}")
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        whole = folder / "whole"
        _run(whole, folder / "whole.log")
        expected = read_metrics(whole / "metrics.jsonl"), examples_seen(folder / "whole.log")
        kills = saving = rounds = same = 0
        while kills < args.kills:
            workdir, log = folder / str(rounds), folder / f"{rounds}.log"
            shutil.copytree(whole / "data", workdir / "data")
            for when, seconds in moments(args.kills - kills, args.seed + rounds):
                status, output = Training(workdir, log, OVERRIDES).kill(when, seconds)
                if status == 0:
                    break
                if status != -signal.SIGKILL:
                    raise SystemExit(f"a launch ended with status {status}:\n{output}")
                kills += 1
                saving += any((workdir / "checkpoints").glob("*tmp*"))
                print(f"{kills} kills, the last {seconds:.3f} s after a {when}", file=sys.stderr)
            _run(workdir, log)
            rounds += 1
            same += (read_metrics(workdir / "metrics.jsonl"), examples_seen(log)) == expected
    found = {"kills": kills, "within_a_save": saving, "runs": rounds, "same_to_the_bit": same}
    print(json.dumps(found))
    return int(same != rounds)


def _logged_train(log: str, arguments: Sequence[str]) -> int:
    from lavit_jax.cli.main import main as lavit

    with batches_logged(Path(log)):
        return lavit(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--log"]:
        sys.exit(_logged_train(sys.argv[2], sys.argv[4:]))
    sys.exit(main())
