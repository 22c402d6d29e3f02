"""Tells the allocators of the C library and of Python what suits training."""

from __future__ import annotations

import ctypes
import gc

# glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory instead of giving it back; False where there is no glibc.

    XLA:CPU allocates and frees the memory of a program's intermediate values at every call. By
    default glibc maps large blocks anew each time, and the kernel then fills in page after page:
    half as much time again as the training step itself takes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {
        _MMAP_MAX: 0,
        _TRIM_THRESHOLD: 2**31 - 1,
        _TOP_PAD: 64 << 20,
        _ARENA_MAX: 1,  # threads' own arenas cannot hold large blocks
    }
    results = [mallopt(name, value) for name, value in settings.items()]
    return all(results)


def collect_rarely() -> None:
    """Lets Python look for unused cycles only once many objects more have been made.

    Tracing a step makes millions that stay; by default all are looked through again and again, in a
    tenth of the time that a start takes.
    """
    gc.set_threshold(50_000, 20, 50)
