"""Runs that are stopped, killed or damaged, beside one that nothing disturbed."""

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from ml_collections import ConfigDict

from benchmarks import kills
from benchmarks.kills import Training
from lavit_jax.cli.main import main
from lavit_jax.training import launches, phase_start, samples, starting, storage, visual_cache
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.restore import restore
from lavit_jax.training.run import train
from lavit_jax.training.schedule import make_schedule
from small_run import OVERRIDES, TOTAL, UNSEEN, losses, nearly_full_disk, run_apart
from tiny import mini_config

KILLS = 2  # one within a save; `benchmarks/kills.py` does 20
SELECTOR_FIRST = "configs/mini.py:selector_first"


@pytest.fixture(scope="module")
def disturbed(new_workdir: Callable[[], Path]) -> tuple[Path, list[tuple[int, str]]]:
    """A run that was killed, terminated and interrupted; exit status and output of each part."""
    workdir = new_workdir()
    log = workdir / "batches.log"
    parts = [Training(workdir, log, UNSEEN).kill(*when) for when in kills.moments(KILLS, seed=1)]
    # In one phase and the next: a launch begins as few phases anew as it can.
    for step, numbers in ((8, [signal.SIGTERM] * 3), (16, [signal.SIGINT])):
        training = Training(workdir, log, UNSEEN)
        while max(kills.examples_seen(log)) < step:
            time.sleep(0.005)
        parts.append(training.signal(*numbers))
    parts.append(Training(workdir, log, UNSEEN).end())
    return workdir, parts


@pytest.fixture(scope="module")
def selector_first(new_workdir: Callable[[], Path]) -> Path:
    """The work directory of a run in the other order of stage one."""
    workdir = new_workdir()
    train(mini_config(*UNSEEN, config=SELECTOR_FIRST), workdir)
    return workdir


def copy(workdir: Path, place: Path) -> Path:
    return shutil.copytree(workdir, place / "copy", symlinks=True)


def without_the_newest(workdir: Path) -> Path:
    """A run whose last checkpoint is now the end of stage one."""
    for step in ("21", "22"):
        shutil.rmtree(workdir / "checkpoints" / step)
    return workdir


def listing(workdir: Path) -> list[tuple[Path, int]]:
    return sorted(
        (path, path.stat().st_mtime_ns)
        for path in (workdir / "checkpoints").rglob("*")
        if path.is_file()
    )


