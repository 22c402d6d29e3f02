"""Keeps two machines from preparing one folder of a bucket: whoever is at work there says so.

A bucket has no locks that end with their process. So a claim is an object that is made only where
there is none, and that its owner writes anew every few seconds; one that stays as it is was left
by a run that is dead, and is taken over.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lavit_jax.errors import UserError

CLAIM = ".work/claim.json"
BEAT_SECONDS = 10.0
SILENT_SECONDS = 45.0  # without a beat, after which a claim is nobody's
READS = 10  # of a claim that is not whole


class Place(Protocol):
    """What a claim needs of a `Store`."""

    url: str

    def read_json(self, name: str) -> Any: ...
    def write_json(self, name: str, document: Any) -> None: ...
    def create(self, name: str, document: Any) -> bool: ...
    def remove(self, name: str) -> None: ...


@contextlib.contextmanager
def held(place: Place, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a place's claim, and lets go of it at the end.

    Raises:
      UserError: another holds it.
    """
    mine = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    mine |= {"who": f"{_user()}@{mine['host']}, process {mine['pid']}", "beat": 0}
    while not place.create(CLAIM, mine):
        if _is(_read(place), mine):  # the answer to a first try was lost on the way
            break
        _wait_for_silence(place, say)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(place, mine, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        if _is(_read(place), mine):
            place.remove(CLAIM)


def _wait_for_silence(place: Place, say: Callable[[str], None]) -> None:
    """Removes a claim that nobody keeps up."""
    seen = _read(place)
    if seen is None:
        return
    if not _dead(seen):
        say(f"{place.url} was claimed by {seen['who']}: waiting to see whether it is at work")
        deadline = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(BEAT_SECONDS / 5)
            now = _read(place)
            if now is None:
                return
            if now != seen:
                raise UserError(f"another process is preparing {place.url}: {now['who']}")
    if _read(place) == seen:
        place.remove(CLAIM)


def _read(place: Place) -> Any:
    """The claim, None where there is none.

    Objects of buckets change as a whole. Files behind other stores may be read while they are
    written; those are read again.
    """
    for _ in range(READS - 1):
        with contextlib.suppress(UserError):
            return place.read_json(CLAIM)
        time.sleep(BEAT_SECONDS / 100)
    return place.read_json(CLAIM)


def _dead(claim: dict[str, Any]) -> bool:
    """Whether its process was of this machine and is gone."""
    if claim["host"] != socket.gethostname():
        return False
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _beat(place: Place, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(Exception):  # the network may be back before others lose patience
            if not _is(_read(place), mine):
                return
            mine["beat"] += 1
            place.write_json(CLAIM, mine)


def _is(claim: Any, mine: dict[str, Any]) -> bool:
    return claim is not None and claim["owner"] == mine["owner"]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as containers have them
        return str(os.getuid())
