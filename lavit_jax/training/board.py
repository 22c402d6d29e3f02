"""TensorBoard's event files, written by the thread that asks.

Those that a thread of tensorboardX writes can hang a run: on a full disk that thread ends, and
whoever adds to its full queue waits forever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECONDS = 30.0  # between those nobody asks for


class Board:
    """Scalars in an event file of its own; whatever cannot be written raises an OSError."""

    def __init__(self, folder: Path, start: int) -> None:
        """Begins a file.

        Args:
          folder: of all event files.
          start: the first step that will be written; TensorBoard drops older files' from there on.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        self._add(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a step's scalars, by tag."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(Event(step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Puts what was written on the disk."""
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        self._events.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
