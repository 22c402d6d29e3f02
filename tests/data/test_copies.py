"""Data sets in a bucket; `memory://` stands for one."""

import json
import os
import shutil
import threading
from pathlib import Path

import fsspec
import pytest

from lavit_jax.data import copies, datasets, prepared
from lavit_jax.data.copies import bring, place
from lavit_jax.errors import UserError
from shards import keys

URL = "memory://bucket/set"


@pytest.fixture
def bucket(data_set):
    """The data set in a bucket, whose files a test may change."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{data_set}/", "/bucket/set/", recursive=True)
    copies._copy.cache_clear()
    yield memory
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def reads(bucket, monkeypatch):
    names: list[str] = []
    open_file = copies._open

    def counted(url, name):
        names.append(name)
        return open_file(url, name)

    monkeypatch.setattr(copies, "_open", counted)
    return names


def test_a_data_set_is_copied_once_and_is_the_same(data_set, bucket, reads, tmp_path):
    told: list[str] = []
    where = place(URL, tmp_path, told.append)
    assert [line.partition(" to ")[0] for line in told] == [f"copying {URL}"]
    assert [prepared.Prepared(where)[n].key for n in range(120)] == keys(120)
    for shard in json.loads((data_set / "index.json").read_text())["shards"]:
        assert (data_set / shard["name"]).read_bytes() == (Path(where) / shard["name"]).read_bytes()
    assert len(reads) == len(set(reads)) == 4
    copies._copy.cache_clear()  # as the next launch
    assert place(URL, tmp_path, told.append) == where
    assert (len(reads), len(told)) == (4, 1)


def test_a_folder_of_this_machine_stays_where_it_is(data_set, tmp_path):
    assert place(data_set, tmp_path) == place(f"file://{data_set}", tmp_path) == str(data_set)
    assert not list(tmp_path.iterdir())


def test_a_copy_that_was_stopped_goes_on_with_what_is_missing(bucket, reads, tmp_path, monkeypatch):
    whole = copies.fetch

    def stopped(url, shard, target):
        if "000002" in shard["name"]:
            (target / f".{shard['name']}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return whole(url, shard, target)

    with monkeypatch.context() as patched:
        patched.setattr(copies, "TOGETHER", 1)
        patched.setattr(copies, "fetch", stopped)
        with pytest.raises(KeyboardInterrupt):
            bring([URL], tmp_path)
    (target,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not (target / "index.json").exists()
    whole_ones = {path.name for path in target.glob("shard*")}
    assert whole_ones
    reads.clear()
    bring([URL], tmp_path)
    assert whole_ones.isdisjoint(reads)
    assert len(prepared.Prepared(target)) == 120
    assert not list(target.glob(".*"))
    # Nor is a shard that was lost or cut off since a reason to copy the others.
    first, second = sorted(target.glob("shard*"))[:2]
    first.unlink()
    second.write_bytes(b"")
    reads.clear()
    assert place(URL, tmp_path) == str(target)
    assert sorted(reads) == [first.name, second.name]


def test_too_little_room_is_told_before_anything_is_copied(bucket, reads, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "shard").write_bytes(bytes(10))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError,
        match=rf"config.data.cache={tmp_path} has room for 0.0 GB \(0.0 GB are copies of 1 other "
        r"data sets\), copies of the data sets need 0.0 GB more: .* mount the bucket \(gcsfuse\)",
    ):
        bring([URL], tmp_path)
    assert not reads


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-1], r"shard-000001\S* has \d+ bytes, its index says \d+"),
        (lambda data: data[:-1] + b"x", r"shard-000001\S* has another checksum \(sha256\)"),
        (None, r"shard-000001\S* is in the index and not there"),
    ],
)
def test_a_shard_that_is_not_what_the_index_says_is_refused(bucket, tmp_path, change, says):
    name = "/bucket/set/shard-000001-000.array_record"
    data = bucket.cat(name)
    bucket.rm(name)
    if change is not None:
        bucket.pipe(name, change(data))
    with pytest.raises(UserError, match=says + ".*copy or prepare the data set anew"):
        bring([URL], tmp_path)
    (target,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert "shard-000001-000.array_record" not in os.listdir(target)
    assert not list(target.glob(".*")) + list(target.glob("index.json"))
    with pytest.raises(UserError, match=says):
        prepared.Prepared(URL)[40]


def test_another_data_set_at_the_same_place_gets_a_copy_of_its_own(bucket, tmp_path):
    first = place(URL, tmp_path)
    index = json.loads(bucket.cat("/bucket/set/index.json"))
    bucket.pipe("/bucket/set/index.json", json.dumps({**index, "rejected": {"x": 1}}).encode())
    assert place(URL, tmp_path) == first  # a process keeps to what it began with
    copies._copy.cache_clear()
    assert place(URL, tmp_path) != first


def test_processes_of_one_machine_copy_one_after_the_other(bucket, reads, tmp_path):
    told: list[str] = []
    with copies._alone(tmp_path, told.append):
        other = threading.Thread(target=bring, args=([URL], tmp_path, told.append))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert told == [f"another process copies to {tmp_path}: waiting for it"]
        assert not reads
    other.join()
    assert len(reads) == 4


def test_a_data_set_that_is_looked_through_needs_room_for_few_shards(bucket, reads, monkeypatch):
    monkeypatch.setattr(copies, "HELD", 2)
    stored = prepared.Prepared(URL)
    assert not reads
    held = stored._shards._passing._folder.name
    seen = []
    for number in range(120):
        assert stored[number].key == keys(120)[number]
        seen.append(len(os.listdir(held)))
    assert (len(reads), max(seen)) == (4, 2)
    assert stored[3].origin == f"{URL}/shard-000000-000.array_record:record 3"
    del stored
    assert not os.path.exists(held)


def test_an_index_cannot_name_a_file_elsewhere(bucket, tmp_path):
    index = json.loads(bucket.cat("/bucket/set/index.json"))
    index["shards"][0]["name"] = "../evil"
    bucket.pipe("/bucket/set/index.json", json.dumps(index).encode())
    with pytest.raises(UserError, match=r"set/index.json is damaged: no shard can be '../evil'"):
        bring([URL], tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_all_that_a_config_names_is_copied_before_it_is_read(bucket, config, tmp_path):
    config.data.dataset, config.data.cache = URL, str(tmp_path / "cache")
    config.data.sources = {"more": {"path": URL}, "words": {"visual_ids": "memory://bucket/none"}}
    datasets.check(config)
    assert not (tmp_path / "cache").exists()
    datasets.bring(config, lambda _: None)
    bucket.rm("/bucket/set/shard-000000-000.array_record")
    train = datasets.load_split(config, tmp_path, "train")
    held = datasets.load_split(config, tmp_path, "validation")
    assert sorted(record["key"] for part in (train, held) for record in part) == keys(120)


def test_a_bucket_that_cannot_be_read_is_named(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Anonymous caller does not have storage.objects.get\nmore")

    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "cat_file", refuse)
    with pytest.raises(UserError, match=r"^cannot read memory://b: Anonymous caller [a-z .]*$"):
        prepared.Prepared("memory://b")
