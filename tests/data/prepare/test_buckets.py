"""Preparing in buckets: clients that fail, and claims."""

import re
import socket
import subprocess
import sys
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lavit_jax.cli.main import main
from lavit_jax.data.prepare import claim, run
from lavit_jax.data.prepare.store import Store
from lavit_jax.errors import UserError
from preparing import ALONE, job
from shards import tars


class ClientError(Exception):
    """As a bucket's client raises it: google.auth's and gcsfs's are of no kind but Exception."""


class Refusing(MemoryFileSystem):
    """A bucket in memory whose client fails in one of its calls.

    Attributes:
      call: which.
    """

    protocol = "refusing"
    cachable = False
    call = ""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("refusing://", "memory://"))

    def exists(self, path, **kwargs):  # as gcsfs and s3fs have it
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def __getattribute__(self, name):
        if name == type(self).call:
            raise ClientError("invalid_grant: Bad Request\nand more")
        return super().__getattribute__(name)


CALLS = ("cat_file", "exists", "rm_file", "put_file", "pipe_file", "makedirs", "size", "rm")


@pytest.fixture
def refusing(monkeypatch):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    yield Refusing
    Refusing.call = ""
    Refusing().rm("/", recursive=True)


@pytest.mark.parametrize("call", CALLS)
def test_errors_of_a_buckets_client_are_told_in_one_line(tmp_path, refusing, call, capsys):
    source = tars(tmp_path / "src", 2, 10)
    refusing.call = call
    assert main(["data", "prepare", str(source), "refusing://bucket/set", "--workers=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lavit: error: cannot ")
    assert "refusing://bucket/set: invalid_grant: Bad Request" in line
    refusing.call = ""
    assert run.prepare(job(source, "refusing://bucket/set", 256_000_000), ALONE)["examples"] == 20


@pytest.mark.parametrize("call", ["info", "open", "find"])
def test_so_are_those_of_a_bucket_that_is_the_source(tmp_path, refusing, call, capsys):
    refusing().put(f"{tars(tmp_path / 'src', 2, 10)}/", "/shards/", recursive=True)
    refusing.call = call
    assert main(["data", "prepare", "refusing://shards", str(tmp_path / "dst")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"lavit: error: cannot read refusing:/+shards\S*: invalid_grant.*", line)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(claim, "SILENT_SECONDS", 0.2)


def test_two_machines_do_not_meet_in_a_bucket(tmp_path, impatient):
    source, told = tars(tmp_path / "src", 1, 1), []
    for bucket in ("memory://claimed", f"local://{tmp_path}/claimed"):
        with (
            Store(bucket).claimed(),
            pytest.raises(UserError, match=rf"another process is preparing {bucket}: \S+@"),
        ):
            run.prepare(job(source, bucket), ALONE, say=told.append)
        assert "waiting to see whether it is at work" in told[-1]
        assert not Store(bucket).exists(claim.CLAIM)


def test_the_claim_of_a_machine_that_died_is_taken_over(tmp_path, impatient):
    source = tars(tmp_path / "src", 1, 1)
    left = {"owner": "x", "host": "elsewhere", "pid": 1, "who": "ann@elsewhere", "beat": 3}
    Store("memory://silent/set").write_json(claim.CLAIM, left)
    told: list[str] = []
    assert run.prepare(job(source, "memory://silent/set"), ALONE, say=told.append)["examples"] == 1
    assert told[0].startswith("memory://silent/set was claimed by ann@elsewhere")
    assert not Store("memory://silent/set").names(".work")


def test_a_run_killed_on_this_machine_is_not_waited_for(tmp_path, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = {"owner": "x", "host": socket.gethostname(), "pid": gone.pid, "who": "me", "beat": 3}
    Store("memory://killed/set").write_json(claim.CLAIM, left)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    source = tars(tmp_path / "src", 1, 1)
    assert run.prepare(job(source, "memory://killed/set"), ALONE)["examples"] == 1


def test_a_claim_that_is_being_written_is_read_again(monkeypatch):
    """As a store may show it whose objects are files."""
    place, reads = Store("memory://halves/set"), []
    place.write_json(claim.CLAIM, {"owner": "x"})

    def read_json(name):
        reads.append(name)
        if len(reads) < 3:
            raise UserError("not valid JSON")
        return Store.read_json(place, name)

    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(place, "read_json", read_json)
    assert claim._read(place) == {"owner": "x"}
    assert len(reads) == 3
    monkeypatch.setattr(place, "read_json", lambda name: Store.read_json(place, f"{name}.gone"))
    assert claim._read(place) is None


def test_a_claim_that_stays_damaged_is_told(impatient):
    place = Store("memory://damaged/set")
    place.write_json(claim.CLAIM, {})
    place._fs.pipe_file(place.path(claim.CLAIM), b"")
    with pytest.raises(UserError, match="claim.json: not valid JSON"), place.claimed():
        pass