def test_a_model_in_a_bucket_is_used_and_started_from(whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_remote", lambda url: epath.Path(whole_run))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    here, there = restore(whole_run), restore("gs://bucket/run")
    assert there.step == TOTAL
    jax.tree.map(np.testing.assert_array_equal, here.params, there.params)
    config = ConfigDict({"start_from": "gs://bucket/run"})
    starting.copy_text_model(config, tmp_path / "text.model")
    assert (tmp_path / "text.model").read_bytes() == (whole_run / "text.model").read_bytes()


def test_every_step_is_recorded_once(whole_run):
    assert [step for step, _ in losses(whole_run)] == list(range(1, TOTAL + 1))


def test_samples_are_drawn_at_the_end_of_every_phase_with_pictures(whole_run):
    names = sorted(path.name for path in (whole_run / "samples").iterdir())
    assert names == ["0000010-select.png", "0000014-quantize.png", "0000022-unified.png"]


@pytest.mark.subprocess
def test_a_run_killed_terminated_and_interrupted_equals_an_undisturbed_one_bit_for_bit(
    whole_run, disturbed
):
    assert read_metrics(disturbed[0] / "metrics.jsonl") == read_metrics(whole_run / "metrics.jsonl")


@pytest.mark.subprocess
def test_a_killed_run_sees_the_examples_that_an_undisturbed_one_sees(whole_run, disturbed):
    seen = kills.examples_seen(whole_run / "batches.log")
    assert list(seen) == list(range(1, TOTAL + 1))
    assert kills.examples_seen(disturbed[0] / "batches.log") == seen
    first = [place for step in range(1, 7) for place in seen[step]["index"]]
    assert len(set(first)) == len(first)


@pytest.mark.subprocess
def test_exit_status_tells_how_a_run_ended_however_often_it_was_terminated(disturbed):
    statuses = [status for status, _ in disturbed[1]]
    assert statuses == [-signal.SIGKILL] * KILLS + [0, 130, 0]


@pytest.mark.subprocess
def test_a_stopped_run_says_where_it_saved_and_goes_on_there(disturbed):
    outputs = [output for _, output in disturbed[1]][KILLS:]
    for stopped, resumed in itertools.pairwise(outputs):
        (saved,) = [line for line in stopped.splitlines() if line.startswith("saved at step")]
        assert f"going on from {saved.removeprefix('saved at ')}" in resumed.splitlines()
    assert "run the same command again to go on" in outputs[1]
    assert not any("Traceback" in output for output in outputs)


def test_a_damaged_newest_checkpoint_falls_back_and_the_curve_is_equal(whole_run, tmp_path, capsys):
    workdir = copy(whole_run, tmp_path)
    damaged = [workdir / "checkpoints" / step for step in ("21", "22")]
    for path in (path for folder in damaged for path in folder.rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(mini_config(*OVERRIDES), workdir)
    told = capsys.readouterr().err
    assert all(f"{folder} is damaged" in told for folder in damaged)
    assert "going on from step 14 of 22" in told
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole_run / "metrics.jsonl")
    assert all(folder.with_name(f"{folder.name}.damaged").is_dir() for folder in damaged)


def test_a_run_goes_on_on_another_mesh(whole_run, tmp_path):
    workdir = without_the_newest(copy(whole_run, tmp_path))
    train(mini_config(*UNSEEN, "--config.mesh.fsdp=2"), workdir)
    np.testing.assert_allclose(losses(workdir), losses(whole_run), rtol=0, atol=1e-5)


def test_a_full_disk_ends_with_status_2_and_the_run_goes_on_once_there_is_room(
    whole_run, tmp_path, capsys
):
    workdir = without_the_newest(copy(whole_run, tmp_path))
    argv = ["train", "--config", "configs/mini.py", "--workdir", str(workdir), *UNSEEN]
    with nearly_full_disk(20_000):
        assert main(argv) == 2
    told = capsys.readouterr().err.splitlines()
    assert f"cannot save to {workdir / 'checkpoints'}: File too large; step 14 is the" in told[-1]
    assert not any("Traceback" in line for line in told)
    assert not list((workdir / "checkpoints").glob("15*"))
    assert main(argv) == 0
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole_run / "metrics.jsonl")


@pytest.fixture
def terminated_by_default():
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_sigterm_leaves_off_what_is_long_and_saves_the_step_that_is_done(
    whole_run, tmp_path, monkeypatch, terminated_by_default
):
    workdir = without_the_newest(copy(whole_run, tmp_path))
    config = mini_config(*OVERRIDES, "--config.log.sample_every=4")
    ended = []

    def terminated(*unused):
        os.kill(os.getpid(), signal.SIGTERM)
        ended.append("too late")

    # While a phase begins, which leaves nothing to save: the codes of thousands of pictures.
    with monkeypatch.context() as patched:
        patched.setattr(visual_cache, "load_or_build", terminated)
        with pytest.raises(SystemExit) as stopped:
            train(config, workdir)
    assert (stopped.value.code, losses(workdir)[-1][0]) == (0, 14)
    # While samples are drawn, here those of step 16.
    with monkeypatch.context() as patched:
        patched.setattr(samples, "_said_and_drawn", terminated)
        with pytest.raises(SystemExit) as stopped:
            train(config, workdir)
    assert (stopped.value.code, losses(workdir)[-1][0]) == (0, 16)
    assert not ended
    assert (workdir / "checkpoints" / "16").is_dir()
    # While a phase begins and its step compiles, and its first sheet does: no handler may run.
    seen = []

    @contextlib.contextmanager
    def left(self, last):
        last()
        seen.append([launches.read(workdir)[-1][what] for what in ("status", "step")])
        yield

    monkeypatch.setattr(Interruption, "nothing_to_lose", left)
    train(config, workdir)
    assert seen == [["stopped", 16], ["stopped", 20]]
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole_run / "metrics.jsonl")


