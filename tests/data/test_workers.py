"""Worker processes: what they give, and how they end."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from lavit_jax.data import datasets, pipeline, record
from lavit_jax.data.sources import Raw
from lavit_jax.data.tally import TooManyBroken
from lavit_jax.data.workers import Workers
from lavit_jax.errors import UserError
from shards import jpeg

BROKEN = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set of 44 pictures of which one has become unreadable."""
    where = tmp_path_factory.mktemp("photographs")
    writer = ArrayRecordWriter(str(where / "all.array_record"), "group_size:1")
    for number in range(44):
        image = b"no image" if number == BROKEN else jpeg(number, (40, 36))
        writer.write(record.encode(Raw(str(number), "", image, (f"picture {number}",))))
    writer.close()
    size = (where / "all.array_record").stat().st_size
    shard = {"name": "all.array_record", "examples": 44, "bytes": size}
    index = {"examples": 44, "images": 44, "shards": [shard]}
    (where / "index.json").write_text(json.dumps(index))
    return where


@pytest.fixture
def open_batches(config, folder, tokenizer):
    config.data.dataset = str(folder)
    config.data.held_out = 4
    opened = []

    def open_with(workers, limit=1.0):
        config.data.max_bad_share = limit
        config.data.workers = workers
        opened.append(pipeline.pair_batches(config, "", tokenizer, 12, 5, 16))
        return opened[-1]

    yield open_with
    for batches in opened:
        batches.close()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        assert one[name].dtype == other[name].dtype


def test_their_number_changes_neither_batches_nor_states(open_batches, config, folder):
    alone, helped = open_batches(0), open_batches(2)
    states, expected = [], []
    for _ in range(5):
        states.append(json.loads(json.dumps(alone.get_state())))
        expected.append(next(alone))
    for step in range(3):
        assert helped.get_state() == states[step]
        assert_same(next(helped), expected[step])
    alone.set_state(helped.get_state())
    assert_same(next(alone), expected[3])
    helped.set_state(states[1])  # back, with other batches under way
    for step in range(1, 5):
        assert_same(next(helped), expected[step])


def test_what_they_find_broken_is_counted_logged_and_stops_the_run(open_batches, config, caplog):
    batches = open_batches(1, limit=0.01)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(TooManyBroken, match=r"wrong type \(first: .*all.array_record:record 7\)"),
    ):
        for _ in range(40):
            next(batches)
    assert [line.getMessage()[:8] for line in caplog.records] == ["skipped "]
    counted = datasets.load_prepared(config, config.data.dataset, "train")._items.tally
    assert counted.reasons["wrong type"] >= 5
    assert counted.seen >= 200


def test_faults_come_home():
    workers = Workers(eval, 1)
    try:
        assert workers.ask("6 * 7").result() == 42
        with pytest.raises(RuntimeError, match="ZeroDivisionError in a worker process: division"):
            workers.ask("1 / 0").result()
        said = "__import__('lavit_jax.errors').errors.UserError('too few')"
        with pytest.raises(UserError, match="^too few$"):
            workers.ask(f"(_ for _ in ()).throw({said})").result()
        # Told to stop with everyone else, it stays: the run needs its data until it has saved.
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(workers.pids[0], number)
        assert workers.ask("2").result() == 2
        os.kill(workers.pids[0], signal.SIGKILL)
        with pytest.raises(UserError, match=r"by SIGKILL .* config\.data\.workers"):
            workers.ask("3").result()
    finally:
        workers.close()


PARENT = """
import time
from lavit_jax.data.workers import Workers
workers = Workers(eval, 2)
seen = [workers.ask(
    "[__import__('lavit_jax.data.' + name) for name in ('views', 'prepared')] and "
    "[name for name in ('jax', 'grain', 'tensorflow') if name in __import__('sys').modules]"
) for _ in range(2)]
print(*workers.pids, *[found for answer in seen for found in answer.result()], flush=True)
workers.ask("b'x' * 50_000_000")  # one is busy with an answer that nobody takes
time.sleep(100)
"""


def running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.subprocess
def test_they_need_no_device_and_end_with_their_parent_however_it_ends():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]  # and no name of a module
    assert len(pids) == 2
    assert all(running(pid) for pid in pids)
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while any(running(pid) for pid in pids):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.05)
