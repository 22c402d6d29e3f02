"""The processes of a run among each other: who goes first, and what is left when one is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # nothing public has the coordinator's client
from jax.experimental import multihost_utils

from lavit_jax.errors import UserError

T = TypeVar("T")

TERMINATED = "lavit/terminated"
FIRST_LEAVES_SECONDS = 1.0  # after the others, which its end would break off
LEAVE_SECONDS = 10  # that a stopped process waits for the others to stop
_calls = itertools.count()  # the same on every process
LOST = 75  # the exit status of a process whose others are gone: EX_TEMPFAIL, try again


class SharedMistake(UserError):
    """A mistake that every process raises: all of them end by it, and none is lost."""


def of_first(work: Callable[[], T]) -> T:
    """What the first process finds, on all of them; only that one does the work.

    Args:
      work: gives what JSON can hold.

    Raises:
      SharedMistake: it raised a `UserError`, on one of several.
      jax.errors.JaxRuntimeError: the first process is lost.
    """
    if jax.process_count() == 1:
        return work()
    key = f"lavit/of_first/{next(_calls)}"
    if jax.process_index() == 0:
        try:
            found = work()
        except UserError as error:
            _set(key, json.dumps({"mistake": str(error)}))
            raise SharedMistake(str(error)) from error
        _set(key, json.dumps({"found": found}))
        return found
    told = json.loads(_wait_for(key))
    if "mistake" in told:
        raise SharedMistake(told["mistake"])
    return told["found"]


def first_alone(work: Callable[[], T]) -> T:
    """Does on every process what must not be done by two at once: the first, then the others.

    Raises:
      SharedMistake, jax.errors.JaxRuntimeError: see `of_first`.
    """
    done: list[T] = []
    of_first(lambda: done.append(work()))
    return done[0] if done else work()


@contextlib.contextmanager
def first_holds(claim: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Around work of all processes: the first one holds a claim for them.

    Raises:
      SharedMistake, jax.errors.JaxRuntimeError: see `of_first`.
    """
    with contextlib.ExitStack() as held:

        def hold() -> None:
            held.enter_context(claim)

        of_first(hold)
        yield


def meet() -> None:
    """Waits until every process is here, however long that takes.

    Raises:
      jax.errors.JaxRuntimeError: one of them is lost.
    """
    if jax.process_count() == 1:
        return
    key = f"lavit/meet/{next(_calls)}"
    _set(f"{key}/{jax.process_index()}", "here")
    for index in range(jax.process_count()):
        _wait_for(f"{key}/{index}")


def _client() -> Any:
    """Of the coordinator, which every process knows once it has joined."""
    return distributed.global_state.client


def _set(key: str, value: str) -> None:
    _client().key_value_set(key, value)


def _wait_for(key: str) -> str:
    """Waits until a process has set a key, and gives its value.

    Not by the devices: those give up after a while, half a minute on CPUs, and no signal is heard
    meanwhile.
    """
    while True:
        try:
            return str(_client().blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def all_of(mine: bool) -> bool:
    """Whether every process says yes; all of them ask."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.process_allgather(np.array(mine)).all())


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process at once when an error ends its work, or the others are lost.

    Otherwise it would wait for the others at its exit, and they for it in the middle of a step.
    One process alone is left to itself, and so is a mistake that the others end by as well. The
    status tells whoever starts the processes whether to try again: 2, a mistake of the user's, does
    not go away by that; `LOST` and 1, any other error, may.
    """
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        if jax.process_count() > 1 and not _all_leave():
            line = f"lavit: {_me()} was stopped and leaves the others, who are at work"
            _leave(line, _status(error))
        raise
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, SharedMistake):
            raise
        me = _me()
        if isinstance(error, UserError):
            _leave(f"lavit: error: {me}: {error}", 2)
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
            _leave(
                f"lavit: {me} has lost another one ({reason}); run the same command again on all "
                "of them to go on",
                LOST,
            )
        traceback.print_exc()
        _leave(f"lavit: error: {me} ends by the error above", 1)


def _status(error: SystemExit | KeyboardInterrupt) -> int:
    """The status that a process ends with by it."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error.code, int):
        return error.code
    return 0 if error.code is None else 1


def _all_leave() -> bool:
    """Whether the others end their work as well, within a while."""
    try:
        _client().wait_at_barrier("lavit/leaving", LEAVE_SECONDS * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


class Others:
    """The other processes, told through the coordinator that this one was terminated."""

    def tell(self) -> None:
        """Lets them know."""
        _client().key_value_set(TERMINATED, _me(), allow_overwrite=True)

    def told(self) -> bool:
        """Whether one of them, or this one, was terminated."""
        try:
            return bool(_client().key_value_try_get(TERMINATED))
        except jax.errors.JaxRuntimeError:  # not set, or the coordinator is lost
            return False

    def leaves(self, number: int, leave: bool) -> bool:
        """Whether all leave some work, or go on: what the first of them wants that asks.

        Args:
          number: of the work, the same in each process.
          leave: what this one wants.
        """
        key = f"lavit/leaves/{number}"
        try:
            _set(key, str(leave))
        except jax.errors.JaxRuntimeError:  # one has asked before
            return _wait_for(key) == str(True)
        return leave

    def leave(self) -> None:
        """Waits until all of them end, a while at most; the first one is the coordinator."""
        _all_leave()
        if jax.process_index() == 0:
            time.sleep(FIRST_LEAVES_SECONDS)


def others() -> Others | None:
    """The other processes, if there are any."""
    return Others() if jax.process_count() > 1 else None


def _me() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _leave(line: str, status: int) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
