"""SIGTERM and Ctrl-C: asked for at any moment, heeded between steps."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn, Protocol, TypeVar

T = TypeVar("T")

HANDLED = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 5.0  # of the 30 that spot machines have
POLL_SECONDS = 0.25  # between questions whether another process was terminated


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


class Others(Protocol):
    """The other processes, while the devices are not there to ask them by."""

    def tell(self) -> None:
        """Lets them know that this one is to end."""

    def told(self) -> bool:
        """Whether one of them, or this one, is to end."""

    def leaves(self, number: int, leave: bool) -> bool:
        """Whether all leave some work, or go on: what the first of them wants that asks.

        Args:
          number: of the work, the same in each process.
          leave: what this one wants.
        """

    def leave(self) -> None:
        """Waits until all of them are about to end."""


class _LeftOff(BaseException):
    """A signal came in the middle of what may be left unfinished."""


class Interruption:
    """Remembers a signal until the work it fell into is done.

    Use as a context manager around work that asks `requested()` where it can stop. A Ctrl-C after
    the first signal stops at once; another SIGTERM changes nothing, up to the process's end.
    Outside the main thread signals stay as they are.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool, others: Others | None = None) -> None:
        """Starts with nothing to remember.

        Args:
          agree: from this process's wish to stop to that of all of them; see `Agreement`.
          others: if there are any; they would wait for one that leaves something off.
        """
        self._agree, self._others = agree, others
        self._signal: signal.Signals | None = None
        self._leaves_off = False
        self._works = 0
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
        if self._others is not None:
            return work()
        with contextlib.suppress(_LeftOff):
            try:
                self._leaves_off = True
                return None if self._signal is not None else work()
            finally:
                self._leaves_off = False
        return None

    @contextlib.contextmanager
    def nothing_to_lose(self, last: Callable[[], None]) -> Iterator[None]:
        """Within, SIGTERM ends what takes over `GRACE_SECONDS` more, as a kill but for the status.

        No handler of Python's runs while a program compiles, and that may take longer than there
        is time. Of several processes all end, whichever got the signal: they enter one by one and
        come to the end together.

        Args:
          last: is done before, once, on a thread of its own; where it raises, the status is 2.
        """
        if not self._before:
            yield
            return
        numbers, woken = os.pipe()
        os.set_blocking(woken, False)
        over, one = threading.Event(), threading.Lock()
        self._works += 1
        number, others = self._works, self._others

        def watch() -> None:
            while self._terminated(numbers) and not over.wait(GRACE_SECONDS):
                with one, contextlib.suppress(Exception):  # that of a coordinator that is lost
                    if over.is_set() or (others is not None and not others.leaves(number, True)):
                        return
                    _end(last, others)

        watching = threading.Thread(target=watch, name="sigterm", daemon=True)
        watching.start()
        before = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        try:
            self.stop_if_requested()  # by a signal from before
            if self._signal is signal.SIGTERM:  # of which the others do not know yet
                os.write(woken, bytes([signal.SIGTERM]))
            yield
            if others is not None and others.leaves(number, False):
                watching.join()  # it is about to end this process
        finally:
            with one:
                over.set()
            signal.set_wakeup_fd(before)
            os.close(woken)
            watching.join()
            os.close(numbers)

    def _terminated(self, numbers: int) -> bool:
        """Waits for SIGTERM, here or in another process; False once `numbers` has ended.

        Args:
          numbers: where signals' numbers come from.
        """
        poll = select.poll()
        poll.register(numbers, select.POLLIN)
        pause = None if self._others is None else POLL_SECONDS * 1000
        while True:
            if poll.poll(pause):
                received = os.read(numbers, 1)
                if not received:
                    return False
                if received[0] == signal.SIGTERM:
                    with contextlib.suppress(Exception):  # that of a coordinator that is lost
                        if self._others is not None:
                            self._others.tell()
                    return True
            elif self._others is not None and self._others.told():
                return True

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


def _end(last: Callable[[], None], others: Others | None) -> None:
    """Does what is left to do and ends this process, all of them where there are several."""
    status, said = 0, "all is saved"
    try:
        try:
            last()
        except Exception as error:  # which may not be raised a second time
            status, said = 2, f"not all is saved: {str(error).strip() or type(error).__name__}"
        os.write(2, f"\nSIGTERM: stopped; {said}\n".encode())
        if others is not None:
            others.leave()
    finally:
        os._exit(status)
