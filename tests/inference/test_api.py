"""The Python API on a tiny untrained model: what it takes, gives, refuses and compiles."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image

from lavit_jax.data import text as text_data
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference.api import Lavit
from lavit_jax.models import lavit, quantizer
from lavit_jax.models.config import lavit_config
from random_params import random_params
from tiny import mini_config

NAMES = (
    "encoder",
    "selector",
    "merger",
    "quantizer",
    "decoder",
    "pixel_head",
    "conditioner",
    "llm",
)
WORDS = ["a red apple", "a green apple", "woman detective dark skin tone", "what is this?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Lavit:
    path = tmp_path_factory.mktemp("text") / "text.model"
    text_data.train_tokenizer(WORDS * 4, path, 290)
    text = TextTokenizer(path)
    modules = lavit.build_modules(lavit_config(mini_config().model.to_dict(), text.vocab_size))
    init = functools.partial(lavit.init_params, modules, NAMES)
    params = random_params(init, gain=1.5)
    book = quantizer.random_codebook(modules.config.quantizer, jax.random.key(3))
    return Lavit(modules, params, book, text)


def picture(seed: int, height: int = 40, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


PICTURES = [picture(seed, 20 + seed, 30) for seed in range(5)]


def test_tokens_are_codes_of_the_kept_patches(model):
    found = model.tokenize(PICTURES)
    for tokens in found:
        assert tokens.ids.dtype == np.int32
        assert tokens.keep.dtype == bool
        assert tokens.keep.shape == (model.config.patches,)
        assert tokens.kept == len(tokens.ids) == tokens.keep.sum() >= 1
        assert (tokens.ids >= 0).all()
        assert (tokens.ids < model.config.quantizer.codes).all()
    assert len({tokens.kept for tokens in found}) > 1


def test_a_picture_gets_the_same_ids_in_any_company(model):
    together = model.tokenize(PICTURES)
    for image, tokens in zip(PICTURES, together):
        np.testing.assert_array_equal(model.tokenize([image])[0].ids, tokens.ids)


def test_paths_and_arrays_are_the_same(model, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURES[0]).save(path)
    for image in (path, str(path)):
        np.testing.assert_array_equal(
            model.tokenize([image])[0].ids, model.tokenize(PICTURES[:1])[0].ids
        )


def test_captions_in_a_batch_are_those_one_by_one(model):
    together = model.caption(PICTURES, max_new=6)
    assert all(isinstance(text, str) for text in together)
    assert [model.caption([image], max_new=6)[0] for image in PICTURES] == together


def test_a_prompt_changes_the_caption(model):
    assert model.caption(PICTURES, prompt="a red", max_new=6) != model.caption(PICTURES, max_new=6)


def test_answers_in_a_batch_are_those_one_by_one(model):
    asked = ["what?", "what is this?", "which woman or apple is this?", "a?", "red?"]
    together = model.answer(PICTURES, asked, max_new=5)
    alone = [model.answer([i], [q], max_new=5)[0] for i, q in zip(PICTURES, asked)]
    assert alone == together


def test_drawings_are_pictures_of_the_models_size(model):
    drawn = model.draw(["a red apple", "woman"], n=3)
    size = model.config.encoder.image_size
    assert [len(pictures) for pictures in drawn] == [3, 3]
    assert all(p.shape == (size, size, 3) and p.dtype == np.uint8 for row in drawn for p in row)


def test_the_same_seed_draws_the_same_pictures_in_any_company(model):
    first = model.draw(["a red apple", "woman"], n=2, seed=4)
    again = model.draw(["a red apple", "woman detective what is this?"], n=2, seed=4)
    np.testing.assert_array_equal(first[0], again[0])
    other = model.draw(["a red apple", "woman"], n=2, seed=5)
    assert not np.array_equal(first, other)


def test_greedy_drawings_do_not_depend_on_the_seed(model):
    first = model.draw(["a red apple"], temperature=0, seed=1)
    np.testing.assert_array_equal(first, model.draw(["a red apple"], temperature=0, seed=2))


def test_words_and_pictures_mix_in_any_order(model):
    before = model.draw(["a red apple"], images=PICTURES[:1], temperature=0)
    mixed = model.draw([[PICTURES[0], "a red apple"], ["a red apple", PICTURES[0]]], temperature=0)
    np.testing.assert_array_equal(mixed[0], before[0])
    assert not np.array_equal(mixed[1], mixed[0])


def test_reconstruction_draws_from_the_ids_alone(model):
    drawn = model.reconstruct(PICTURES)
    assert len(drawn) == len(PICTURES)
    np.testing.assert_array_equal(drawn[2], model.reconstruct([PICTURES[2]])[0])


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: m.draw([" "]), "the prompt is empty"),
    (lambda m: m.draw([[]]), "the prompt is empty"),
    (lambda m: m.answer(PICTURES[:1], [""]), "the question is empty"),
    (lambda m: m.answer(PICTURES[:2], ["what?"]), "2 images and 1 questions"),
    (lambda m: m.draw(["apple " * 200]), "tokens.*reads at most"),
    (lambda m: m.caption(PICTURES[:1], prompt="apple " * 200), "tokens.*reads at most"),
    (lambda m: m.tokenize([np.zeros((4, 4), np.uint8)]), r"uint8 array \[H, W, 3\], got uint8"),
    (lambda m: m.tokenize([np.zeros((4, 4, 3))]), "got float64"),
    (lambda m: m.tokenize(["missing.png"]), "missing.png"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(model, call, says):
    with pytest.raises(UserError, match=says) as raised:
        call(model)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_half_trained_says_what_it_lacks(model):
    only = Lavit(model.modules, {"encoder": model.params["encoder"]}, model.codebook, model.text)
    with pytest.raises(UserError, match="no selector: .*training has not come to the phase"):
        only.caption(PICTURES[:1])


def test_calls_of_one_bucket_compile_nothing_new(model):
    def calls(images, words, seed):
        model.tokenize(images)
        model.caption(images, max_new=6)
        model.draw(words, seed=seed, guidance=3.0 + seed)

    calls(PICTURES[:3], ["a red apple", "woman", "apple"], 0)
    programs = model._programs
    counted = (programs.tokenize, programs.see, programs.search, programs.sample, programs.paint)
    before = [program._cache_size() for program in counted]
    calls(PICTURES[1:5], ["woman", "a", "apple", "detective"], 1)
    assert [program._cache_size() for program in counted] == before
