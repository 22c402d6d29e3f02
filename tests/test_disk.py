"""A disk that takes nothing more: one clear line, and everything as it was."""

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lavit_jax import disk
from lavit_jax.errors import UserError
from small_run import nearly_full_disk


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "run.json"
    disk.write_text(path, "before")
    with nearly_full_disk(100), pytest.raises(UserError, match=f"write {path}: File too large"):
        disk.write_text(path, "after" * 100)
    assert path.read_text() == "before"
    disk.write_bytes(path, b"after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_gone_is_named_by_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(UserError, match="write .*/gone/run.json: No such file or directory"):
        disk.write_text(tmp_path / "gone" / "run.json", "{}")


def test_the_reason_is_found_wherever_a_library_puts_it():
    wrapped = ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [...]")
    assert disk.reason(wrapped) == "No space left on device"
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 768 vs 662")  # noqa: B904 as torch does
    except RuntimeError as error:
        assert disk.reason(error) == "No space left on device"
    assert disk.reason(FileNotFoundError(2, "No such file or directory")) is None


def test_errors_of_other_kinds_pass(tmp_path):
    with pytest.raises(ZeroDivisionError), disk.writing(tmp_path):
        _ = 1 / 0


def test_what_threads_still_write_to_is_removed(tmp_path):
    until = time.monotonic() + 0.3

    def write():
        while time.monotonic() < until:
            (tmp_path / "half").mkdir(exist_ok=True)
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    disk.remove_unfinished(lambda: tmp_path.glob("half"))
    thread.join()
    assert not list(tmp_path.iterdir())


HOLDS = """
import subprocess, sys, time
from pathlib import Path
from lavit_jax import disk

with disk.locked(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", "open(0).read()"], close_fds=False)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.subprocess
def test_a_lock_ends_with_its_process_whatever_its_children_do(tmp_path):
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), disk.locked(lock):
            pytest.fail("held twice")
        process.kill()
        process.wait()
        with disk.locked(lock):  # while the child waits for a line
            pass


def test_where_a_file_system_has_no_locks_or_is_shared_there_is_none(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", fails)
        with disk.locked(tmp_path / "lock"), disk.locked(tmp_path / "lock"):
            pass
    monkeypatch.setattr(disk, "_file_system", lambda path: "nfs4")
    with disk.locked(tmp_path / "lock"), disk.locked(tmp_path / "lock"):
        pass


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="the system does not say")
def test_the_kind_of_a_file_system_is_known():
    assert disk._file_system(Path("/proc/self")) == "proc"
