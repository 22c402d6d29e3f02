"""Scalars for TensorBoard: records of `Event` messages, written without importing anything heavy.

Ours, since the packages that do this load torch or TensorFlow where they are installed, which takes
each start of training seconds.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_COUNT = itertools.count()
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # how protocol buffers store a field


class Board:
    """One file of events; what it says replaces what earlier files say from its first step on."""

    def __init__(self, folder: Path, first: int) -> None:
        """Makes the file.

        Args:
          folder: for all files of a run.
          first: the step from which on earlier files do not count.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        # Unbuffered: what a full disk leaves behind must not come up again when this is closed.
        self._file = (folder / f"{name}.{os.getpid()}.{next(_COUNT)}").open("ab", buffering=0)
        self._write(_field(3, _BYTES, b"brain.Event:2"))
        self._write(_field(2, _VARINT, first) + _field(7, _BYTES, _field(1, _VARINT, 1)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records a step's values by name."""
        with np.errstate(over="ignore"):
            stored = {name: np.asarray(value, "<f4").tobytes() for name, value in values.items()}
        each = (
            _field(1, _BYTES, name.encode()) + _field(2, _FLOAT, value)
            for name, value in stored.items()
        )
        summary = b"".join(_field(1, _BYTES, value) for value in each)
        self._write(_field(2, _VARINT, step) + _field(5, _BYTES, summary))

    def close(self) -> None:
        """Nothing can be recorded afterwards."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        """One record: length and content, each with its checksum."""
        event = _field(1, _DOUBLE, struct.pack("<d", time.time())) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _field(number: int, kind: int, value: int | bytes) -> bytes:
    key = _varint(number << 3 | kind)
    if isinstance(value, int):
        return key + _varint(value)
    return key + (_varint(len(value)) if kind == _BYTES else b"") + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + _varint(rest)


def _table() -> list[int]:
    """Of CRC-32C, a byte's remainder by its value."""
    table = list(range(256))
    for _ in range(8):
        table = [each >> 1 ^ (0x82F63B78 if each & 1 else 0) for each in table]
    return table


_TABLE = _table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
