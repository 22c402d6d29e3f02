"""Weights that a run trained, written back in the published layout."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax import config as configs
from lavit_jax.cli.main import main
from lavit_jax.convert.convert import convert
from lavit_jax.convert.published import load_published
from lavit_jax.convert.reverse import reverse
from lavit_jax.errors import UserError
from lavit_jax.training.checkpoints import Checkpoints
from lavit_jax.training.optimizer import make_optimizer
from lavit_jax.training.retention import Policy
from lavit_jax.training.schedule import make_schedule
from lavit_jax.training.state import TrainState
from tiny import mini_config

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
STEP = 3
TRAINED = ("conditioner", "llm")


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "ours"
    convert(GOLDENS, folder)
    return folder


@pytest.fixture(scope="module")
def published():
    return load_published(GOLDENS)


def moved(tree, by):
    return jax.tree.map(lambda x: jnp.asarray(x) + by, tree)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, jax.device_get(other))


def make_workdir(workdir, published, *, average=False, change=lambda config: None):
    """A run of stage two whose weights are the published ones, moved by 1; averages by 2."""
    config = mini_config("--config.schedule=unified")
    if average:
        config.phases.unified.optimizer.ema = 0.9
    change(config)
    (phase,) = make_schedule(config)
    held = {name: published.params[name] for name in phase.names if name in published.params}
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    book = published.codebook
    state = TrainState(
        jnp.array(STEP),
        moved(held, 1),
        book.replace(codes_KC=jnp.asarray(book.codes_KC) + 1),
        tx.init(moved({name: held[name] for name in TRAINED}, 2)),
        jax.random.PRNGKey(0),
    )
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    shutil.copy(GOLDENS / "language_model" / "tokenizer.model", workdir / "text.model")
    checkpoints = Checkpoints(workdir / "checkpoints", Policy(1))
    checkpoints.save(STEP, state, {"step": STEP})
    checkpoints.close()
    return workdir


@pytest.mark.parametrize("average", [False, True])
def test_what_a_run_has_takes_the_place_of_the_same_modules(average, ours, published, tmp_path):
    workdir = make_workdir(tmp_path / "run", published, average=average)
    report = reverse(ours, tmp_path / "back", weights=workdir)
    back = load_published(tmp_path / "back")
    for name, params in published.params.items():
        by = 0 if name not in report.replaced else 2 if average and name in TRAINED else 1
        same(moved(params, by), back.params[name])
    same(np.asarray(published.codebook.codes_KC) + 1, back.codebook.codes_KC)
    assert {"encoder", "codebook", *TRAINED} <= set(report.replaced)
    assert not {"lowres_unet", "highres_head"} & set(report.replaced)


def test_the_command_says_what_it_took(ours, published, tmp_path, capsys):
    workdir = make_workdir(tmp_path / "run", published)
    argv = ["convert", str(ours), str(tmp_path / "back"), "--reverse", "--weights", str(workdir)]
    assert main([*argv, "--part", "language_model"]) == 0
    assert "trained since: llm" in capsys.readouterr().out
    assert not (tmp_path / "back" / "visual_tokenizer").exists()
    assert main(["convert", str(GOLDENS), str(tmp_path / "x"), "--weights", str(workdir)]) == 2
    assert f"--weights {workdir} without --reverse" in capsys.readouterr().err


def test_a_decoder_that_the_published_code_cannot_compute_is_refused(ours, published, tmp_path):
    def change(config):
        config.model.decoder.norm_qk = True

    workdir = make_workdir(tmp_path / "run", published, change=change)
    with pytest.raises(UserError, match="norm_qk=True, which the published code cannot compute"):
        reverse(ours, tmp_path / "back", weights=workdir)
    assert not (tmp_path / "back").exists()


def test_a_run_of_other_sizes_is_told(ours, published, tmp_path):
    wide = published._replace(
        params={
            **published.params,
            "llm": jax.tree.map(lambda x: np.zeros((*x.shape, 2)), published.params["llm"]),
        }
    )
    workdir = make_workdir(tmp_path / "run", wide)
    with pytest.raises(UserError, match=r"llm/\S+ has shape \(.*\), the converted checkpoint's"):
        reverse(ours, tmp_path / "back", weights=workdir)
    lacking = published._replace(
        params={**published.params, "llm": {"lm_head": published.params["llm"]["lm_head"]}}
    )
    workdir = make_workdir(tmp_path / "other", lacking)
    with pytest.raises(UserError, match="lacks an array of the converted checkpoint"):
        reverse(ours, tmp_path / "back", weights=workdir)


def test_a_damaged_or_missing_checkpoint_is_told(ours, published, tmp_path):
    workdir = make_workdir(tmp_path / "run", published)
    folder = workdir / "checkpoints" / str(STEP)
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        reverse(ours, tmp_path / "back", weights=workdir)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no complete checkpoint"):
        reverse(ours, tmp_path / "back", weights=workdir)
    with pytest.raises(UserError, match="expected a folder on disk"):
        reverse(ours, tmp_path / "back", weights="gs://bucket/run")
