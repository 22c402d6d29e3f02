"""Pure pieces of preparing a source: the plan, and one task of it. Every runner shares them.

Exactly once: the plan is a function of the source, a task a function of its parts. A task writes
its shards aside, moves them to names of its own and last leaves a receipt. Whoever does a task
again writes the same files again; what has a receipt is not done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from lavit_jax import disk
from lavit_jax.data import record
from lavit_jax.data.check import checked
from lavit_jax.data.prepare.store import WORK, RecordWriter, Store
from lavit_jax.data.sources import Options, Part, Raw, Source, open_source
from lavit_jax.data.tally import Tally
from lavit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """What is prepared, and where to.

    Attributes:
      source: as `sources.open_source` takes it.
      destination: folder or URL.
      options: how to read the source.
      shard_bytes: a shard's size, about.
    """

    source: str
    destination: str
    options: Options
    shard_bytes: int

    def to_json(self) -> dict[str, Any]:
        """What decides the result: all but the place."""
        stored = dataclasses.asdict(self)
        del stored["destination"]
        return stored


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done in one go, in one process.

    Attributes:
      number: its place among the tasks, and so that of its shards.
      parts: of the source, in order.
    """

    number: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def receipt(self) -> str:
        return f"{WORK}/task-{self.number:06d}.json"

    @property
    def rejected(self) -> str:
        return f"{WORK}/task-{self.number:06d}.rejected.jsonl"

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "parts": [dataclasses.asdict(part) for part in self.parts]}

    @classmethod
    def of_json(cls, stored: dict[str, Any]) -> Task:
        return cls(stored["number"], tuple(Part(**part) for part in stored["parts"]))


def make_tasks(job: Job) -> list[Task]:
    """Neighbouring parts of the source, about a shard's worth at a time.

    Raises:
      UserError: a source that cannot be read, or has nothing.
    """
    tasks: list[Task] = []
    held: list[Part] = []
    for part in open_source(job.source, job.options).parts():
        held.append(part)
        if sum(p.size for p in held) >= job.shard_bytes:
            tasks.append(Task(len(tasks), tuple(held)))
            held = []
    if held:
        tasks.append(Task(len(tasks), tuple(held)))
    if not tasks:
        raise UserError(f"{job.source} has no examples")
    return tasks


def source_state(job: Job) -> dict[str, Any]:
    """What tells one state of a source from another: how many files, and a hash of all of them.

    Raises:
      UserError: it cannot be read.
    """
    found = open_source(job.source, job.options).files()
    told = json.dumps(sorted(found.items())).encode()
    return {"files": len(found), "sha256": hashlib.sha256(told).hexdigest()}


def run_task(job: Job, task: Task) -> dict[str, Any]:
    """Does a task, unless it is done: writes its shards, rejects and receipt.

    Returns:
      The receipt: shards with their sizes and counts, and the tally.

    Raises:
      UserError: the source cannot be read or is not what it was when the task was planned, or the
        destination cannot be written.
    """
    store = Store(job.destination)
    done = store.read_json(task.receipt)
    if done is not None:
        return done
    source, tally = open_source(job.source, job.options), Tally()
    rejected: list[str] = []
    with store.scratch() as folder:
        shards = _Shards(store, folder, task, job.shard_bytes)
        for part in task.parts:
            for raw in source.read(part):
                for item in checked(raw):
                    if isinstance(item, Raw):
                        tally.good += 1
                        shards.write(item)
                    else:
                        tally.add_broken(item)
                        rejected.append(json.dumps(dataclasses.asdict(item)) + "\n")
        _check_unchanged(job, task, source)
        written = shards.close()
        for shard in written:
            store.publish(folder / shard["name"], shard["name"])
        with store.writing():
            (folder / "rejected").write_text("".join(rejected))
        store.publish(folder / "rejected", task.rejected)
    receipt = {"shards": written, "tally": tally.to_json()}
    store.write_json(task.receipt, receipt)
    return receipt


def _check_unchanged(job: Job, task: Task, source: Source) -> None:
    for place, planned in {part.place: part.fingerprint for part in task.parts}.items():
        # Of some buckets' clients one call quotes what another does not.
        if source.fingerprint(place).replace('"', "") != planned.replace('"', ""):
            raise UserError(
                f"{place} changed since {job.destination} was begun: delete {job.destination} to "
                "start anew"
            )


class _Shards:
    """Writes records to shard after shard, each about as large as the next."""

    def __init__(self, store: Store, folder: Path, task: Task, shard_bytes: int) -> None:
        self._store, self._folder, self._number = store, folder, task.number
        pieces = round(task.size / shard_bytes)
        # What the source takes says how much there will be, for images at least.
        self._limit = 1.02 * task.size / pieces if pieces > 1 else 1.4 * shard_bytes
        self._writer: RecordWriter | None = None
        self._done: list[dict[str, Any]] = []

    def write(self, example: Raw) -> None:
        data = record.encode(example)
        if self._writer is not None and self._done[-1]["payload"] + len(data) > self._limit:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            name = f"shard-{self._number:06d}-{len(self._done):03d}.array_record"
            self._writer = self._store.records(self._folder / name)
            self._done.append({"name": name, "examples": 0, "images": 0, "payload": 0})
        self._writer.write(data)
        shard = self._done[-1]
        shard["examples"] += 1
        shard["images"] += example.image is not None
        shard["payload"] += len(data)

    def close(self) -> list[dict[str, Any]]:
        """The shards: name, examples, images, bytes and checksum of each."""
        if self._writer is not None:
            self._writer.close()
        return [
            {
                "name": shard["name"],
                "examples": shard["examples"],
                "images": shard["images"],
                "bytes": (self._folder / shard["name"]).stat().st_size,
                "sha256": disk.sha256(self._folder / shard["name"]),
            }
            for shard in self._done
        ]
