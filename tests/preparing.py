"""Preparing small data sets, and what comes of it."""

import json
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from lavit_jax.data import record
from lavit_jax.data.prepare import run
from lavit_jax.data.prepare.tasks import Job
from lavit_jax.data.sources import Options

ALONE = run.local_runner(1)


def job(source, destination, shard_bytes=20_000) -> Job:
    return Job(str(source), str(destination), Options(), shard_bytes)


def stored(folder: Path) -> list:
    """The examples of a prepared data set, in order."""
    index = json.loads((folder / "index.json").read_text())
    found = []
    for shard in index["shards"]:
        reader = ArrayRecordReader(str(folder / shard["name"]))
        assert reader.num_records() == shard["examples"]
        found += [record.decode(data, "") for data in reader.read_all()]
    assert len(found) == index["examples"]
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
