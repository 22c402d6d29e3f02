import json
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks import kill_prepare
from lavit_jax.cli.main import main
from lavit_jax.data import record
from lavit_jax.data.prepare import claim, run, tasks
from lavit_jax.data.prepare.beam import beam_runner
from lavit_jax.data.prepare.store import Store
from lavit_jax.data.prepare.tasks import Job
from lavit_jax.data.sources import Options
from lavit_jax.data.tally import TooManyBroken
from lavit_jax.errors import UserError
from shards import jpeg, keys, pair, tars, write_tar
from small_run import nearly_full_disk

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


def test_every_example_is_prepared_once_and_in_order(tmp_path):
    index = run.prepare(job(tars(tmp_path / "src", 6, 20), tmp_path / "dst"), ALONE)
    found = stored(tmp_path / "dst")
    assert [example.key for example in found] == keys(120)
    assert [example.image for example in found] == [jpeg(n) for n in range(120)]
    assert (index["examples"], index["images"], index["rejected"]) == (120, 120, {})
    assert not (tmp_path / "dst" / ".work").exists()


def test_shards_are_about_as_large_as_asked(tmp_path):
    source = tars(tmp_path / "src", 2, 60, size=(320, 320))
    index = run.prepare(job(source, tmp_path / "dst", 300_000), ALONE)
    sizes = [shard["bytes"] for shard in index["shards"]]
    assert len(sizes) >= 4
    assert max(sizes) < 500_000
    assert min(sizes) > 150_000
    assert [example.key for example in stored(tmp_path / "dst")] == keys(120)


def test_the_number_of_workers_does_not_matter(tmp_path):
    source = tars(tmp_path / "src", 6, 10)
    for workers in (1, 2):
        run.prepare(job(source, tmp_path / str(workers)), run.local_runner(workers))
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_what_is_prepared_can_be_prepared_again(tmp_path):
    run.prepare(job(tars(tmp_path / "src", 3, 10), tmp_path / "one"), ALONE)
    run.prepare(job(tmp_path / "one", tmp_path / "two"), ALONE)
    first, second = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert first == second


def test_a_destination_may_be_anywhere_fsspec_reaches(tmp_path):
    source = tars(tmp_path / "src", 3, 10)
    run.prepare(job(source, "memory://prepared/set"), ALONE)
    run.prepare(job(source, tmp_path / "local"), ALONE)
    memory = fsspec.filesystem("memory")
    names = {path.rpartition("/")[2] for path in memory.find("/prepared/set")}
    assert names == set(content(tmp_path / "local"))
    for name, data in content(tmp_path / "local").items():
        assert memory.cat_file(f"/prepared/set/{name}") == data


def test_broken_examples_are_counted_listed_and_left_out(tmp_path):
    members = [member for n in range(200) for member in pair(n)]
    members += [("b.jpg", b"junk"), ("b.txt", b"x"), ("c.jpg", jpeg(0)), ("c.txt", b"\xff\xfe")]
    source = write_tar(tmp_path / "src" / "x.tar", members)
    index = run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.01)
    assert index["rejected"] == {"wrong type": 1, "not UTF-8": 1}
    assert [example.key for example in stored(tmp_path / "dst")] == keys(200)
    lines = (tmp_path / "dst" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"] for line in lines] == [f"{source}:b", f"{source}:c"]


def test_too_many_broken_examples_stop_it_with_a_report_and_more_can_be_allowed(tmp_path):
    members = [member for n in range(20) for member in pair(n)]
    source = write_tar(tmp_path / "x.tar", [*members, ("b.jpg", b""), ("b.txt", b"x")])
    with pytest.raises(TooManyBroken) as stopped:
        run.prepare(job(source, tmp_path / "dst"), ALONE)
    assert "1 of 21 examples are broken (4.8%), more than --max-bad-share=0.01" in str(
        stopped.value
    )
    assert f"1 zero bytes (first: {source}:b)" in str(stopped.value)
    assert not (tmp_path / "dst" / "index.json").exists()
    index = run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.1)
    assert index["examples"] == 20


