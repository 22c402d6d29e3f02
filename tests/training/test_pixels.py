"""Training the pixel decoder: its objective, its averaged weights, and a whole small run."""

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lavit_jax import config as configs
from lavit_jax import pixel_report
from lavit_jax.data import pipeline
from lavit_jax.data.pipeline import Readers
from lavit_jax.errors import UserError
from lavit_jax.inference import api
from lavit_jax.models import lavit, quantizer
from lavit_jax.models.config import lavit_config
from lavit_jax.report.data import ReportData
from lavit_jax.report.html import write_report
from lavit_jax.training import optimizer
from lavit_jax.training.objectives import READS, make_objective
from lavit_jax.training.restore import restore
from lavit_jax.training.run import train
from lavit_jax.training.schedule import make_schedule
from random_params import random_params
from tiny import TEXT_VOCAB, mini_config

PIXELS = "configs/twemoji_pixels.py:mini"


def pixel_config(*overrides: str):
    return configs.load_config(PIXELS, overrides)


@functools.cache
def setting():
    """Modules, random parameters, codebook and a batch."""
    config = pixel_config()
    modules = lavit.build_modules(lavit_config(config.model.to_dict(), TEXT_VOCAB))
    params = random_params(lambda key: lavit.init_params(modules, READS["diffusion"], key))
    book = quantizer.random_codebook(modules.config.quantizer, jax.random.key(1))
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    return config, modules, params, book, {"images": images}


def loss_of(drop: float):
    config, modules, params, book, batch = setting()
    phase = {**config.phases.pixels, "condition_drop": drop}
    objective = make_objective(modules, phase)
    key = jax.random.key(3)
    return (lambda p: objective(p, book, batch, key)[0]), params


def gradient_norms(drop: float) -> dict[str, float]:
    """Of each module, in one program: each leaf's norm alone would be compiled apart."""
    loss, params = loss_of(drop)

    @jax.jit
    def norms(params):
        grads = jax.grad(loss)(params)
        return {name: optax.global_norm(tree) for name, tree in grads.items()}

    return {name: float(norm) for name, norm in norms(params).items()}


def test_only_the_head_and_the_unet_get_gradients():
    moved = {name for name, norm in gradient_norms(0.0).items() if norm > 0}
    assert moved == {"lowres_head", "lowres_unet"}


def test_a_dropped_condition_is_not_read():
    norms = gradient_norms(0.999999)
    # With zeros for every condition, the head's output and so its weights decide nothing.
    assert norms["lowres_head"] == 0
    assert norms["lowres_unet"] > 0


def test_a_model_that_predicts_nothing_loses_the_targets_variance():
    loss, params = loss_of(0.1)
    unet = params["lowres_unet"]
    silent = {**unet, "out_conv": jax.tree.map(jnp.zeros_like, unet["out_conv"])}
    # Pixels in [-1, 1] of random pictures have a variance of a third.
    assert 0.3 < float(jax.jit(loss)({**params, "lowres_unet": silent})) < 0.4


def test_the_objective_needs_a_pixel_decoder_and_a_share():
    config, modules, *_ = setting()
    with pytest.raises(ValueError, match="condition_drop must lie in"):
        make_objective(modules, {**config.phases.pixels, "condition_drop": 1.0})
    plain = lavit.build_modules(lavit_config(mini_config().model.to_dict(), TEXT_VOCAB))
    with pytest.raises(ValueError, match="needs config.model.pixels"):
        make_objective(plain, config.phases.pixels)


def test_other_modules_start_as_they_do_without_a_pixel_decoder():
    _, modules, *_ = setting()
    plain = lavit.build_modules(lavit_config(mini_config().model.to_dict(), TEXT_VOCAB))
    for name in ("selector", "decoder"):
        first, second = (lavit.init_params(m, (name,), jax.random.key(0)) for m in (modules, plain))
        jax.tree.map(np.testing.assert_array_equal, first, second)


