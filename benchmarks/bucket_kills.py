"""Kills a small training run in a bucket at random moments: what comes out in the end must be what
comes out of a run on a disk that nobody disturbs, to the last bit, and after each kill every
checkpoint that counts as complete must be readable. A server on this machine plays the bucket.

    pip install 'lavit_jax[gcs]' gcp-storage-emulator
    python benchmarks/bucket_kills.py --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kills
import orbax.checkpoint as ocp
from etils import epath

from lavit_jax import disk
from lavit_jax.training import storage
from lavit_jax.training.checkpoints import finished, saved_steps

BUCKET = "lavit"
LATEST = 1.5  # seconds after a launch's first step: one or two saves


def variables(port: int) -> dict[str, str]:
    """What makes both clients, gcsfs and tensorstore, ask a server on this machine."""
    url = f"http://localhost:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }


def serve(port: int, log: Path) -> subprocess.Popen[bytes]:
    """Starts the server with an empty bucket in memory."""
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--in-memory"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--default-bucket", BUCKET],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://localhost:{port}/")
            return server
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"no server came up: {log.read_text()}")


def unreadable(place: Any) -> list[int]:
    """Steps of checkpoints that count as complete and cannot be restored."""
    wrong = []
    for step in saved_steps(place):
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                checkpointer.restore(place / str(step) / "state")
        except Exception as error:  # whatever orbax raises
            print(f"step {step}: {error}", file=sys.stderr)
            wrong.append(step)
    return wrong


def _unfinished(place: Any) -> int:
    """How many checkpoints are half written or half removed."""
    return sum(not finished(folder) for folder in place.iterdir()) if place.is_dir() else 0


def _metrics(workdir: Any) -> list[dict[str, Any]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _run(workdir: Any, log: Path, env: Mapping[str, str]) -> None:
    status, output = kills.Training(workdir, log, kills.OVERRIDES, env).end()
    if status:
        raise SystemExit(f"training ended with status {status}:\n{output}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=9023)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        server = serve(args.port, folder / "server.log")
        try:
            os.environ.update(variables(args.port))
            os.environ["TMPDIR"] = str(folder / "tmp")  # what a machine keeps of a run
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            disk.hush_orbax()
            _run(folder / "whole", folder / "whole.log", {})
            expected = (
                _metrics(folder / "whole"),
                kills.examples_seen(folder / "whole.log"),
            )
            killed = unfinished = rounds = same = 0
            wrong: list[int] = []
            while killed < args.kills:
                workdir, log = storage.folder(f"gs://{BUCKET}/{rounds}"), folder / f"{rounds}.log"
                while killed < args.kills:
                    launch = kills.Training(workdir, log, kills.OVERRIDES)
                    status, output = launch.kill(kills.STEP, chance.uniform(0, LATEST))
                    if status != -signal.SIGKILL:
                        if status:
                            raise SystemExit(f"a launch ended with status {status}:\n{output}")
                        break
                    killed += 1
                    place = epath.Path(f"gs://{BUCKET}/{rounds}/checkpoints")
                    unfinished += bool(_unfinished(place))
                    wrong += unreadable(place)
                    print(f"{killed} kills; complete: {saved_steps(place)}", file=sys.stderr)
                _run(workdir, log, {})
                same += (_metrics(workdir), kills.examples_seen(log)) == expected
                rounds += 1
        finally:
            server.terminate()
            server.wait()
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
