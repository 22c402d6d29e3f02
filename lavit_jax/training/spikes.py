"""Loss spikes: losses far above what the steps before led to expect."""

from __future__ import annotations

import math
import statistics
from collections import deque

WINDOW, LEAST = 100, 30  # losses that say what is usual, at most and at least
SUCCESSIVE = 3  # one high loss is an odd batch
FLOOR = 0.01  # of the median: the least a deviation counts as
NORMAL = 1.4826  # median absolute deviations in a standard deviation


class Spikes:
    """Reads losses one after the other."""

    def __init__(self, deviations: float) -> None:
        """Starts without a past.

        Args:
          deviations: above the median of the steps before, that are a spike; 0 looks for none.
        """
        self._deviations = deviations
        self._usual: deque[float] = deque(maxlen=WINDOW)
        self._high: list[float] = []

    def add(self, loss: float) -> str:
        """Takes a step's loss.

        Returns:
          What has happened, once three steps in a row are a spike; else "".
        """
        if not self._deviations or not math.isfinite(loss):
            return ""
        if not self._is_high(loss):
            self._usual.extend([*self._high, loss])
            self._high.clear()
            return ""
        self._high.append(loss)
        if len(self._high) < SUCCESSIVE:
            return ""
        usual = statistics.median(self._usual)
        # What is high now is usual from here on: the same rise is told once.
        self._usual.clear()
        self._usual.extend(self._high)
        self._high.clear()
        return f"the loss rose from {usual:.4g} to {loss:.4g}"

    def _is_high(self, loss: float) -> bool:
        if len(self._usual) < LEAST:
            return False
        middle = statistics.median(self._usual)
        spread = NORMAL * statistics.median(abs(value - middle) for value in self._usual)
        return loss > middle + self._deviations * max(spread, FLOOR * abs(middle))
