"""Kills `lavit data prepare` at random moments: what comes out in the end must be what comes out
of a run that nobody disturbs, to the last byte.

    python benchmarks/kill_prepare.py --kills 50
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SHARDS, EACH = 40, 25
SECONDS = 120  # that a run may take


def command(source: Path, destination: Path, workers: int) -> list[str]:
    """Many small tasks, so that a kill falls between and into them."""
    program = [sys.executable, "-m", "lavit_jax", "data", "prepare", str(source), str(destination)]
    return [*program, "--shard-mb", "0.02", "--workers", str(workers)]


def killed(program: list[str], destination: Path, seconds: float) -> bool:
    """Runs a program; kills it so many seconds after its first sign of work, if it still runs.

    Raises:
      RuntimeError: it failed by itself.
    """
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    receipts = len(list((destination / ".work").glob("task-*.json")))
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < SECONDS:
        if len(list((destination / ".work").glob("task-*.json"))) > receipts:
            break
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    status = process.wait()
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(program)} ended with status {status}")
    return status == -signal.SIGKILL


def _tars(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * EACH, (shard + 1) * EACH):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(image, "JPEG")
                members = {"jpg": image.getvalue(), "txt": f"picture {number}".encode()}
                for extension, content in members.items():
                    header = tarfile.TarInfo(f"{number:09d}.{extension}")
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    chance, kills, rounds, same = random.Random(0), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _tars(folder / "src")
        subprocess.run(command(folder / "src", folder / "whole", 1), check=True)
        whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
        while kills < args.kills:
            target = folder / str(rounds)
            program = command(folder / "src", target, args.workers)
            while killed(program, target, chance.uniform(0, 0.4)):
                kills += 1
            subprocess.run(program, check=True)
            rounds += 1
            same += {path.name: path.read_bytes() for path in target.iterdir()} == whole
            print(f"{kills} kills, {same} of {rounds} as undisturbed", file=sys.stderr)
    print(json.dumps({"kills": kills, "data_sets": rounds, "same_to_the_byte": same}))
    return int(same != rounds)


if __name__ == "__main__":
    sys.exit(main())
