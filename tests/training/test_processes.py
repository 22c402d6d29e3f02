"""Runs of two processes: one that is lost, stopped and started again beside one left alone."""

import contextlib
import errno
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import kills
from benchmarks.kills import Training
from lavit_jax.errors import UserError
from lavit_jax.parallel import peers
from lavit_jax.training import launches
from lavit_jax.training.agreement import Agreement
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.run import train
from lavit_jax.training.saved import saved_steps
from processes import COUNT, environments
from small_run import STEPS as ALONE
from small_run import losses
from tiny import mini_config

# Both kinds of data: pictures with captions, and rows packed of what a frozen tokenizer gives.
# As many as in other tests, whose compiled programs so serve here too.
STEPS = {name: ALONE[name] for name in ("encoder", "unified")}
TOTAL = sum(STEPS.values())
KILLED, TERMINATED = 4, 9  # a step of each, between two saves
OVERRIDES = (
    f"--config.schedule={','.join(STEPS)}",
    *(f"--config.phases.{name}.steps={steps}" for name, steps in STEPS.items()),
    "--config.checkpoint.every=3",
    "--config.log.every=1",
    "--config.log.sample_every=0",
)
SECONDS = 900

Ends = list[tuple[int, str]]


class Pair:
    """Two processes of four devices each that train together."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._trainings = [
            Training(workdir, log, OVERRIDES, env)
            for log, env in zip(logs(workdir), environments())
        ]

    def signal_at(self, step: int, index: int, number: int) -> Ends:
        """Sends one of them a signal once a step is in the metrics."""
        metrics, begun = self._workdir / "metrics.jsonl", time.monotonic()
        while not any(record["step"] >= step for record in read_metrics(metrics)):
            assert time.monotonic() - begun < SECONDS
            time.sleep(0.002)
        self._trainings[index].send(number)
        return self.end()

    def end(self) -> Ends:
        """Exit status and all output of each."""
        return [training.end() for training in self._trainings]


def logs(workdir: Path) -> list[Path]:
    """Where each process says what its steps read."""
    return [workdir / f"batches-{index}.log" for index in range(COUNT)]


def rows_seen(*logs: Path) -> dict[int, list[int]]:
    """What each step read, all processes together, in no order."""
    seen = [kills.examples_seen(log) for log in logs]
    return {step: sorted(row for each in seen for row in each[step]["rows"]) for step in seen[0]}


@dataclass(frozen=True)
class Disturbed:
    """A run of two processes of which one was killed in the first phase, terminated in the second.

    Attributes:
      workdir: of the run, at its end.
      stopped: a copy from when it was terminated.
      ends: how each launch ended.
    """

    workdir: Path
    stopped: Path
    ends: list[Ends]


@pytest.fixture(scope="module")
def disturbed(new_workdir: Callable[[], Path]) -> Disturbed:
    workdir = new_workdir()
    stopped = workdir.with_name(f"{workdir.name}-stopped")
    ends = [
        Pair(workdir).signal_at(KILLED, 1, signal.SIGKILL),
        Pair(workdir).signal_at(TERMINATED, 1, signal.SIGTERM),
    ]
    shutil.copytree(workdir, stopped, symlinks=True)
    ends.append(Pair(workdir).end())
    return Disturbed(workdir, stopped, ends)


@pytest.fixture(scope="module")
def undisturbed(new_workdir: Callable[[], Path], disturbed: Disturbed) -> Path:
    """The work directory of a run of two processes that nothing disturbed."""
    workdir = new_workdir()
    # Saves making them; they are made again if it has another tokenizer by a bit.
    shutil.copy(disturbed.workdir / "visual_ids.npz", workdir)
    ends = Pair(workdir).end()
    assert [status for status, _ in ends] == [0, 0], ends
    return workdir


@pytest.mark.subprocess
def test_when_one_process_is_lost_the_other_ends_and_says_so(disturbed):
    (status, said), (killed, _) = disturbed.ends[0]
    assert killed == -signal.SIGKILL
    assert status not in (0, 2)
    assert "has lost another one" in said or "another task died" in said, said


@pytest.mark.subprocess
def test_when_one_process_is_terminated_both_stop_at_the_same_step_saved(disturbed):
    (_, first), (_, second) = ends = disturbed.ends[1]
    assert [status for status, _ in ends] == [0, 0], first + second
    (saved,) = [line for line in first.splitlines() if line.startswith("saved at step")]
    assert int(saved.split()[3]) == launches.read(disturbed.workdir)[1]["step"] < TOTAL
    assert "saved at" not in second  # the first one speaks for all


@pytest.mark.subprocess
def test_a_disturbed_pair_learns_what_an_undisturbed_one_learns_bit_for_bit(disturbed, undisturbed):
    (status, said), _ = disturbed.ends[2]
    assert status == 0, said
    assert f"of {TOTAL}" in said.partition("going on from step ")[2]
    metrics = [read_metrics(run / "metrics.jsonl") for run in (disturbed.workdir, undisturbed)]
    assert metrics[0] == metrics[1]
    assert [record["step"] for record in metrics[0]] == list(range(1, TOTAL + 1))
    entries = launches.read(disturbed.workdir)
    assert [each["mesh"]["processes"] for each in entries] == [2, 2, 2]
    # Whether the one that is left still gets to say that it failed is a race.
    assert entries[0]["status"] in ("running", "failed")
    assert [each["status"] for each in entries[1:]] == ["stopped", "finished"]


@pytest.mark.subprocess
def test_each_process_of_a_disturbed_pair_sees_what_it_sees_undisturbed(disturbed, undisturbed):
    for mine, alone in zip(logs(disturbed.workdir), logs(undisturbed), strict=True):
        assert kills.examples_seen(mine) == kills.examples_seen(alone)


@pytest.mark.subprocess
def test_two_processes_together_see_and_learn_what_one_does(undisturbed, whole_run):
    first = range(1, STEPS["encoder"] + 1)  # the phase that both have
    together, alone = rows_seen(*logs(undisturbed)), rows_seen(whole_run / "batches.log")
    assert [together[step] for step in first] == [alone[step] for step in first]
    each = (losses(run)[: len(first)] for run in (undisturbed, whole_run))
    np.testing.assert_allclose(*each, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def alone(disturbed: Disturbed) -> Path:
    """The work directory of the run that was terminated, ended by one process alone."""
    workdir = disturbed.stopped
    for log in logs(workdir):
        log.unlink()
    with kills.batches_logged(logs(workdir)[0]):
        train(mini_config(*OVERRIDES), workdir)
    return workdir


def assert_it_went_on_as_if_undisturbed(workdir: Path, undisturbed: Path, *read: Path) -> None:
    begun = launches.read(workdir)[-1]["resumed_from"]
    assert STEPS["encoder"] < begun < TOTAL  # on packed rows
    together = rows_seen(*logs(undisturbed))
    assert rows_seen(*read) == {step: rows for step, rows in together.items() if step > begun}
    np.testing.assert_allclose(losses(workdir), losses(undisturbed), rtol=0, atol=1e-5)


@pytest.mark.subprocess
def test_one_process_alone_goes_on_where_two_stopped(alone, undisturbed):
    assert_it_went_on_as_if_undisturbed(alone, undisturbed, logs(alone)[0])


@pytest.mark.subprocess
def test_two_processes_go_on_where_one_stopped(alone, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(alone, workdir, symlinks=True)
    logs(workdir)[0].unlink()
    *_, last = saved_steps(workdir / "checkpoints")
    shutil.rmtree(workdir / "checkpoints" / str(last))  # as if it was killed before that save
    ends = Pair(workdir).end()
    assert [status for status, _ in ends] == [0, 0], ends
    assert launches.read(workdir)[-1]["mesh"]["processes"] == 2
    assert_it_went_on_as_if_undisturbed(workdir, undisturbed, *logs(workdir))


def test_one_process_alone_agrees_with_itself_at_once(run):
    agreement = Agreement(run.mesh)
    assert [agreement(False), agreement(True)] == [False, True]


def test_several_processes_heed_the_wish_before(run, monkeypatch):
    agreement = Agreement(run.mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    answers = [agreement(wish) for wish in (False, True, False, False)]
    assert answers == [False, False, True, False]


def test_one_process_alone_keeps_its_errors():
    with pytest.raises(KeyError), peers.ending_together():
        raise KeyError
    assert peers.first_alone(lambda: 5) == 5


class Coordinator:
    """What the coordinator's client does in one of two processes whose other one is late."""

    def __init__(self, seconds: int) -> None:
        self.asked, self.told, self._seconds = [], '{"found": null}', seconds

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        self.asked.append(key)
        if len(self.asked) > self._seconds:
            return self.told
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")

    def wait_at_barrier(self, key: str, milliseconds: int) -> None:
        assert milliseconds < 30_000  # what spot machines are given
        if milliseconds < self._seconds * 1000:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")