def test_a_finished_preparation_is_not_done_again(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    first = run.prepare(job(source, tmp_path / "dst"), ALONE)
    shutil.rmtree(source)
    assert run.prepare(job(source, tmp_path / "dst"), ALONE) == first


@pytest.mark.parametrize("bucket", [False, True])
def test_a_source_that_has_grown_is_not_said_to_be_done(tmp_path, bucket):
    source, told = tars(tmp_path / "src", 2, 5), str(tmp_path / "src")
    memory = fsspec.filesystem("memory")
    if bucket:
        told = f"memory://grown/{tmp_path.name}"
        memory.put(f"{source}/", f"/grown/{tmp_path.name}/", recursive=True)
    begun = job(told, tmp_path / "dst")
    index = run.prepare(begun, ALONE)
    assert run.prepare(begun, ALONE) == index
    tars(tmp_path / "more", 3, 5)
    new = tmp_path / "more" / "00002.tar"
    if bucket:
        memory.put_file(str(new), f"/grown/{tmp_path.name}/00002.tar")
    else:
        shutil.copy(new, source)
    with pytest.raises(UserError, match=r"src|grown") as refused:
        run.prepare(begun, ALONE)
    assert str(refused.value) == (
        f"{told} changed since {tmp_path / 'dst'} was prepared from it (2 files then, 3 now): "
        f"prepare it to another folder, or delete {tmp_path / 'dst'} to prepare it anew"
    )


def test_a_source_of_other_files_is_not_said_to_be_done(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    run.prepare(job(source, tmp_path / "dst"), ALONE)
    write_tar(source / "00001.tar", pair(77))
    with pytest.raises(UserError, match="some files are others"):
        run.prepare(job(source, tmp_path / "dst"), ALONE)
    index = json.loads((tmp_path / "dst" / "index.json").read_text())
    del index["state"]  # as before there were any
    (tmp_path / "dst" / "index.json").write_text(json.dumps(index))
    assert run.prepare(job(source, tmp_path / "dst"), ALONE) == index


@pytest.mark.parametrize("bucket", [False, True])
def test_a_file_that_changes_between_plan_and_task_is_noticed(tmp_path, bucket):
    source = tars(tmp_path / "src", 2, 5)
    place, memory = str(source), fsspec.filesystem("memory")
    if bucket:
        place = f"memory://changing/{tmp_path.name}"
        memory.put(f"{source}/", f"/changing/{tmp_path.name}/", recursive=True)

    def changing(job, tasks):
        write_tar(source / "00001.tar", pair(77))
        if bucket:
            memory.put_file(str(source / "00001.tar"), f"/changing/{tmp_path.name}/00001.tar")
        yield from ALONE(job, tasks)

    with pytest.raises(UserError, match=r"00001.tar changed since .*dst was begun: delete .*dst"):
        run.prepare(job(place, tmp_path / "dst", 1), changing)
    assert len(list((tmp_path / "dst" / ".work").glob("task-*.json"))) == 1


def test_another_job_in_the_same_folder_is_refused(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    run.prepare(job(source, tmp_path / "dst"), ALONE)
    with pytest.raises(UserError, match="holds another data set"):
        run.prepare(job(source, tmp_path / "dst", shard_bytes=5), ALONE)


def test_a_source_that_changed_halfway_is_refused(tmp_path):
    source = tars(tmp_path / "src", 2, 5)
    begun = job(source, tmp_path / "dst")
    with Store(begun.destination).claimed():
        run._keep_plan(begun, Store(begun.destination), tasks.make_tasks(begun))
    tars(tmp_path / "src", 3, 5)
    with pytest.raises(UserError, match="changed since .* was begun"):
        run.prepare(begun, ALONE)


def test_two_preparations_of_one_folder_do_not_meet(tmp_path):
    source = tars(tmp_path / "src", 1, 1)
    with Store(str(tmp_path / "dst")).claimed(), pytest.raises(UserError, match="another process"):
        run.prepare(job(source, tmp_path / "dst"), ALONE)


def test_a_task_done_twice_leaves_the_same_files(tmp_path):
    begun = job(tars(tmp_path / "src", 2, 10), tmp_path / "dst")
    (task, *_) = tasks.make_tasks(begun)
    receipt = tasks.run_task(begun, task)
    before = {p: p.read_bytes() for p in (tmp_path / "dst").rglob("*") if p.is_file()}
    (tmp_path / "dst" / task.receipt).unlink()
    assert tasks.run_task(begun, task) == receipt
    assert {p: p.read_bytes() for p in (tmp_path / "dst").rglob("*") if p.is_file()} == before


def test_a_full_disk_is_told_in_one_line_and_it_goes_on_once_there_is_room(tmp_path):
    source = tars(tmp_path / "src", 2, 20)
    run.prepare(job(source, tmp_path / "whole"), ALONE)
    full = job(source, tmp_path / "dst")
    for size in (10, 10_000):  # the plan, a shard
        with nearly_full_disk(size), pytest.raises(UserError) as told:
            run.prepare(full, ALONE)
        assert str(told.value) == f"cannot write {tmp_path / 'dst'}: File too large"
        assert not list((tmp_path / "dst").rglob("tmp-*"))
    run.prepare(full, ALONE)
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.subprocess)])
def test_a_disk_that_fails_for_a_while_loses_nothing(tmp_path, monkeypatch, workers):
    source = tars(tmp_path / "src", 2, 20)
    begun = job(source, tmp_path / "dst")
    late = source / "00001.tar"
    late.rename(tmp_path / "away")

    def planned(_, plan=tasks.make_tasks):
        (tmp_path / "away").rename(late)
        found = plan(begun)
        late.rename(tmp_path / "away")
        return found

    with monkeypatch.context() as patched, pytest.raises(UserError, match=f"^cannot read {late}: "):
        patched.setattr(tasks, "make_tasks", planned)
        run.prepare(begun, run.local_runner(workers))
    assert not (tmp_path / "dst" / "index.json").exists()
    (tmp_path / "away").rename(late)
    index = run.prepare(begun, ALONE)
    assert (index["examples"], index["rejected"]) == (40, {})
    assert [example.key for example in stored(tmp_path / "dst")] == keys(40)


