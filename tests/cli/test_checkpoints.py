"""`lavit checkpoints`: files alone, so that it needs no model."""

import json

import pytest

import buckets
from lavit_jax.cli.main import main
from lavit_jax.training import checksums
from lavit_jax.training.saved import MARK

URL = "gs://bucket/run"


@pytest.fixture
def workdir(tmp_path):
    for step in (10, 20, 30):
        for part in ("state", "position"):
            (tmp_path / "checkpoints" / str(step) / part).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "state" / "data").write_bytes(bytes(2_000_000))
        checksums.write(tmp_path / "checkpoints" / str(step))
    return tmp_path


@pytest.fixture
def bucket(workdir, monkeypatch):
    """The same in a bucket, as training leaves it there: with marks, without checksums."""
    for folder in (workdir / "checkpoints").iterdir():
        (folder / "position" / "metadata").write_text("{}")
        (folder / MARK).touch()
        (folder / "checksums-0-of-1.json").unlink()
    (workdir / "metrics.jsonl").write_bytes(bytes(2_000_000))
    found = buckets.in_memory(monkeypatch)
    found.upload(workdir, URL)
    return found


def steps(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_a_table_has_a_line_for_each(workdir, capsys):
    assert main(["checkpoints", str(workdir)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "phase", "size", "written", "(UTC)", "complete", "checksums"]
    assert [line.split()[0] for line in lines] == ["10", "20", "30"]
    assert all(line.endswith("yes       recorded") for line in lines)
    assert "2.0 MB" in lines[0]


def test_json_is_one_document(workdir, capsys):
    assert main(["checkpoints", str(workdir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["step"] for entry in document["checkpoints"]] == [10, 20, 30]
    assert document["pruned"] == []


def test_verifying_what_is_damaged_has_status_1(workdir, capsys):
    assert main(["checkpoints", str(workdir), "--verify"]) == 0
    (workdir / "checkpoints" / "20" / "state" / "data").write_bytes(bytes(1_999_999))
    assert main(["checkpoints", str(workdir), "--verify"]) == 1
    assert capsys.readouterr().out.splitlines()[-2].endswith("damaged")


def test_pruning_keeps_what_the_options_ask_for(workdir, capsys):
    assert main(["checkpoints", str(workdir), "--prune", "--keep-every", "20"]) == 0
    assert steps(workdir) == ["20"]
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert captured.err.count("took away") == 2


def test_pruning_never_counts_on_a_damaged_checkpoint(workdir):
    (workdir / "checkpoints" / "30" / "state" / "data").write_bytes(bytes(1_999_999))
    assert main(["checkpoints", str(workdir), "--prune", "--keep-newest", "1"]) == 1
    assert steps(workdir) == ["20", "30"]


def test_pruning_without_a_config_keeps_the_newest(workdir):
    assert main(["checkpoints", str(workdir), "--prune"]) == 0
    assert steps(workdir) == ["30"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--keep-newest", "1"], "go with --prune"),
        (["--prune", "--keep-newest", "0"], "keep at least one"),
        (["--prune", "--keep-best", "nosuch"], "keep at least one"),
        (["--prune", "--keep-every", "7"], "keep at least one"),
    ],
)
def test_options_that_would_lose_everything_are_mistakes(workdir, capsys, argv, says):
    assert main(["checkpoints", str(workdir), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert steps(workdir) == ["10", "20", "30"]


def test_no_checkpoints_are_one_line_and_status_2(tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no checkpoints" in line


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\x03\x04broken"])
def test_a_file_that_cannot_be_replayed_is_one_line_and_status_2(tmp_path, capsys, content):
    path = tmp_path / "bad_batches" / "0000012.npz"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    assert main(["replay", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line


@pytest.mark.parametrize("argv", [[], ["--verify"]])
def test_a_bucket_is_listed_from_small_files_alone(bucket, capsys, argv):
    assert main(["checkpoints", URL, *argv]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split() for line in lines] == [
        [step, "2.0", "MB", "yes", "store"] for step in ("10", "20", "30")
    ]
    assert {path.rpartition("/")[2] for path in bucket.read} == {"metadata"}


def test_pruning_a_bucket_removes_objects(bucket, capsys):
    assert main(["checkpoints", URL, "--prune", "--keep-every", "20"]) == 0
    assert {path.split("/")[5] for path in bucket.find(f"{URL}/checkpoints")} == {"20"}
    assert f"took away {URL}/checkpoints/10\n" in capsys.readouterr().err


def test_checksums_that_were_copied_to_a_bucket_are_compared(workdir, monkeypatch, capsys):
    found = buckets.in_memory(monkeypatch)
    for folder in (workdir / "checkpoints").iterdir():
        (folder / MARK).touch()
        checksums.write(folder)
    found.upload(workdir, URL)
    assert main(["checkpoints", URL, "--verify"]) == 0
    found.pipe_file(f"{URL}/checkpoints/20/state/data", bytes(1_999_999))
    assert main(["checkpoints", URL, "--verify"]) == 1
    assert capsys.readouterr().out.splitlines()[-2].endswith("damaged")


def test_a_bucket_that_cannot_be_reached_is_one_line_and_status_2(bucket, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("Anonymous caller does not have storage.objects.list\nmore")

    monkeypatch.setattr(bucket, "info", refuse)
    monkeypatch.setattr(bucket, "isdir", refuse)
    assert main(["checkpoints", URL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"cannot reach {URL}: Anonymous caller does not have storage.objects.list")