@pytest.fixture
def second_of_two(monkeypatch):
    def become(seconds: int) -> Coordinator:
        coordinator = Coordinator(seconds)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        monkeypatch.setattr(peers.distributed.global_state, "client", coordinator)
        return coordinator

    return become


def test_the_second_process_waits_for_the_first_however_long_it_works(second_of_two):
    coordinator = second_of_two(seconds=100)
    assert peers.first_alone(lambda: len(coordinator.asked)) == 101
    assert len(set(coordinator.asked)) == 1


def test_the_second_process_ends_by_the_mistake_of_the_first(second_of_two):
    coordinator = second_of_two(seconds=0)
    coordinator.told = '{"mistake": "another process is preparing ids"}'
    for ask in (lambda: peers.of_first(list), lambda: peers.first_alone(list)):
        with (
            pytest.raises(UserError, match="^another process is preparing ids$"),
            peers.ending_together(),  # which leaves at once by any other
        ):
            ask()
    held = peers.first_holds(contextlib.nullcontext(pytest.fail))
    with pytest.raises(UserError, match="another process"), held:
        pytest.fail("went on")


def test_a_first_process_that_is_lost_is_not_waited_for(second_of_two, monkeypatch):
    def lost(key, milliseconds):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset by peer")

    coordinator = second_of_two(seconds=0)
    coordinator.blocking_key_value_get = lost
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        peers.first_alone(lambda: None)


