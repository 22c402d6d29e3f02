"""A disk that takes nothing more: one clear line, and everything as it was."""

import threading
import time

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
