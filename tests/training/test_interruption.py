import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lavit_jax.training.interruption import HANDLED, Interruption, ending_well
from processes import COUNT, environments


def test_a_signal_is_remembered_and_work_goes_on():
    with Interruption() as interruption:
        interruption.stop_if_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested()
        assert interruption.name == "SIGTERM"


@pytest.mark.parametrize(
    ("number", "ends", "status"),
    [(signal.SIGTERM, SystemExit, (0,)), (signal.SIGINT, KeyboardInterrupt, ())],
)
def test_a_terminated_process_succeeds_and_an_interrupted_one_does_not(number, ends, status):
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        with pytest.raises(ends) as ended:
            interruption.stop_if_requested()
    assert ended.value.args == status


@pytest.mark.parametrize("first", HANDLED)
def test_a_second_ctrl_c_stops_at_once(first, capfd):
    with Interruption():
        os.kill(os.getpid(), first)
        assert "stopping after this step" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_work_with_nothing_to_save_ends_well_too():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, ending_well():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_changes_nothing():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.name == "Ctrl-C"


@pytest.fixture
def terminated_by_default():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_sigterm_stays_harmless_after_the_work_up_to_the_end(terminated_by_default):
    with pytest.raises(SystemExit), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.stop_if_requested()
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_other_processes_were_asked_counts():
    with Interruption(agree=lambda mine: True) as interruption:
        assert interruption.requested()
        with pytest.raises(SystemExit) as ended:
            interruption.stop_if_requested()
    assert ended.value.code == 0


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in HANDLED]
    with Interruption():
        assert all(signal.getsignal(n) is not old for n, old in zip(HANDLED, before))
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_other_threads_leave_signals_alone():
    before = [signal.getsignal(number) for number in HANDLED]
    seen = []

    def work():
        with Interruption() as interruption:
            seen.extend(signal.getsignal(number) for number in HANDLED)
            interruption.stop_if_requested()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


def test_what_may_be_left_unfinished_is_left_at_once():
    with Interruption() as interruption:
        assert interruption.unless_requested(lambda: 5) == 5
        done = []

        def work():
            done.append("begun")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("ended")

        assert interruption.unless_requested(work) is None
        assert interruption.unless_requested(work) is None  # nor is anything begun any more
        assert interruption.requested()
    assert done == ["begun"]


class Others:
    """What stands for other processes; `terminated` if one of them is, `on` if they go on."""

    def __init__(self, terminated=False, on=False):
        self.terminated, self.on, self.done = terminated, on, []

    def tell(self):
        self.done.append("told")

    def told(self):
        return self.terminated

    def leaves(self, number, leave):
        return leave and not self.on

    def leave(self):
        self.done.append("left")


def test_one_of_several_processes_leaves_nothing_unfinished():
    with Interruption(others=Others()) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.unless_requested(lambda: 5) == 5


# Hashing stands for compiling: for minutes no Python runs in the main thread.
COMPILES = """
import contextlib, hashlib, sys
from lavit_jax.training import interruption

interruption.GRACE_SECONDS = 0.2
with interruption.Interruption() as stopping:
    lost = stopping.nothing_to_lose(lambda: print("last", flush=True))
    with lost if sys.argv[1] == "nothing" else contextlib.nullcontext():
        print("compiling", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))
    print("compiled", stopping.requested())
"""


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("lost", "rounds", "says"),
    [("nothing", (1 << 31) - 1, "last\n"), ("a step", 1 << 20, "compiled True\n")],
)
def test_while_a_program_compiles_sigterm_is_heard_where_nothing_is_lost(lost, rounds, says):
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILES, lost, str(rounds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "compiling\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == says
    assert process.returncode == 0


@pytest.fixture
def leaves(monkeypatch):
    """Statuses a process would have left with, had it not been one of tests."""
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr("lavit_jax.training.interruption.GRACE_SECONDS", 0.1)
    return statuses


def test_what_ends_within_the_grace_is_not_left(leaves):
    before = signal.set_wakeup_fd(-1)
    with Interruption() as stopping:
        with stopping.nothing_to_lose(lambda: None):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.requested()
        with pytest.raises(SystemExit), stopping.nothing_to_lose(lambda: None):
            pytest.fail("begun in spite of a signal from before")
    assert signal.set_wakeup_fd(-1) == before
    assert not leaves


def terminated(stopping, last):
    with stopping, stopping.nothing_to_lose(last):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.4)


def test_what_goes_on_for_longer_is_left(leaves, capfd):
    terminated(Interruption(), lambda: None)
    assert leaves == [0]
    assert "SIGTERM: stopped; all is saved\n" in capfd.readouterr().err


# What stands for a process's end does not end it: only the first end counts.
@pytest.mark.parametrize("others", [None, Others(terminated=True)])
def test_a_save_that_fails_is_told_and_never_taken_for_done_by_a_second_look(leaves, capfd, others):
    failures = [OSError("no room for a save under way")]  # orbax tells of a failed save once

    def last():
        if failures:
            raise failures.pop()

    with Interruption(others=others) as stopping, stopping.nothing_to_lose(last):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    assert leaves[0] == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "stopped;" in line]
    assert said[0] == "SIGTERM: stopped; not all is saved: no room for a save under way"


def test_one_of_several_processes_tells_the_others_and_leaves_with_them(leaves):
    others = Others()
    terminated(Interruption(others=others), lambda: others.done.append("last"))
    assert (others.done, leaves) == (["told", "last", "left"], [0])


def test_one_of_several_processes_goes_on_where_the_others_do(leaves):
    others = Others(on=True)
    terminated(Interruption(others=others), lambda: others.done.append("last"))
    assert (others.done, leaves) == (["told"], [])


def test_the_others_are_told_of_a_signal_from_before(leaves):
    others = Others()
    with Interruption(agree=lambda mine: False, others=others) as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        with stopping.nothing_to_lose(lambda: None):
            time.sleep(0.4)
    assert (others.done, leaves) == (["told", "left"], [0])


def test_one_that_another_was_terminated_of_leaves_too(leaves, monkeypatch):
    monkeypatch.setattr("lavit_jax.training.interruption.POLL_SECONDS", 0.05)
    for terminated in (False, True):
        others = Others(terminated)
        with Interruption(others=others) as stopping, stopping.nothing_to_lose(lambda: None):
            time.sleep(0.4)
        assert set(leaves) == ({0} if terminated else set())  # here no exit is the last
        assert ("left" in others.done) == terminated


PAIR = """
import hashlib, sys
from lavit_jax.parallel import peers, start
from lavit_jax.training import interruption

start.start()
interruption.GRACE_SECONDS = 0.2
with interruption.Interruption(others=peers.others()) as stopping:
    with stopping.nothing_to_lose(lambda: print("last", flush=True)):
        print("compiling", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", (1 << 31) - 1)
"""


@pytest.mark.subprocess
@pytest.mark.parametrize("index", range(COUNT))
def test_while_a_program_compiles_sigterm_to_one_of_two_processes_ends_both(index):
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR], stdout=subprocess.PIPE, text=True, env=os.environ | env
        )
        for env in environments()
    ]
    try:
        for process in pair:
            assert process.stdout is not None
            assert process.stdout.readline() == "compiling\n"
        pair[index].send_signal(signal.SIGTERM)
        assert [process.communicate(timeout=60)[0] for process in pair] == ["last\n"] * COUNT
        assert [process.returncode for process in pair] == [0] * COUNT
    finally:
        for process in pair:
            process.kill()
