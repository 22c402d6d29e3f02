"""Freed memory is kept for the next step, where the C library can be told so."""

import platform
import subprocess
import sys

from lavit_jax import allocator

# Maps a block far above glibc's threshold, frees it, and tells how much address space came back.
PROGRAM = """
import ctypes, sys
from lavit_jax.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
size = lambda: int(open("/proc/self/statm").read().split()[0]) * 4096
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = (
    ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
)
block = c.malloc(200 << 20)
before = size()
c.free(block)
print(before - size() > 100 << 20)
"""


def given_back(how: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return done.stdout.strip() == "True"


def test_large_blocks_are_given_back_only_by_default():
    if platform.libc_ver()[0] != "glibc":
        assert not allocator.keep_freed_memory()
        return
    assert given_back("default")
    assert not given_back("keep")
