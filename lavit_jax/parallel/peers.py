"""The processes of a run among each other: who goes first, and what is left when one is lost."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")

LOST = 75  # the exit status of a process whose others are gone: EX_TEMPFAIL, try again


def first_alone(work: Callable[[], T]) -> T:
    """Does on every process what must not be done by two at once: the first, then the others."""
    if jax.process_count() == 1:
        return work()
    if jax.process_index() == 0:
        found = work()
        multihost_utils.sync_global_devices("the first process is done")
        return found
    multihost_utils.sync_global_devices("the first process is done")
    return work()


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
    except Exception as error:
        if jax.process_count() == 1:
            raise
        me = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
            _leave(
                f"lavit: {me} has lost another one ({reason}); run the same command again on all "
                "of them to go on",
                LOST,
            )
        _leave(f"lavit: error: {me}: {mistake(error)}", 2)


def _leave(line: str, status: int) -> NoReturn:
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
