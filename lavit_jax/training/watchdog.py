"""Tells where a run hangs: dumps the stacks of all threads when no step ends for too long."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

FILE = "hang.txt"


class Watchdog:
    """Waits for `beat`s in a thread of its own; use as a context manager.

    Each hang is told once, on standard error and at the end of `WORKDIR/hang.txt`. The run is left
    alone: what seems to hang may be a long compilation.
    """

    def __init__(self, workdir: Path, seconds: float, process: int = 0) -> None:
        """Does nothing yet.

        Args:
          workdir: where the file goes.
          seconds: without a beat that are a hang; 0 for never.
          process: told in the dump.
        """
        self._path, self._seconds, self._process = workdir / FILE, seconds, process
        self._last = time.monotonic()
        self._told = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """A step has ended, or something else that shows life."""
        self._last = time.monotonic()
        self._told = False

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            still = time.monotonic() - self._last
            if still >= self._seconds and not self._told:
                self._told = True
                self._dump(still)

    def _dump(self, still: float) -> None:
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        header = f"{when} process {self._process}: no step ended for {still:.0f} s\n"
        _stacks(sys.__stderr__, f"warning: {header}")
        try:
            with self._path.open("a") as file:
                _stacks(file, header)
        except OSError as error:
            print(f"warning: {self._path}: {error.strerror}", file=sys.stderr, flush=True)

    def __enter__(self) -> Watchdog:
        self.beat()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._seconds:
            self._thread.join()


def _stacks(file: TextIO | None, header: str) -> None:
    if file is None:
        return
    file.write(header)
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)
