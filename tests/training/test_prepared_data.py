"""A run on a data set of the user's, from its shards to the last step of stage two."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from lavit_jax.cli.main import main
from lavit_jax.convert.convert import convert
from lavit_jax.data import stored_ids
from lavit_jax.data.prepare.store import Store
from lavit_jax.data.prepared import Prepared
from lavit_jax.errors import UserError
from lavit_jax.inference import api
from lavit_jax.training import tokenize_dataset as job
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.restore import restore
from processes import environments
from shards import write_tar
from small_run import nearly_full_disk
from tiny import mini_config

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "lavit-mini"
STEPS = 2
TEXT = "--config.data.text_vocab_size=300"
SIZES = ("small", "large", "round", "flat", "bright", "dark")
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")


SECONDS = 900
# The second process, in the middle of its shard.
DIES_WITHIN_A_SHARD = """
import os, signal, sys
from lavit_jax.cli.main import main
from lavit_jax.data import stored_ids
from lavit_jax.parallel import start

encode, done = stored_ids.encode, []

def encoded(*example):
    if os.environ[start.INDEX] == "1" and len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(0)
    return encode(*example)

stored_ids.encode = encoded
sys.exit(main(sys.argv[1:]))
"""


COMES_AGAIN_UNTIL_IT_MAY = """
import sys
from lavit_jax.cli.main import main
while (status := main(sys.argv[1:])) == 2:
    pass
sys.exit(status)
"""


def pair_of(code, arguments, logs=(None, None)):
    """Two processes that run code together."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            stderr=log and log.open("w"),
        )
        for variables, log in zip(environments(), logs)
    ]


def assert_two_processes_write_the_same(data, ids, workdir, alone):
    """One of two dies within a shard, both are started again; `alone` is a folder in memory.

    Meanwhile another job has begun there, which both are told of until it ends.
    """
    command = ["tokenize-dataset", data, str(ids), "--checkpoint", workdir]
    logs = [ids.with_name(f"stderr-{index}") for index in range(2)]
    refusal = f"lavit: error: another process is preparing {ids}\n"
    first, second = pair_of(DIES_WITHIN_A_SHARD, command)
    assert second.wait(SECONDS) == -signal.SIGKILL
    first.kill()
    first.wait()
    assert not (ids / "index.json").exists()
    assert list(ids.glob(".work/tmp-*/ids-*"))
    with Store(str(ids)).claimed():
        both = pair_of(COMES_AGAIN_UNTIL_IT_MAY, command, logs)
        while not all(refusal in log.read_text() for log in logs):
            assert [process.poll() for process in both] == [None, None], logs[0].read_text()
            time.sleep(0.01)
    assert [process.wait(SECONDS) for process in both] == [0, 0]
    found = {path.name: path.read_bytes() for path in ids.iterdir()}
    expected = {
        Path(name).name: file for name, file in fsspec.filesystem("memory").cat(alone).items()
    }
    indexes = [json.loads(files.pop("index.json")) for files in (found, expected)]
    assert [index.pop("job") for index in indexes] == [
        {"source": data},
        {"source": "memory://pictures/data"},
    ]
    assert indexes[0] == indexes[1]
    assert found == expected


def prepare_pictures(folder):
    members = []
    for number in range(96):
        colour = COLOURS[number % len(COLOURS)]
        image = Image.new("RGB", (40, 32), colour)
        image.paste(SIZES.index(SIZES[number % 6]) * 40, (4, 4, 8 + number % 20, 20))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        text = f"a {SIZES[number % 6]} thing on {colour}, number {number}"
        members += [(f"{number:04d}.jpg", buffer.getvalue()), (f"{number:04d}.txt", text.encode())]
    write_tar(folder / "src" / "00000.tar", members)
    command = ["data", "prepare", str(folder / "src"), str(folder / "data"), "--workers", "1"]
    assert main([*command, "--shard-mb", "0.03"]) == 0


def decoded(example):
    return np.asarray(Image.open(io.BytesIO(example.image)).convert("RGB"))


