"""Wall time and memory of work that may be stopped and taken up again."""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from lavit_jax import disk

SAVE_SECONDS = 5.0


class Clock:
    """Counts seconds over all sessions in a small file, so that being killed loses little.

    Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before, self._peak = self._read()
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def _read(self) -> tuple[float, float]:
        try:
            stored = json.loads(self._path.read_text())
            return float(stored["seconds"]), float(stored["peak_rss_gb"])
        except (OSError, ValueError, KeyError):
            return 0.0, 0.0

    @property
    def minutes(self) -> float:
        """Working time so far, all sessions."""
        return (self._before + time.monotonic() - self._started) / 60

    @property
    def peak_rss_gb(self) -> float:
        """The most memory any session held at once, in 1e9 bytes."""
        unit = 1 if sys.platform == "darwin" else 1024
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
        return max(self._peak, held)

    def save(self) -> None:
        stored = {"seconds": self.minutes * 60, "peak_rss_gb": self.peak_rss_gb}
        disk.write_text(self._path, json.dumps(stored))

    def _keep(self) -> None:
        while not self._stop.wait(SAVE_SECONDS):
            self.save()

    def __enter__(self) -> Clock:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.save()
