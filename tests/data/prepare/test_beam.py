"""Preparing on Apache Beam, or what stands for it."""

import sys
import types

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavit_jax.data.prepare import run, tasks
from lavit_jax.data.prepare.beam import beam_runner
from lavit_jax.data.tally import TooManyBroken
from lavit_jax.errors import UserError
from preparing import ALONE, content, job
from shards import pair, tars, write_tar


def test_a_task_done_twice_leaves_the_same_files(tmp_path):
    begun = job(tars(tmp_path / "src", 2, 10), tmp_path / "dst")
    (task, *_) = tasks.make_tasks(begun)
    receipt = tasks.run_task(begun, task)
    before = {p: p.read_bytes() for p in (tmp_path / "dst").rglob("*") if p.is_file()}
    (tmp_path / "dst" / task.receipt).unlink()
    assert tasks.run_task(begun, task) == receipt
    assert {p: p.read_bytes() for p in (tmp_path / "dst").rglob("*") if p.is_file()} == before


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
