"""Runs whose steps break or whose loss spikes, of one phase and a few steps."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from benchmarks import kills
from lavit_jax.cli.main import main
from lavit_jax.errors import UserError
from lavit_jax.training import launches, phase_start, replay, spikes, storage
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.run import train
from tiny import mini_config

OVERRIDES = (
    "--config.schedule=encoder",
    "--config.phases.encoder.steps=14",
    "--config.checkpoint.every=3",
    "--config.log.every=1",
)
# Steps whose learning rate breaks everything; the loss is not finite from the second step on.
BREAKING = (
    *OVERRIDES,
    "--config.phases.encoder.optimizer.learning_rate=1e12",
    "--config.phases.encoder.optimizer.warmup=0",
    "--config.health.max_skipped=3",
)


@pytest.fixture(scope="module")
def broken(new_workdir: Callable[[], Path]) -> tuple[Path, str]:
    """The work directory of a run that gave up, and what it said."""
    workdir = new_workdir()
    with pytest.raises(UserError) as error:
        train(mini_config(*BREAKING), workdir)
    return workdir, str(error.value)


def test_a_run_gives_up_on_broken_steps_and_says_how_to_look_into_them(broken):
    workdir, said = broken
    (path,) = (workdir / "bad_batches").iterdir()
    step = int(path.stem)
    assert f"stopped at step {step}: loss or gradients of 3 steps in a row" in said
    assert f"`lavit replay {path}`" in said
    records = read_metrics(workdir / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [0.0] * (step - 3) + [1.0] * 3
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert launches.read(workdir)[-1]["status"] == "failed"


def test_the_same_command_again_gives_up_at_once(broken, tmp_path):
    workdir = shutil.copytree(broken[0], tmp_path / "copy", symlinks=True)
    with pytest.raises(UserError, match="4 steps in a row"):
        train(mini_config(*BREAKING), workdir)


def test_replay_says_which_loss_and_gradients_are_not_finite(broken, capsys):
    (path,) = (broken[0] / "bad_batches").iterdir()
    assert main(["replay", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step"], found["phase"]) == (int(path.stem), "encoder")
    assert found["fields"] == []
    assert "loss" in found["metrics"] or found["gradients"]
    assert all(name.split("/")[0] in ("encoder", "text_tower", "contrastive", "pixel_head")
               for name in found["gradients"])  # fmt: skip
    assert main(["replay", str(path)]) == 0
    assert "not finite: " in capsys.readouterr().out


def test_a_batch_that_is_broken_itself_is_told(broken, tmp_path):
    workdir = shutil.copytree(broken[0], tmp_path / "copy", symlinks=True)
    (path,) = (workdir / "bad_batches").iterdir()
    with np.load(path) as stored:
        batch = dict(stored)
    batch["images"] = batch["images"].astype(np.float32)
    batch["images"][0, 0, 0, 0] = np.nan
    with path.open("wb") as file:
        np.savez(file, **batch)
    finding = replay.replay(path)
    assert finding.fields == ("images",)
    assert "batch      not finite: images" in replay.describe(finding)


def test_a_batch_in_a_bucket_is_replayed(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_remote", lambda url: epath.Path(broken[0]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (path,) = (broken[0] / "bad_batches").iterdir()
    found = replay.replay(f"gs://bucket/run/bad_batches/{path.name}")
    assert replay.describe(found) == replay.describe(replay.replay(path))
    with pytest.raises(UserError, match="gs://bucket/run/bad_batches/1.npz: no such file"):
        replay.replay("gs://bucket/run/bad_batches/1.npz")


def test_a_batch_without_its_checkpoint_is_a_mistake(broken, tmp_path):
    workdir = shutil.copytree(broken[0], tmp_path / "copy", symlinks=True)
    (path,) = (workdir / "bad_batches").iterdir()
    shutil.rmtree(workdir / "checkpoints" / str(int(path.stem)))
    with pytest.raises(UserError, match="has no checkpoint of step"):
        replay.replay(path)


@pytest.fixture
def spiking(monkeypatch):
    """Makes the losses of three steps' data spike, whenever these are read."""
    monkeypatch.setattr(spikes, "LEAST", 4)
    monkeypatch.setattr(spikes, "FLOOR", 0.5)
    compiled_step = phase_start.compiled_step

    def of(rows):
        def replaced(run, phase):
            step_fn = compiled_step(run, phase)

            def step(state, batch):
                bad = kills.rows_of(batch) in rows
                state, metrics = step_fn(state, batch)
                return state, metrics | {"loss": metrics["loss"] + jnp.float32(1000.0 * bad)}

            return step

        monkeypatch.setattr(phase_start, "compiled_step", replaced)

    return of


def test_a_run_goes_back_before_a_spike_and_past_its_data(new_workdir, tmp_path, spiking, capsys):
    plain = new_workdir()
    with kills.batches_logged(tmp_path / "plain.log"):
        train(mini_config(*OVERRIDES), plain)
    seen = kills.examples_seen(tmp_path / "plain.log")
    rows = [seen[step]["rows"] for step in (7, 8, 9)]
    capsys.readouterr()
    told, rewound = new_workdir(), new_workdir()

    spiking(rows)
    train(mini_config(*OVERRIDES), told)
    assert "step 9: the loss rose from" in capsys.readouterr().err
    high = [r["step"] for r in read_metrics(told / "metrics.jsonl") if r["loss"] > 900]
    assert high == [7, 8, 9]

    with kills.batches_logged(tmp_path / "rewound.log"):
        train(mini_config(*OVERRIDES, "--config.health.rewinds=1"), rewound)
    assert "went back to step 6, past the data since then" in capsys.readouterr().err
    records = read_metrics(rewound / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 15))
    assert max(record["loss"] for record in records) < 900
    after = kills.examples_seen(tmp_path / "rewound.log")
    assert [after[step] for step in (5, 6, 7, 8)] == [seen[step] for step in (5, 6, 11, 12)]
