"""A run of two processes that are stopped, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from lavit_jax.parallel import peers, start
from lavit_jax.training import launches
from lavit_jax.training.agreement import Agreement
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.run import train
from small_run import losses
from tiny import mini_config

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 24  # of more, rounding shows in the loss
OVERRIDES = (
    "--config.schedule=encoder",
    f"--config.phases.encoder.steps={TOTAL}",
    "--config.checkpoint.every=5",
    "--config.log.every=1",
)
SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


class Pair:
    """Two processes of four devices each that train together."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        port = free_port()
        arguments = ["--config", "configs/mini.py", "--workdir", str(workdir), *OVERRIDES]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "lavit_jax", "train", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=4 "
                    "--xla_backend_optimization_level=0",
                    start.COORDINATOR: f"localhost:{port}",
                    start.COUNT: "2",
                    start.INDEX: str(index),
                },
            )
            for index in range(2)
        ]

    def signal_at(self, step: int, index: int, number: int) -> list[tuple[int, str]]:
        """Sends one of them a signal once a step is in the metrics."""
        metrics, begun = self._workdir / "metrics.jsonl", time.monotonic()
        while not any(record["step"] >= step for record in read_metrics(metrics)):
            assert time.monotonic() - begun < SECONDS
            time.sleep(0.002)
        self._processes[index].send_signal(number)
        return self.end()

    def end(self) -> list[tuple[int, str]]:
        """Exit status and all output of each."""
        said = [process.communicate(timeout=SECONDS)[0] for process in self._processes]
        return list(zip([process.returncode for process in self._processes], said))


@pytest.fixture(scope="module")
def pairs(new_workdir: Callable[[], Path]) -> tuple[Path, list[list[tuple[int, str]]]]:
    """A work directory, and how each launch of two processes ended."""
    workdir = new_workdir()
    ends = [
        Pair(workdir).signal_at(7, 1, signal.SIGKILL),
        Pair(workdir).signal_at(11, 1, signal.SIGTERM),
    ]
    return workdir, ends


@pytest.mark.subprocess
def test_when_one_process_is_lost_the_other_ends_and_says_so(pairs):
    (status, said), (killed, _) = pairs[1][0]
    assert killed == -signal.SIGKILL
    assert status not in (0, 2)
    assert "has lost another one" in said or "another task died" in said, said


@pytest.mark.subprocess
def test_when_one_process_is_terminated_both_stop_at_the_same_step_saved(pairs):
    (_, first), (_, second) = ends = pairs[1][1]
    assert [status for status, _ in ends] == [0, 0], first + second
    (saved,) = [line for line in first.splitlines() if line.startswith("saved at step")]
    assert saved.split()[3] == str(losses(pairs[0])[-1][0])
    assert "saved at" not in second  # the first one speaks for all


@pytest.mark.subprocess
def test_two_processes_go_on_where_they_were_and_learn_what_one_learns(pairs, new_workdir):
    workdir, ends = pairs
    assert f"going on from step 5 of {TOTAL}" in ends[1][0][1]
    alone = new_workdir()
    train(mini_config(*OVERRIDES), alone)
    disturbed = losses(workdir)
    assert len(disturbed) > 10
    np.testing.assert_allclose(disturbed, losses(alone)[: len(disturbed)], rtol=0, atol=1e-5)
    entries = launches.read(workdir)
    assert [each["mesh"]["processes"] for each in entries] == [2, 2]
    # Whether the one that is left still gets to say that it failed is a race.
    assert entries[0]["status"] in ("running", "failed")
    assert entries[1]["status"] == "stopped"


def test_one_process_alone_agrees_with_itself_at_once(run):
    agreement = Agreement(run.mesh)
    assert [agreement(False), agreement(True)] == [False, True]


def test_several_processes_heed_the_wish_before(run, monkeypatch):
    agreement = Agreement(run.mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    answers = [agreement(wish) for wish in (False, True, False, False)]
    assert answers == [False, False, True, False]


def test_one_process_alone_keeps_its_errors():
    with pytest.raises(KeyError), peers.ending_together(str):
        raise KeyError
    assert peers.first_alone(lambda: 5) == 5
