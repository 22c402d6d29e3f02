"""Disks and buckets that fail: no damage of the data."""

import contextlib
import errno
import io
import os

import fsspec
import pytest

from lavit_jax.data.sources import files, open_source
from lavit_jax.errors import UserError
from shards import (
    everything,
    image_folder,
    json_folder,
    pair,
    parquet,
    tf_examples,
    write_tar,
    zipped,
)


def test_a_plan_is_not_made_of_images_that_a_disk_does_not_give(tmp_path, monkeypatch):
    path = image_folder(tmp_path / "a", 10, size=1000)
    stat = os.stat

    def failing_stat(place, **options):
        if str(place).endswith("1.jpg"):
            raise ERRORS[0]
        return stat(place, **options)

    monkeypatch.setattr(files.os, "stat", failing_stat)
    with pytest.raises(UserError, match=r"cannot read .*/1.jpg: Input/output error"):
        open_source(str(path)).parts()


class Failing(io.BytesIO):
    """A file of which a disk, or a bucket's client, gives the first bytes and then an error."""

    def __init__(self, data, good, error):
        super().__init__(data)
        self._good, self._error = good, error

    def _checked(self, size):
        if self.tell() + (len(self.getvalue()) if size < 0 else size) > self._good:
            raise self._error

    def read(self, size=-1):
        self._checked(size)
        return super().read(size)

    def readline(self, size=-1):
        self._checked(1)
        return super().readline(size)


class ClientError(Exception):
    """As gcsfs's: of no kind but Exception."""


ERRORS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError("Forbidden: no billing account"),
    ClientError("429: slow down\nand more"),
]


@pytest.fixture
def failing(monkeypatch):
    """While inside, files break off with an error."""

    @contextlib.contextmanager
    def fail(share, error, suffix=""):
        def opened(path, mode):
            with open(path, "rb") as file:
                data = file.read()
            good = int(len(data) * share) if str(path).endswith(suffix) else len(data) + 10**6
            return Failing(data, good, error)

        with monkeypatch.context() as patched:
            patched.setattr(files, "open", opened, raising=False)
            yield

    return fail


def small_sources(folder):
    """A shard of each kind that is read through Python."""
    rows = [{"file_name": f"{n}.jpg", "caption": "c"} for n in range(3)]
    (folder / "x.txt").write_text("one\n\ntwo\n\n" * 5)
    return [
        write_tar(folder / "x.tar", [member for n in range(40) for member in pair(n)]),
        zipped(folder / "z", 40),
        parquet(folder / "x.parquet", 40),
        json_folder(folder, rows),
        folder / "x.txt",
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_disk_or_a_bucket_that_fails_is_no_damage(tmp_path, failing, error):
    for path in small_sources(tmp_path):
        plan = open_source(str(path)).parts()
        with failing(0.5, error, path.name), pytest.raises(UserError) as told:
            for part in plan:
                list(open_source(str(path)).read(part))
        words = getattr(error, "strerror", None) or str(error).splitlines()[0]
        assert str(told.value) == f"cannot read {path}: {words}"


def test_a_plan_is_not_made_of_what_a_disk_does_not_give(tmp_path, failing):
    path = parquet(tmp_path / "x.parquet", 40)
    told = "cannot read .*x.parquet: Input/output error"
    with failing(0.0, ERRORS[0]), pytest.raises(UserError, match=told):
        open_source(str(path)).parts()


@pytest.mark.parametrize("kind", range(6))
def test_a_shard_that_vanished_is_no_damage(tmp_path, kind):
    paths = [*small_sources(tmp_path), tf_examples(tmp_path / "a", [{"text": [b"x"]}])]
    source = open_source(str(paths[kind]))
    plan = source.parts()
    paths[kind].unlink()
    with pytest.raises(UserError, match=f"^cannot read {paths[kind]}: No such file or directory$"):
        list(source.read(plan[0]))


def test_an_image_that_a_disk_does_not_give_is_not_a_missing_one(tmp_path, failing):
    places = [
        "0.jpg",
        ".",
        "\ud800.jpg",
        "gone.jpg",
        "0.jpg/x.jpg",
        "x" * 300 + ".jpg",
        "folder",
        "self.jpg",
    ]
    (tmp_path / "folder").mkdir()
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    path = json_folder(tmp_path, [{"image": place, "caption": "c"} for place in places])
    reasons = [getattr(item, "reason", "good") for item in everything(path)]
    assert reasons == ["good", *["no image"] * 7]
    for error in ERRORS:
        told = f"^cannot read {tmp_path}/0.jpg: "
        with failing(0.5, error, ".jpg"), pytest.raises(UserError, match=told):
            everything(path)


def test_an_image_that_is_not_in_the_bucket_is_a_missing_one(tmp_path):
    memory = fsspec.filesystem("memory")
    places = ["0.jpg", "\ud800.jpg", "gone.jpg"]
    json_folder(tmp_path, [{"image": place, "caption": "c"} for place in places])
    memory.put(f"{tmp_path}/", "/images/", recursive=True)
    found = everything("memory://images/metadata.jsonl")
    assert [getattr(item, "reason", "good") for item in found] == ["good", *["no image"] * 2]


@pytest.mark.parametrize("number", [errno.EILSEQ, errno.EINVAL])
def test_a_name_that_no_file_can_have_is_a_missing_image(tmp_path, monkeypatch, number):
    def refusing(path, mode):
        if str(path).endswith(".jpg"):
            raise OSError(number, os.strerror(number))
        return open(path, mode)

    path = json_folder(tmp_path, [{"image": "0.jpg", "caption": "c"}])
    monkeypatch.setattr(files, "open", refusing, raising=False)
    assert [item.reason for item in everything(path)] == ["no image"]


def test_an_array_record_that_a_disk_does_not_give_is_no_damage(tmp_path):
    path = tf_examples(tmp_path, [{"text": [os.urandom(100_000)]} for _ in range(40)])
    source = open_source(str(path))
    (plan,) = source.parts()
    found = source.read(plan)
    next(found)
    (number,) = (
        int(link.name)
        for link in (tmp_path / "/proc/self/fd").iterdir()
        if link.exists() and link.readlink() == path
    )
    folder = os.open(tmp_path, os.O_RDONLY)  # whose read() fails
    os.dup2(folder, number)
    os.close(folder)
    with pytest.raises(UserError, match=f"^cannot read {path}: Is a directory$"):
        list(found)
