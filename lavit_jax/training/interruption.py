"""SIGTERM and Ctrl-C: asked for at any moment, heeded between steps."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

HANDLED = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def ending_well() -> Iterator[None]:
    """Within, SIGTERM ends what has nothing to save as it ends training: with status 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        # `Interruption` may have had all further ones ignored, up to the process's end.
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, before)


class _LeftOff(BaseException):
    """A signal came in the middle of what may be left unfinished."""


class Interruption:
    """Remembers a signal until the work it fell into is done.

    Use as a context manager around work that asks `requested()` where it can stop. A Ctrl-C after
    the first signal stops at once; another SIGTERM changes nothing, up to the process's end.
    Outside the main thread signals stay as they are.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool, *, alone: bool = True) -> None:
        """Starts with nothing to remember.

        Args:
          agree: from this process's wish to stop to that of all of them; see `Agreement`.
          alone: whether there are no others, which would wait for one that leaves something off.
        """
        self._agree, self._alone = agree, alone
        self._signal: signal.Signals | None = None
        self._leaves_off = False
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Whether to stop; every process asks equally often."""
        return self._agree(self._signal is not None)

    @property
    def name(self) -> str:
        """What asked: "SIGTERM" or "Ctrl-C"."""
        return "Ctrl-C" if self._signal is signal.SIGINT else "SIGTERM"

    def stop(self) -> NoReturn:
        """Ends the work: a terminated process succeeds (0), an interrupted one does not (130)."""
        if self._signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)

    def stop_if_requested(self) -> None:
        """Ends work that has nothing to save."""
        if self.requested():
            self.stop()

    def unless_requested(self, work: Callable[[], T]) -> T | None:
        """Does what is long and may be left unfinished, up to a signal: ask `requested()` next.

        Of several processes each does all of it.

        Returns:
          What the work gives; None if it was left off.
        """
        if not self._alone:
            return work()
        with contextlib.suppress(_LeftOff):
            try:
                self._leaves_off = True
                return None if self._signal is not None else work()
            finally:
                self._leaves_off = False
        return None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in HANDLED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and isinstance(error, SystemExit):
            # On its way out with everything saved; schedulers that ask twice must not kill it.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self._signal is not None and received is signal.SIGINT:
            self._signal = received
            raise KeyboardInterrupt
        if self._signal is None:
            self._signal = received
            # Not print: the signal may have come in the middle of one.
            again = "Ctrl-C again" if received is signal.SIGINT else "Ctrl-C"
            line = f"\n{self.name}: stopping after this step; {again} stops at once\n"
            os.write(2, line.encode())
            if self._leaves_off:
                raise _LeftOff