class Left(BaseException):
    """What stands for the end of a process."""


@pytest.fixture
def leaves(monkeypatch):
    def leave(status):
        raise Left(status)

    monkeypatch.setattr(peers.os, "_exit", leave)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (UserError("cannot write run: no room"), 2, ": cannot write run: no room\n"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error\nlavit: error: "),
        (KeyError("a bug"), 1, "KeyError: 'a bug'\nlavit: error: "),
        (ValueError("a bug"), 1, "ValueError: a bug\nlavit: error: "),
        (jax.errors.JaxRuntimeError("UNAVAILABLE"), peers.LOST, "lost another one (UNAVAILABLE)"),
    ],
)
def test_one_of_several_leaves_with_2_by_a_mistake_alone(
    second_of_two, leaves, capfd, error, status, says
):
    second_of_two(seconds=0)
    with pytest.raises(Left, match=f"^{status}$"), peers.ending_together():
        raise error
    said = capfd.readouterr().err
    assert says in said
    assert "process 1 of 2" in said.splitlines()[-1]


def test_a_stopped_process_waits_only_a_while_for_others_that_are_not(second_of_two, leaves, capfd):
    second_of_two(seconds=1)
    with pytest.raises(SystemExit), peers.ending_together():
        raise SystemExit(0)
    second_of_two(seconds=100)
    for ended, status in ((SystemExit(0), 0), (SystemExit(3), 3), (KeyboardInterrupt(), 130)):
        with pytest.raises(Left, match=f"^{status}$"), peers.ending_together():
            raise ended
    assert "process 1 of 2 was stopped and leaves the others" in capfd.readouterr().err