def assert_a_full_disk_is_told(data, ids, workdir, capsys):
    with nearly_full_disk(1000):
        assert main(["tokenize-dataset", data, str(ids), "--checkpoint", workdir]) == 2
    assert f"\nlavit: error: cannot write {ids}: File too large\n" in capsys.readouterr().err
    assert (ids / ".work").is_dir()
    assert not list(ids.glob(".work/tmp-*"))  # of a shard half written nothing is left


@pytest.mark.subprocess
def test_a_prepared_data_set_is_trained_on_and_tokenized_for_stage_two(
    tmp_path, monkeypatch, capsys
):
    """Data and ids in a bucket, for which `memory://` stands; the other tests have folders."""
    prepare_pictures(tmp_path)
    fsspec.filesystem("memory").put(f"{tmp_path}/data/", "/pictures/data/", recursive=True)
    data, ids, workdir = "memory://pictures/data", "memory://pictures/ids", str(tmp_path / "work")
    phases = [f"--config.phases.{name}.steps={STEPS}" for name in mini_config().schedule]
    train = ["train", "--config", "configs/mini.py", "--workdir", workdir, *phases, TEXT]
    train += [f"--config.data.dataset={data}", f"--config.data.visual_ids={ids}"]
    train += [f"--config.data.cache={tmp_path / 'cache'}", "--config.log.sample_every=0"]

    # Stage two needs ids of the finished tokenizer, and says how to make them.
    assert main(train) == 2
    assert (
        f"run `lavit tokenize-dataset DATA {ids} --checkpoint WORKDIR`" in capsys.readouterr().err
    )
    tokenize = ["tokenize-dataset", data, ids, "--checkpoint", workdir]

    # Stopped halfway, it goes on with the shards that are left.
    written = []
    write = job._write

    def stop_after_one(store, shard, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(shard.name)
        write(store, shard, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(job, "_write", stop_after_one)
        assert main(tokenize) == 130

    assert_a_full_disk_is_told(str(tmp_path / "data"), tmp_path / "full", workdir, capsys)
    monkeypatch.setattr(
        job,
        "_write",
        lambda store, shard, *rest: written.append(shard.name) or write(store, shard, *rest),
    )
    assert main([*tokenize, "--json"]) == 0
    index = json.loads(capsys.readouterr().out)
    assert len(written) == len(set(written)) == len(index["shards"]) > 1

    # They are what the model itself says.
    model = api.load(workdir)
    found = restore(tmp_path / "work")
    stamp = stored_ids.Stamp(**index["stamp"])
    assert found.step == 3 * STEPS
    stored, pictures = stored_ids.StoredIds(ids, stamp, 96), Prepared(data)
    for place in (0, 50, 95):
        (tokens,) = model.tokenize([decoded(pictures[place])])
        np.testing.assert_array_equal(stored[place].codes_L, tokens.ids)
        np.testing.assert_array_equal(stored[place].keep_N, tokens.keep)

    # Two processes write the same, whatever became of two before them.
    assert_two_processes_write_the_same(
        str(tmp_path / "data"), tmp_path / "together", workdir, "/pictures/ids/*"
    )

    # Another budget of patches makes other ids, and a converted tokenizer does too.
    fewer = job.tokenize_dataset(data, str(tmp_path / "fewer"), workdir, max_kept=2)
    assert fewer["stamp"]["selection"].startswith("greedy, at most 2,")
    cut = stored_ids.StoredIds(str(tmp_path / "fewer"), stored_ids.Stamp(**fewer["stamp"]), 96)
    assert {len(cut[place].codes_L) for place in range(96)} <= {1, 2}
    convert(GOLDENS, tmp_path / "converted")
    published = job.tokenize_dataset(
        data, str(tmp_path / "published"), tmp_path / "converted", max_kept=9
    )
    assert published["stamp"]["selection"] == "greedy, at most 9, published merger"
    with pytest.raises(UserError, match=r"--max-kept must lie in 1..16, got 17"):
        job.tokenize_dataset(data, str(tmp_path / "more"), workdir, max_kept=17)

    assert main(train) == 0
    records = read_metrics(tmp_path / "work" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 4 * STEPS + 1))
    assert all(np.isfinite(record["loss"]) for record in records)
    with pytest.raises(UserError, match="weights: .* there, other here"):
        stored_ids.StoredIds(
            ids, stored_ids.Stamp("other", stamp.preprocessing, stamp.selection), 96
        )
