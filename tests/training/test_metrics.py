import itertools
import json
import math
import struct
import threading
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from lavit_jax.errors import UserError
from lavit_jax.training.metrics import MetricWriter, read_metrics
from small_run import nearly_full_disk


def _write(workdir, start, steps):
    with MetricWriter(workdir, start, total=10, every=2) as writer:
        for step in steps:
            writer.write(step, "encoder", {"loss": 1.0 / step}, rate=1.0, left=1.0)


def test_one_object_a_step(tmp_path):
    _write(tmp_path, 0, [1, 2, 3])
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["phase"], r["loss"]) for r in records][2] == (3, "encoder", 1 / 3)


def test_resuming_drops_steps_after_the_checkpoint_and_never_doubles(tmp_path):
    _write(tmp_path, 0, [1, 2, 3, 4])
    _write(tmp_path, 2, [3, 4, 5])
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_half_written_line_is_dropped(tmp_path):
    _write(tmp_path, 0, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    _write(tmp_path, 2, [3])
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    with MetricWriter(tmp_path, 0, total=1, every=1) as writer:
        writer.write(1, "encoder", {"loss": math.nan}, rate=1.0, left=0.0)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda _: 1 / 0)["loss"] is None


def _board(workdir):
    """Step -> loss as TensorBoard shows them: each session's start drops what it writes anew."""
    shown = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                shown = {step: values for step, values in shown.items() if step < event.step}
            for value in event.summary.value:
                shown.setdefault(event.step, []).append(value.simple_value)
    return shown


def test_tensorboard_shows_every_step_once_after_resuming(tmp_path, monkeypatch):
    stamps = itertools.count(1)
    monkeypatch.setattr("time.time", lambda: float(next(stamps)))  # names of event files
    _write(tmp_path, 0, [2, 4, 6])
    _write(tmp_path, 4, [6, 8])
    shown = _board(tmp_path)
    assert sorted(shown) == [2, 4, 6, 8]
    assert all(len(values) == 1 for values in shown.values())


def test_what_a_checkpoint_counts_on_is_on_disk_before_it(tmp_path):
    with MetricWriter(tmp_path, 0, total=10, every=1) as writer:
        writer.write(1, "encoder", {"loss": 1.0}, rate=1.0, left=1.0)
        writer.flush()
        assert list(_board(tmp_path)) == [1]
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_going_back_drops_what_came_after(tmp_path):
    with MetricWriter(tmp_path, 0, total=10, every=1) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, "encoder", {"loss": 1.0}, rate=1.0, left=1.0)
        writer.go_back(2)
        writer.write(3, "encoder", {"loss": 2.0}, rate=1.0, left=1.0)
        assert [record["loss"] for record in writer.recent] == [1.0, 1.0, 2.0]
    assert [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 1.0, 2.0]


def test_after_going_back_every_process_remembers_what_the_first_does(tmp_path, monkeypatch):
    # In a bucket each has a folder of its own, with the records of before the launch.
    writers = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        first = name == "first"
        writers.append(MetricWriter(tmp_path / name, 0, total=10, every=1, writes=first))
    for step, writer in itertools.product((1, 2, 3, 4), writers):
        writer.write(step, "encoder", {"loss": 1.0 / step}, rate=1.0, left=1.0)
    told = []

    def of_first(work):
        if not told:
            told.append(json.dumps(work()))
        return json.loads(told[0])

    monkeypatch.setattr("lavit_jax.parallel.peers.of_first", of_first)
    for writer in writers:
        writer.go_back(2)
    recent = [[(each["step"], each["loss"]) for each in writer.recent] for writer in writers]
    assert recent == [[(1, 1.0), (2, 0.5)]] * 2


def test_resuming_tells_how_many_steps_have_to_be_done_again(tmp_path):
    _write(tmp_path, 0, [1, 2, 3, 4])
    with MetricWriter(tmp_path, 1, total=10, every=2) as writer:
        assert writer.dropped == 3
        assert [record["step"] for record in writer.recent] == [1]


def test_one_of_several_processes_writes(tmp_path, capsys):
    _write(tmp_path, 0, [1, 2])
    with MetricWriter(tmp_path, 2, total=10, every=1, writes=False) as writer:
        writer.write(3, "encoder", {"loss": 1.0}, rate=1.0, left=1.0)
        writer.flush()
        writer.say("nothing")
        assert [record["step"] for record in writer.recent] == [1, 2, 3]
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "nothing" not in capsys.readouterr().err


def test_a_full_disk_at_the_start_names_the_file_and_loses_nothing(tmp_path):
    _write(tmp_path, 0, [1, 2])
    before = read_metrics(tmp_path / "metrics.jsonl")
    with nearly_full_disk(10), pytest.raises(UserError, match="cannot write .*metrics.jsonl: File"):
        MetricWriter(tmp_path, 2, total=10, every=2)
    assert read_metrics(tmp_path / "metrics.jsonl") == before
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_disk_that_is_full_in_the_middle_ends_it_with_one_line_and_never_hangs(
    tmp_path, monkeypatch
):
    full = Path("/dev/full")
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda path: full.open("wb"))
    said = []

    def write():
        with pytest.raises(UserError) as error:
            _write(tmp_path, 0, range(1, 2001))
        said.append(str(error.value))

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(60)
    assert said == [f"cannot write {tmp_path / 'tensorboard'}: No space left on device"]
