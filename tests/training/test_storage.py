"""A run on an object store; a folder stands for the bucket."""

import tempfile
from pathlib import Path

import pytest
from etils import epath

from lavit_jax.cli.main import make_parser
from lavit_jax.errors import UserError
from lavit_jax.training import run, storage
from lavit_jax.training.saved import MARK
from tiny import mini_config

URL = "gs://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Path:
    """What stands for `URL`; the machine's own temporary files are elsewhere."""
    (tmp_path / "machine").mkdir()
    monkeypatch.setattr(storage, "_remote", lambda url: epath.Path(tmp_path / "bucket"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    return tmp_path / "bucket"


def opened(bucket: Path) -> storage.Storage:
    return storage.in_bucket(URL)


def test_files_last_once_they_are_published(bucket):
    place = opened(bucket)
    run.claim_workdir(mini_config(), place)
    (place.local / "metrics.jsonl").write_text('{"step": 1}\n')
    (place.local / "metrics.tmp").write_text("half")
    (place.local / "samples").mkdir()
    (place.local / "samples" / "1.png").write_bytes(b"\x89PNG")
    assert not bucket.exists()
    place.publish()
    names = sorted(str(p.relative_to(bucket)) for p in bucket.rglob("*") if p.is_file())
    assert names == ["config.json", "metrics.jsonl", "samples/1.png"]


def test_another_machine_starts_from_what_the_bucket_has(bucket, tmp_path, monkeypatch):
    place = opened(bucket)
    (place.local / "samples").mkdir()
    (place.local / "samples" / "1.png").write_bytes(b"\x89PNG")
    place.publish()
    (place.local / "metrics.jsonl").write_text("never published")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "other"))
    assert (opened(bucket).local / "samples" / "1.png").read_bytes() == b"\x89PNG"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    assert not (opened(bucket).local / "metrics.jsonl").exists()


def test_prepared_data_stay_on_the_machine(bucket):
    place = opened(bucket)
    (place.local / "data").mkdir()
    (place.local / "data" / "pictures").write_text("large")
    place.publish()
    assert not (bucket / "data").exists()
    assert (opened(bucket).local / "data" / "pictures").exists()


def test_what_was_removed_is_removed_there(bucket):
    place = opened(bucket)
    (place.local / "text.model").write_text("of another config")
    place.publish()
    again = opened(bucket)
    (again.local / "text.model").unlink()
    again.publish()
    assert not (bucket / "text.model").exists()


def test_what_a_client_raises_while_files_are_sent_is_one_line(bucket, monkeypatch):
    class HttpError(Exception):
        """As gcsfs and google.auth have theirs: of no class that Python knows."""

    def fails(*_):
        raise HttpError("Anonymous caller does not have storage.objects.create\nand more")

    place = opened(bucket)
    (place.local / "metrics.jsonl").write_text("")
    monkeypatch.setattr(type(epath.Path(bucket)), "write_bytes", fails)
    with pytest.raises(UserError, match=f"^cannot reach {URL}: Anonymous caller .*create$"):
        place.publish()


def test_a_bucket_with_checkpoints_of_another_config_is_refused(bucket):
    place = opened(bucket)
    run.claim_workdir(mini_config(), place)
    place.publish()
    (bucket / "checkpoints" / "20").mkdir(parents=True)
    run.claim_workdir(mini_config("--config.data.row_length=64"), opened(bucket))
    (bucket / "checkpoints" / "20" / MARK).touch()  # now it is complete
    place, other = opened(bucket), mini_config("--config.data.row_length=96")
    with pytest.raises(UserError, match="another config"):
        run.claim_workdir(other, place)


def test_the_command_line_keeps_both_slashes():
    args = make_parser().parse_args(["train", "--config", "c.py", "--workdir", URL])
    assert args.workdir == URL
    args = make_parser().parse_args(["train", "--config", "c.py", "--workdir", "here/run"])
    assert args.workdir == Path("here/run")


def test_a_missing_client_is_named(bucket, monkeypatch):
    def missing(*_):
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr(storage, "_download", missing)
    with pytest.raises(UserError, match=r"gcsfs.*lavit_jax\[gcs\]"):
        storage.in_bucket(URL)


@pytest.mark.parametrize("reach", [storage.to_write, storage.to_read, storage.folder])
def test_another_store_is_refused(reach):
    with pytest.raises(UserError, match=r"s3://bucket/run: expected .* gs://BUCKET/FOLDER"):
        reach("s3://bucket/run")
