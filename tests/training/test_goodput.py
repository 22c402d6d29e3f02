import pytest

from benchmarks import durability
from lavit_jax.training import goodput
from lavit_jax.training.goodput import Goodput


class Time:
    def __init__(self):
        self.now = 10.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


def test_every_second_goes_to_the_innermost_thing(time):
    meter = Goodput(10.0, time)
    time.now += 3  # setup
    with meter.spending("steps"):
        time.now += 5
        with meter.spending("input"):
            time.now += 1
        time.now += 4
    time.now += 2
    seconds = meter.seconds()
    assert (seconds["setup"], seconds["steps"], seconds["input"]) == (5, 9, 1)
    assert sum(seconds.values()) == time.now - 10
    assert goodput.share(seconds) == pytest.approx(9 / 15)


@pytest.mark.parametrize(("idle", "lost"), [(True, 3), (False, 0)])
def test_waiting_is_lost_only_where_the_devices_are_idle(time, idle, lost):
    meter = Goodput(10.0, time)
    with meter.spending("steps"):
        time.now += 5
        with meter.waiting("input", lambda: idle):
            time.now += 3
        time.now += 1
    assert (meter.seconds()["input"], meter.seconds()["steps"]) == (lost, 9 - lost)


def test_an_error_ends_what_it_fell_into(time):
    meter = Goodput(10.0, time)
    with pytest.raises(KeyError), meter.spending("checkpoint"):
        time.now += 2
        raise KeyError
    time.now += 1
    assert (meter.seconds()["checkpoint"], meter.seconds()["setup"]) == (2, 1)


def test_the_start_of_a_launch_that_goes_on_is_lost_to_a_restart(time):
    meter = Goodput(10.0, time)
    time.now += 2
    meter.restarts()
    time.now += 3
    with meter.spending("steps"):
        time.now += 1
    assert (meter.seconds()["restart"], meter.seconds()["setup"]) == (5, 0)


def test_only_the_first_call_compiles(time):
    meter = Goodput(10.0, time)

    def work(seconds):
        time.now += seconds
        return seconds

    timed = goodput.first_call(work, lambda: meter.spending("compile"))
    with meter.spending("steps"):
        assert [timed(7), timed(1), timed(1)] == [7, 1, 1]
    assert (meter.seconds()["compile"], meter.seconds()["steps"]) == (7, 2)


def test_the_line_for_people_leaves_out_what_took_no_time():
    line = goodput.describe({"steps": 90.0, "compile": 10.0, "input": 0.0})
    assert line == "90.0% of 100.0 s went into steps; lost to compile 10.0 s"
    assert goodput.describe({}) == "0.0% of 0.0 s went into steps; lost to nothing"


def test_a_process_began_before_now():
    import time

    assert 0 < time.monotonic() - goodput.process_start() < 24 * 3600


@pytest.mark.parametrize(
    ("overhead", "resume", "status"), [(0.019, 19.9, 0), (0.021, 5.0, 1), (-0.01, 20.1, 1)]
)
def test_a_missed_bar_of_durability_is_told_and_fails(overhead, resume, status, capsys):
    found = {"checkpoint_overhead": overhead, "resume_to_first_step_seconds": resume}
    assert durability.judge(found) == status
    shown = capsys.readouterr().out
    assert f"{100 * overhead:+.1f} % of step time (bar 2 %)" in shown
    assert f"{resume:.1f} s (bar 20 s)" in shown
