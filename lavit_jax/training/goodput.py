"""Goodput: the share of wall time that went into steps, and what the rest was lost to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

STEPS = "steps"
# What time is lost to. "setup" is a first launch's data, start and changes of phase; "restart" is
# what a launch that goes on does until its first new step, steps done before and lost among it.
LOST = ("setup", "compile", "input", "checkpoint", "samples", "restart")


class Goodput:
    """Charges every second of a launch to one thing; the innermost one where they are nested."""

    def __init__(self, started: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with "setup".

        Args:
          started: when the launch began, by the clock.
          clock: gives seconds.
        """
        self._clock, self._now, self._since = clock, "setup", started
        self._seconds = dict.fromkeys((STEPS, *LOST), 0.0)

    def charge(self, what: str) -> str:
        """From now on time goes to `what`; what it went to before."""
        before, now = self._now, self._clock()
        self._seconds[before] += now - self._since
        self._now, self._since = what, now
        return before

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Charges what is done within to `what`."""
        before = self.charge(what)
        try:
            yield
        finally:
            self.charge(before)

    @contextlib.contextmanager
    def waiting(self, what: str, idle: Callable[[], bool]) -> Iterator[None]:
        """As `spending`, but only where the devices are idle afterwards: else they lost nothing.

        An upper bound: they may have become idle only in the middle of it.

        Args:
          what: time is lost to.
          idle: whether the devices have nothing left to do.
        """
        around, begun = self.charge(what), self._since
        try:
            yield
        finally:
            self.charge(around)
        if not idle():
            spent = self._since - begun
            self._seconds[what] -= spent
            self._seconds[around] += spent

    def restarts(self) -> None:
        """What was set up so far, and what follows outside of steps, is lost to a restart."""
        self.charge("restart")
        self._seconds["restart"] += self._seconds.pop("setup")
        self._seconds["setup"] = 0.0

    def seconds(self) -> dict[str, float]:
        """Seconds so far by what they went to."""
        self.charge(self._now)
        return dict(self._seconds)


def first_call(
    function: Callable[P, T], around: Callable[[], contextlib.AbstractContextManager[None]]
) -> Callable[P, T]:
    """The function, with something around its first call: jax compiles in it."""
    called = False

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal called
        if called:
            return function(*args, **kwargs)
        called = True
        with around():
            return function(*args, **kwargs)

    return call


def share(seconds: Mapping[str, float]) -> float:
    """The productive share of wall time."""
    return seconds.get(STEPS, 0.0) / max(sum(seconds.values()), 1e-9)


def describe(seconds: Mapping[str, float]) -> str:
    """One line for people."""
    lost = ", ".join(f"{what} {_time(seconds[what])}" for what in LOST if seconds.get(what))
    total = _time(sum(seconds.values()))
    return f"{share(seconds):.1%} of {total} went into steps; lost to {lost or 'nothing'}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def process_start() -> float:
    """When this process began, by `time.monotonic`; now, where the system does not say."""
    now = time.monotonic()
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = float(file.read().rpartition(")")[2].split()[19])
        begun = ticks / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - begun)
    except (OSError, ValueError, IndexError, AttributeError):
        return now
