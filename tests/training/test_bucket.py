"""A run in a bucket, which a server on this machine plays."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import bucket_server, kills
from benchmarks.bucket_server import Server
from lavit_jax.training import storage
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.saved import MARK, saved_steps
from small_run import UNSEEN

BUCKET, FOLDER = "lavit", "run"
URL = f"gs://{BUCKET}/{FOLDER}"


@pytest.fixture
def server(
    tmp_path: Path, fill_workdir: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """The bucket, empty; this machine has prepared the data."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    local = storage.mirror(URL, "0")
    local.mkdir(parents=True)
    fill_workdir(local)
    with bucket_server.serving() as server:
        for name, value in bucket_server.variables(server.port).items():
            monkeypatch.setenv(name, value)
        yield server


def checkpoints(server: Server) -> tuple[set[int], set[int]]:
    """Steps that have any file, and those that are marked as complete."""
    paths = [Path(name).parts for name in server.store.names(BUCKET)]
    found = [path for path in paths if path[:2] == (FOLDER, "checkpoints") and len(path) > 3]
    return {int(p[2]) for p in found}, {int(p[2]) for p in found if p[3] == MARK}


@pytest.mark.subprocess
def test_a_killed_run_in_a_bucket_goes_on_as_one_on_a_disk_that_nobody_disturbed(
    server, whole_run, tmp_path
):
    log = tmp_path / "batches.log"
    kills.Training(URL, log, UNSEEN).kill(kills.STEP, 0.5)
    status, output = kills.Training(URL, log, UNSEEN).end()
    assert status == 0, output
    lines = server.store.get((BUCKET, f"{FOLDER}/metrics.jsonl")).data.decode().splitlines()
    assert [json.loads(line) for line in lines] == read_metrics(whole_run / "metrics.jsonl")
    assert kills.examples_seen(log) == kills.examples_seen(whole_run / "batches.log")
    held, complete = checkpoints(server)
    assert held == complete == set(saved_steps(whole_run / "checkpoints"))


def test_what_others_have_written_meanwhile_is_seen(server):
    place = storage.folder(f"gs://{BUCKET}/seen")
    (place / "a").write_text("a")
    assert [path.name for path in place.iterdir()] == ["a"]
    server.store.put((BUCKET, "seen/b"), b"b")
    assert sorted(path.name for path in place.iterdir()) == ["a", "b"]