def test_averaged_weights_follow_the_trained_ones():
    tx = optax.chain(optax.sgd(1.0), optimizer.average_params(0.5))
    params = {"a": jnp.array(0.0)}
    state = tx.init(params)
    seen = []
    for _ in range(30):
        updates, state = tx.update({"a": jnp.array(-1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(optimizer.averaged(state)["a"]))
    # Steps of one: an average that halves the distance every step lags one behind.
    assert float(params["a"]) == 30.0
    assert seen[-1] == pytest.approx(29.0, abs=1e-3)
    assert seen[0] > 0.9  # the first step all but replaces the start
    assert optimizer.averaged(optax.adam(1.0).init(params)) == {}


def test_pictures_are_painted_at_a_side_of_their_own(data_dir):
    config, readers = pixel_config(), Readers(threads=0)
    both = next(pipeline.pixel_batches(config, data_dir, 4, 5, 48, readers=readers))
    assert both["images"].shape == (4, 32, 32, 3) and both["pixels"].shape == (4, 48, 48, 3)
    alone = next(pipeline.pixel_batches(config, data_dir, 4, 5, 32, readers=readers))
    assert "pixels" not in alone
    np.testing.assert_array_equal(alone["index"], both["index"])
    # The same views: the smaller picture is the larger one made smaller.
    assert np.abs(alone["images"].astype(int) - both["images"].astype(int)).mean() < 12


def test_a_run_without_a_tokenizer_to_start_from_is_told(tmp_path):
    with pytest.raises(UserError, match="config.start_from is empty, but phase 'pixels'"):
        train(pixel_config(), tmp_path / "run")
    with pytest.raises(UserError, match="no such folder"):
        train(pixel_config(f"--config.start_from={tmp_path / 'none'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_frozen_modules_are_told():
    with pytest.raises(UserError, match="frozen names 'painter', expected some of"):
        make_schedule(pixel_config("--config.phases.pixels.frozen=painter"))


def test_a_share_that_leaves_no_condition_is_told_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"condition_drop must be a number in 0..0.99, got 1.0"):
        train(pixel_config("--config.phases.pixels.condition_drop=1.0"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spec", ["configs/pixel_decoder.py", "configs/twemoji_pixels.py"])
def test_the_shipped_configs_can_work(spec):
    config = configs.load_config(spec)
    (phase,) = make_schedule(config)
    assert phase.trained == ("lowres_head", "lowres_unet")
    sizes = lavit_config(config.model.to_dict(), 800).pixels
    assert sizes.unet.in_channels == (4 if sizes.autoencoder else 12)
    if sizes.autoencoder:
        assert (sizes.factor, phase.steps, sizes.unet.time_width) == (8, 20_000, 1280)


@pytest.fixture(scope="module")
def quickstart(whole_run: Path, tmp_path_factory) -> Path:
    """A work directory with every part trained for some steps, and its report."""
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    shutil.copytree(whole_run, workdir, symlinks=True)
    write_report(workdir, ReportData("A report", {}))
    return workdir


@pytest.fixture(scope="module")
def painted(quickstart: Path, data_dir: Path, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("pixels")
    (workdir / "data").symlink_to(data_dir)
    train(pixel_config(f"--config.start_from={quickstart}", "--config.checkpoint.every=4"), workdir)
    return workdir


def test_a_run_trains_the_unet_and_leaves_the_tokenizer_alone(quickstart, painted):
    before, after = restore(quickstart), restore(painted)
    for name in ("encoder", "decoder", "llm", "pixel_head"):
        jax.tree.map(np.testing.assert_array_equal, before.params[name], after.params[name])
    np.testing.assert_array_equal(before.codebook.codes_KC, after.codebook.codes_KC)
    assert before.text.vocab_size == after.text.vocab_size
    # Restored are the averaged weights: no longer the start's zeros.
    assert np.abs(after.params["lowres_unet"]["out_conv"]["kernel"]).max() > 0
    assert (painted / "samples" / "0000008-pixels.png").is_file()


def test_the_run_draws_and_reconstructs_with_both_decoders(painted):
    model = api.load(painted)
    images = [np.full((40, 40, 3), 255, np.uint8)] * 3
    for decoder in ("onepass", "lowres"):
        again = model.reconstruct(images, decoder=decoder)
        assert [p.shape for p in again] == [(32, 32, 3)] * 3
    drawn = model.draw(["red heart", "cat"], decoder="lowres")
    assert [p[0].shape for p in drawn] == [(32, 32, 3)] * 2
    with pytest.raises(UserError, match="no highres decoder; it has: onepass, lowres"):
        model.reconstruct(images, decoder="highres")


def test_the_report_shows_both_decoders(quickstart, painted, monkeypatch):
    monkeypatch.setattr(pixel_report, "SHOWN", 4)
    with monkeypatch.context() as several:
        several.setattr(jax, "process_count", lambda: 2)
        assert pixel_report.add(painted) is None
    index = pixel_report.add(painted)
    assert index == quickstart / "report" / "index.html"
    page = index.read_text()
    assert "Painted by both decoders" in page and page.count(">diffusion<") == 8
    (quickstart / "report" / "index.html").unlink()
    assert pixel_report.add(painted) is None


def test_a_source_of_other_sizes_is_told(quickstart, data_dir, tmp_path):
    (tmp_path / "data").symlink_to(data_dir)
    config = pixel_config(f"--config.start_from={quickstart}", "--config.model.decoder.depth=2")
    with pytest.raises(UserError, match=r"decoder\[.*has shape .* but this config makes"):
        train(config, tmp_path)
    config = pixel_config(
        f"--config.start_from={quickstart}", "--config.model.decoder.norm_qk=True"
    )
    with pytest.raises(UserError, match="its decoder has norm_qk=False, but"):
        train(config, tmp_path)
