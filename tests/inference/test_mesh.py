"""A model split over devices does what it does on one."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from lavit_jax.convert.convert import convert
from lavit_jax.data import text as text_data
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference import api, pixels
from lavit_jax.inference.api import Lavit
from lavit_jax.models import lavit, quantizer
from lavit_jax.models.config import lavit_config
from lavit_jax.parallel import rules
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training import state
from random_params import random_params
from tiny import mini_config

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
MESHES = {
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence": {"data": 1, "fsdp": 4, "sequence": 2},
}
NAMES = ("encoder", "selector", "merger", "quantizer", "decoder", "pixel_head")
NAMES += ("conditioner", "llm")
WORDS = ["a red apple", "a green apple", "woman detective dark skin tone", "what is this?"]
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(3)]
PROMPTS = [["what is this?", PICTURES[0]], "a red apple", [PICTURES[1], "woman", PICTURES[2]]]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.model"
    text_data.train_tokenizer(WORDS * 4, path, 290)
    return TextTokenizer(path)


@pytest.fixture(scope="module")
def model_on(text):
    """The model on one device, or on a mesh."""
    modules = lavit.build_modules(lavit_config(mini_config().model.to_dict(), text.vocab_size))
    params = random_params(functools.partial(lavit.init_params, modules, NAMES), gain=1.5)
    book = quantizer.random_codebook(modules.config.quantizer, jax.random.key(3))

    @functools.cache
    def on(name):
        if name is None:
            return Lavit(modules, params, book, text)
        mesh = make_mesh(**MESHES[name])
        placed = jax.device_put(params, state.param_shardings(modules, NAMES, mesh))
        return Lavit(modules, placed, jax.device_put(book, rules.replicated(mesh)), text, mesh=mesh)

    return on


def close(mine, expected):
    """Pictures that differ by rounding alone."""
    for one, other in zip(mine, expected, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_it_reads_and_paints_the_same_ids(model_on):
    mine, one = model_on("all"), model_on(None)
    for a, b in zip(mine.tokenize(PICTURES), one.tokenize(PICTURES), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
    close(mine.reconstruct(PICTURES), one.reconstruct(PICTURES))


@pytest.mark.parametrize(("name", "beams"), [("all", 2), ("sequence", 1)])
def test_it_writes_the_same_texts(model_on, name, beams):
    mine, one = (
        model.complete(PROMPTS, max_new=5, beams=beams)
        for model in (model_on(name), model_on(None))
    )
    for [a], [b] in zip(mine, one, strict=True):
        assert a.text == b.text
        assert a.score == pytest.approx(b.score, abs=1e-5)


def test_it_draws_and_scores_the_same(model_on):
    mine, one = model_on("all"), model_on(None)
    how = {"n": 1, "guidance": 2.0, "seed": 4}
    for a, b in zip(mine.draw(PROMPTS, **how), one.draw(PROMPTS, **how), strict=True):
        close(a, b)
    found = mine.score(PICTURES, WORDS[:3])
    for a, b in zip(found, one.score(PICTURES, WORDS[:3]), strict=True):
        assert a.text_given_image == pytest.approx(b.text_given_image, abs=1e-4)
        assert a.image_given_text == pytest.approx(b.image_given_text, abs=1e-4)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(GOLDENS, folder)
    return folder


def test_a_converted_model_is_read_split_with_a_decoder_of_its(converted):
    mine, one = api.load(converted, {"fsdp": 2, "tensor": 2}), api.load(converted)
    kernel = mine.params["llm"]["lm_head"]["kernel"]
    assert kernel.addressable_data(0).size == kernel.size // 4
    ids = [np.array([5, 9, 100]), np.arange(16)]
    how = pixels.Settings(steps=2)
    close(*(model.decoders["lowres"]().paint(ids, settings=how) for model in (mine, one)))


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"tensor": 3}, "mesh data=-1, tensor=3: its axes take a multiple of 3 devices"),
        ({"tensors": 2}, "mesh has no axis 'tensors'; its axes are slice, data, fsdp"),
    ],
)
def test_a_mesh_that_the_devices_cannot_form_is_told(mesh, says, tmp_path):
    with pytest.raises(UserError, match=says):
        api.load(tmp_path, mesh)