def test_a_half_written_checkpoint_is_ignored_and_a_finished_run_stays_as_it_is(
    whole_run, tmp_path
):
    workdir = copy(whole_run, tmp_path)
    before = listing(workdir)
    half = workdir / "checkpoints" / "25.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "21", half)
    train(mini_config(*OVERRIDES), workdir)
    assert listing(workdir) == before
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(whole_run / "metrics.jsonl")


def test_a_work_directory_of_another_config_is_refused_with_status_2(whole_run, capsys):
    before = listing(whole_run)
    argv = ["train", "--config", "configs/mini.py", "--workdir", str(whole_run), *OVERRIDES]
    assert main([*argv, "--config.seed=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed: 0 -> 1" in line
    assert listing(whole_run) == before


@pytest.mark.subprocess
def test_losses_agree_on_one_device_and_on_eight(whole_run, new_workdir, monkeypatch):
    one = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    monkeypatch.setenv("XLA_FLAGS", one)
    workdir = new_workdir()
    assert run_apart(workdir, *UNSEEN) == 0
    alone, eight = losses(workdir), losses(whole_run)
    assert len(alone) == TOTAL
    np.testing.assert_allclose(alone, eight, rtol=0, atol=1e-5)


def test_runs_of_one_seed_have_identical_losses(whole_run, selector_first):
    encoder = slice(0, 6)  # the phase that both schedules begin with
    assert losses(selector_first)[encoder] == losses(whole_run)[encoder]


def test_both_schedules_run_to_their_end(whole_run, selector_first):
    phases = [
        list(dict.fromkeys(record["phase"] for record in read_metrics(run / "metrics.jsonl")))
        for run in (whole_run, selector_first)
    ]
    assert phases[0] == ["encoder", "select", "quantize", "unified"]
    assert phases[1] == ["encoder", "reconstruct", "selector_alone", "quantize_rest", "unified"]
    assert all(np.isfinite(loss) for _, loss in losses(selector_first))


@pytest.mark.parametrize("config", ["configs/mini.py", SELECTOR_FIRST])
def test_frozen_modules_do_not_change_by_a_bit_and_trained_ones_do(
    whole_run, selector_first, config
):
    workdir = whole_run if config == "configs/mini.py" else selector_first
    phases = make_schedule(mini_config(*OVERRIDES, config=config))
    states = [_saved(workdir, phase.end) for phase in phases]
    for phase, before, after in zip(phases[1:], states, states[1:]):
        assert _same(before["codebook"], after["codebook"]) != phase.config.get("quantize", False)
        for name, old in before["params"].items():
            same = _same(old, after["params"][name])
            assert same == (name not in phase.trained), (phase.name, name)


def _saved(workdir: Path, step: int) -> dict:
    return ocp.StandardCheckpointer().restore(
        (workdir / "checkpoints" / str(step) / "state").absolute()
    )


def _same(old, new) -> bool:
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_a_phase_too_large_for_the_devices_is_one_line(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 27.5G of 15.48G hbm.\nmore")

    monkeypatch.setattr(phase_start, "enter", fails)
    argv = ["train", "--config", "configs/mini.py", "--workdir", str(tmp_path / "w"), *OVERRIDES]
    assert main(argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "too little memory: phase 'encoder' does not fit; `lavit plan` with" in last
    assert last.endswith("(RESOURCE_EXHAUSTED: Used 27.5G of 15.48G hbm.)")
