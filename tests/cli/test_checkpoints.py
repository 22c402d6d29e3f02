"""`lavit checkpoints`: files alone, so that it needs no model."""

import json

import pytest

from lavit_jax.cli.main import main
from lavit_jax.training import checksums


@pytest.fixture
def workdir(tmp_path):
    for step in (10, 20, 30):
        for part in ("state", "position"):
            (tmp_path / "checkpoints" / str(step) / part).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "state" / "data").write_bytes(bytes(2_000_000))
        checksums.write(tmp_path / "checkpoints" / str(step))
    return tmp_path


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


def test_a_bucket_has_to_be_mounted(capsys):
    assert main(["checkpoints", "gs://bucket/run"]) == 2
    assert "gs://bucket/run: files are renamed" in capsys.readouterr().err
