"""The processes of a run among each other: who goes first, and what is left when one is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # nothing public has the coordinator's client
from jax.experimental import multihost_utils

T = TypeVar("T")

LEAVE_SECONDS = 10  # that a stopped process waits for the others to stop
_calls = itertools.count()  # the same on every process
LOST = 75  # the exit status of a process whose others are gone: EX_TEMPFAIL, try again


def first_alone(work: Callable[[], T]) -> T:
    """Does on every process what must not be done by two at once: the first, then the others.

    Raises:
      jax.errors.JaxRuntimeError: the first process is lost.
    """
    if jax.process_count() == 1:
        return work()
    key = f"lavit/first_alone/{next(_calls)}"
    if jax.process_index() == 0:
        found = work()
        _set(key)
        return found
    _wait_for(key)
    return work()


def meet() -> None:
    """Waits until every process is here, however long that takes.

    Raises:
      jax.errors.JaxRuntimeError: one of them is lost.
    """
    if jax.process_count() == 1:
        return
    key = f"lavit/meet/{next(_calls)}"
    _set(f"{key}/{jax.process_index()}")
    for index in range(jax.process_count()):
        _wait_for(f"{key}/{index}")


def _client() -> Any:
    """Of the coordinator, which every process knows once it has joined."""
    return distributed.global_state.client


def _set(key: str) -> None:
    _client().key_value_set(key, "done")


def _wait_for(key: str) -> None:
    """Waits until a process has set a key.

    Not by the devices: those give up after a while, half a minute on CPUs, and no signal is heard
    meanwhile.
    """
    while True:
        try:
            _client().blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        else:
            return


def all_of(mine: bool) -> bool:
    """Whether every process says yes; all of them ask."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())


@contextlib.contextmanager
def ending_together(mistake: Callable[[Exception], str]) -> Iterator[None]:
    """Ends this process at once when an error ends its work, or the others are lost.

    Otherwise it would wait for the others at its exit, and they for it in the middle of a step.
    One process alone is left to itself.

    Args:
      mistake: what to say of an error that is the user's.
    """
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        if jax.process_count() > 1 and not _all_leave():
            status = 130 if isinstance(error, KeyboardInterrupt) else 0
            _leave(f"lavit: {_me()} was stopped and leaves the others, who are at work", status)
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        me = _me()
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
            _leave(
                f"lavit: {me} has lost another one ({reason}); run the same command again on all "
                "of them to go on",
                LOST,
            )
        _leave(f"lavit: error: {me}: {mistake(error)}", 2)


def _all_leave() -> bool:
    """Whether the others end their work as well, within a while."""
    try:
        _client().wait_at_barrier("lavit/leaving", LEAVE_SECONDS * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _me() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _leave(line: str, status: int) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