def test_a_shard_that_breaks_off_counts_against_the_share(tmp_path):
    source = tars(tmp_path / "src", 10, 20)
    cut = source / "00003.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(TooManyBroken, match=r"corrupt shard \(first: .*00003.tar\)"):
        run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.03)
    index = run.prepare(job(source, tmp_path / "dst"), ALONE, max_bad_share=0.1)
    assert 188 <= index["examples"] <= 192
    assert 7 <= index["rejected"]["corrupt shard"] <= 13


def test_nothing_to_prepare_is_said(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="has no examples"):
        run.prepare(job(tmp_path / "x.jsonl", tmp_path / "dst"), ALONE)


class TwiceBeam(types.ModuleType):
    """Stands in for Apache Beam: does every element twice, as Beam may.

    `benchmarks/beam_equal.py` compares with Beam itself.
    """

    def __init__(self, name):
        super().__init__(name)
        self.given = []
        self.options = types.SimpleNamespace(
            pipeline_options=types.SimpleNamespace(PipelineOptions=self._parsed)
        )

    def _parsed(self, arguments):
        """Knows --runner, log levels and --project; as Beam does, drops what it does not know."""
        self.given.append(arguments)
        whole = {argument.partition("=")[0][2:]: argument for argument in arguments}
        if whole.get("project") == "--project=":
            print("usage: lavit [--project]\nlavit: error: --project: empty", file=sys.stderr)
            sys.exit(2)
        known = {name: whole[name] for name in whole if name != "nosuch"}
        return types.SimpleNamespace(
            get_all_options=lambda retain_unknown_options=False: (
                whole if retain_unknown_options else known
            )
        )

    class Pipeline:
        def __init__(self, options):
            self.steps = []

        def __or__(self, step):
            self.steps.append(step)
            return self

        def run(self):
            elements: list = []
            for step in self.steps:
                elements = step(elements)
            return self

        def wait_until_finish(self):
            return "DONE"

    class Step:
        def __init__(self, do):
            self.do = do

        def __call__(self, elements):
            return self.do(elements)

        def __rrshift__(self, label):
            return self

    def Create(self, elements):
        return self.Step(lambda _: list(elements))

    def Reshuffle(self):
        return self.Step(lambda elements: elements[::-1])

    def Map(self, function, *arguments):
        return self.Step(lambda elements: [function(e, *arguments) for e in [*elements, *elements]])


@pytest.fixture
def twice(monkeypatch):
    fake = TwiceBeam("apache_beam")
    options = fake.options.pipeline_options
    monkeypatch.setitem(sys.modules, "apache_beam", fake)
    monkeypatch.setitem(sys.modules, "apache_beam.options", types.ModuleType("options"))
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", options)
    return fake


def test_beam_does_the_same_tasks_in_any_order_and_twice(tmp_path, twice):
    source = tars(tmp_path / "src", 4, 10)
    run.prepare(job(source, tmp_path / "local"), ALONE)
    run.prepare(job(source, "memory://beam/set"), beam_runner("dataflow", ["--project=mine"]))
    assert twice.given == [["--runner=DataflowRunner", "--project=mine"]]
    memory = fsspec.filesystem("memory")
    memory.get("/beam/set/", f"{tmp_path}/beam/", recursive=True)
    assert content(tmp_path / "beam") == content(tmp_path / "local")


