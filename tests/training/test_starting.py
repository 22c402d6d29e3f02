"""Runs that start on weights of others."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import published_weights
from lavit_jax.convert.convert import convert
from lavit_jax.convert.published import load_published
from lavit_jax.errors import UserError
from lavit_jax.models import lavit, quantizer
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training import phase_start, starting, storage, weights
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.objectives import READS
from lavit_jax.training.schedule import make_schedule
from lavit_jax.training.weights import Weights
from published_weights import GROUPED
from random_params import random_params
from small_run import OVERRIDES
from tiny import mini_config

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
SOURCES = "--config.start_from=TOKENIZER, LLAMA"


@pytest.fixture(scope="module")
def trained(run) -> tuple[dict, quantizer.Codebook]:
    """What a trained model could be."""
    names = READS["unified"]
    params = random_params(lambda key: lavit.init_params(run.modules, names, key))
    return params, quantizer.random_codebook(run.modules.config.quantizer, jax.random.key(5))


@pytest.fixture
def start(run, trained, monkeypatch):
    """Enters the first phase of a schedule on what `sources` have."""
    params, book = trained
    tokenizer = {n: p for n, p in params.items() if n not in ("llm", "conditioner")}
    stored = {
        "TOKENIZER": Weights(tokenizer, book),
        "LLAMA": Weights({"llm": params["llm"]}, None),
        "EVA": Weights({"encoder": params["encoder"]}, None),
    }

    def read(source, names, mesh):
        held = stored[source]
        return Weights({n: p for n, p in held.params.items() if n in names}, held.codebook)

    monkeypatch.setattr(weights, "read", read)

    def enter(*overrides: str):
        config = mini_config(*OVERRIDES, *overrides)
        phases = make_schedule(config)
        changed = dataclasses.replace(run, config=config, phases=phases)
        with Interruption() as interruption:
            return phase_start.enter(changed, phases[0], None, interruption)

    return enter


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_stage_two_starts_on_a_tokenizer_and_a_llama(start, trained):
    params, book = trained
    state = start("--config.schedule=unified", SOURCES)
    for name in ("encoder", "merger", "quantizer", "llm"):
        same(state.params[name], params[name])
    same(state.params["conditioner"]["merger"], params["merger"])
    same(state.codebook, book)


def test_stage_one_starts_on_an_encoder_alone(start, trained):
    state = start("--config.schedule=select,quantize", "--config.start_from=EVA")
    same(state.params["encoder"], trained[0]["encoder"])


def test_what_is_frozen_has_to_be_there(start):
    with pytest.raises(UserError, match="LLAMA: has no encoder, which phase 'unified' needs"):
        start("--config.schedule=unified", "--config.start_from=LLAMA")


def test_sources_are_named_with_commas():
    assert starting.sources(mini_config(SOURCES)) == ["TOKENIZER", "LLAMA"]
    assert starting.sources(mini_config()) == []


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint in the published layout, and converted."""
    path = tmp_path_factory.mktemp("starting")
    src = published_weights.write(path / "src", GROUPED, published_weights.weights(GROUPED))
    convert(src, path / "ours")
    return src, path / "ours"


def test_published_and_converted_checkpoints_give_the_modules_asked_for(checkpoints):
    mesh, expected = make_mesh(data=1, fsdp=8), load_published(checkpoints[0])
    for source in map(str, checkpoints):
        tokenizer = weights.read(source, ("encoder", "merger"), mesh)
        assert "llm" not in tokenizer.params
        same(tokenizer.params["merger"], expected.params["merger"])
        assert tokenizer.codebook is not None
        same(weights.read(source, ("llm",), mesh).params["llm"], expected.params["llm"])


def test_the_text_tokenizer_comes_along(tmp_path, monkeypatch):
    convert(GOLDENS, tmp_path / "ours", part="language_model")
    monkeypatch.setattr(storage, "_remote", lambda url: epath.Path(tmp_path / "ours"))
    for number, source in enumerate((GOLDENS, tmp_path / "ours", "gs://bucket/ours")):
        model = tmp_path / str(number) / "text.model"
        model.parent.mkdir()
        starting.copy_text_model(mini_config(f"--config.start_from={source}"), model)
        assert model.read_bytes() == (GOLDENS / "language_model" / "tokenizer.model").read_bytes()


def test_a_folder_of_nothing_known_is_told(tmp_path):
    with pytest.raises(UserError, match="expected a work directory, a folder of `lavit convert`"):
        weights.read(str(tmp_path), ("llm",), make_mesh(data=8))
