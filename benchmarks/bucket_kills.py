"""Kills a small training run in a bucket at random moments: what comes out in the end must be what
comes out of a run on a disk that nobody disturbs, to the last bit, and after each kill every
checkpoint that counts as complete must be readable. A server on this machine plays the bucket.

    pip install 'lavit_jax[gcs]'
    python benchmarks/bucket_kills.py --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import bucket_server
import kills
import orbax.checkpoint as ocp

from lavit_jax import disk
from lavit_jax.training import storage
from lavit_jax.training.saved import finished, saved_steps

BUCKET = "lavit"
LATEST = 6.0  # seconds after a launch's first step: some saves and removals


def unreadable(place: Any) -> list[int]:
    """Steps of checkpoints that count as complete and cannot be restored."""
    wrong = []
    warnings.simplefilter("ignore")  # that it was not told of devices
    for step in saved_steps(place):
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.restore(place / str(step) / "state")
        except Exception as error:  # whatever orbax raises
            print(f"step {step}: {error}", file=sys.stderr)
            wrong.append(step)
    return wrong


def _unfinished(place: Any) -> list[str]:
    """Names of checkpoints that are half written or half removed."""
    folders = place.iterdir() if place.is_dir() else ()
    return [folder.name for folder in folders if not finished(folder)]


def _metrics(workdir: Any) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _run(workdir: Any, log: Path) -> None:
    status, output = kills.Training(str(workdir), log, kills.OVERRIDES).end()
    if status:
        raise SystemExit(f"training ended with status {status}:\n{output}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name, bucket_server.serving() as server:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ.update(bucket_server.variables(server.port))
        os.environ["TMPDIR"] = str(folder / "tmp")  # what a machine keeps of a run
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        disk.hush_orbax()
        _run(folder / "whole", folder / "whole.log")
        expected = _metrics(folder / "whole"), kills.examples_seen(folder / "whole.log")
        killed = unfinished = rounds = same = 0
        wrong: list[int] = []
        while killed < args.kills:
            workdir, log = storage.folder(f"gs://{BUCKET}/{rounds}"), folder / f"{rounds}.log"
            place = workdir / "checkpoints"
            while killed < args.kills:
                launch = kills.Training(str(workdir), log, kills.OVERRIDES)
                status, output = launch.kill(kills.STEP, chance.uniform(0, LATEST))
                if status == 0:
                    break
                if status != -signal.SIGKILL:
                    raise SystemExit(f"a launch ended with status {status}:\n{output}")
                killed += 1
                half = _unfinished(place)
                unfinished += bool(half)
                wrong += unreadable(place)
                print(f"{killed} kills; complete {saved_steps(place)}, not {half}", file=sys.stderr)
            _run(workdir, log)
            same += (_metrics(workdir), kills.examples_seen(log)) == expected
            rounds += 1
    found = {
        "kills": killed,
        "within_a_save_or_removal": unfinished,
        "runs": rounds,
        "same_to_the_bit": same,
        "complete_but_unreadable": len(wrong),
    }
    print(json.dumps(found))
    return int(same != rounds or bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