def test_a_users_mistake_on_a_worker_is_told_as_on_this_machine(tmp_path, twice):
    """And no task after it is done: one stop is left by the worker, one by the limit."""
    (tmp_path / "src").mkdir()
    for number in range(3):
        table = pa.table({"picture": [b"x"], "title": ["t"]})
        pq.write_table(table, tmp_path / "src" / f"{number}.parquet")
    begun = job(tmp_path / "src", tmp_path / "dst", shard_bytes=1)
    with pytest.raises(UserError, match=r"^\S*2.parquet: no column of captions .*caption-field$"):
        run.prepare(begun, beam_runner("direct"))
    assert not list((tmp_path / "dst").glob(".work/task*"))
    members = [member for n in range(20) for member in pair(n)]
    source = write_tar(tmp_path / "x.tar", [*members, ("b.jpg", b""), ("b.txt", b"x")])
    with pytest.raises(TooManyBroken, match=r"1 of 21 examples are broken"):
        run.prepare(job(source, tmp_path / "bad"), beam_runner("direct"))
    index = run.prepare(job(source, tmp_path / "bad"), beam_runner("direct"), max_bad_share=0.1)
    assert index["examples"] == 20


def test_a_pipeline_that_fails_says_so_in_a_line_and_what_it_did_is_kept(
    tmp_path, twice, monkeypatch
):
    def broken(self):
        raise RuntimeError(
            "Traceback (most recent call last):\n  x\nOSError: no [while running 'do']"
        )

    source = tars(tmp_path / "src", 2, 10)
    with monkeypatch.context() as patched:
        patched.setattr(twice.Pipeline, "wait_until_finish", broken)
        with pytest.raises(UserError, match="^--runner direct: OSError: no$"):
            run.prepare(job(source, tmp_path / "dst"), beam_runner("direct"))
    told: list[str] = []
    run.prepare(job(source, tmp_path / "dst"), beam_runner("direct"), say=told.append)
    assert told == ["2 of 2 tasks were done before"]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("direct", ["junk"], "--beam=junk: expected --beam=--OPTION=VALUE"),
        ("direct", ["--nosuch=3"], "--beam=--nosuch: Apache Beam has no such option"),
        ("direct", ["--project="], "--beam: --project: empty"),
        ("direct", ["--runner=Other"], "choose with --runner"),
    ],
)
def test_options_that_beam_would_drop_are_refused(twice, name, arguments, says):
    with pytest.raises(UserError, match=says):
        beam_runner(name, arguments)


def test_workers_elsewhere_cannot_write_here(tmp_path, twice):
    source = tars(tmp_path / "src", 1, 1)
    with pytest.raises(UserError, match="a folder of this machine: name one in a bucket"):
        run.prepare(job(source, tmp_path / "dst"), beam_runner("flink", ["--nosuch=3"]))


def test_beam_is_asked_for_only_when_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"--runner direct needs Apache Beam: pip install"):
        beam_runner("direct")


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


def test_what_another_finished_meanwhile_is_not_done_again(tmp_path, monkeypatch):
    begun = job(tars(tmp_path / "src", 1, 1), tmp_path / "dst")
    plan = tasks.make_tasks

    def slow(asked):
        monkeypatch.setattr(tasks, "make_tasks", plan)
        run.prepare(begun, ALONE)
        return plan(asked)

    monkeypatch.setattr(tasks, "make_tasks", slow)
    index = run.prepare(begun, lambda *_: pytest.fail("done again"))
    assert index["examples"] == 1
    assert not (tmp_path / "dst" / ".work").exists()


@pytest.mark.parametrize("status", [1, 2])
def test_a_launch_that_fails_by_itself_was_neither_killed_nor_finished(tmp_path, status):
    program = [sys.executable, "-c", f"raise SystemExit({status})"]
    with pytest.raises(RuntimeError, match=f"ended with status {status}"):
        kill_prepare.killed(program, tmp_path, 0.5)


@pytest.mark.subprocess
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_loses_and_doubles_nothing(tmp_path, workers):
    """`benchmarks/kill_prepare.py` kills it many more times."""
    source = tars(tmp_path / "src", 30, 10)
    run.prepare(job(source, tmp_path / "whole"), ALONE)
    command = kill_prepare.command(source, tmp_path / "dst", workers)
    chance = random.Random(workers)
    # The first as soon as there is work: a fast machine may be done before any other moment.
    moments = [0.0, chance.uniform(0, 0.3), chance.uniform(0, 0.3)]
    killed = [kill_prepare.killed(command, tmp_path / "dst", moment) for moment in moments]
    assert any(killed)
    assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
    assert content(tmp_path / "dst") == content(tmp_path / "whole")
    assert [example.key for example in stored(tmp_path / "dst")] == keys(300)
