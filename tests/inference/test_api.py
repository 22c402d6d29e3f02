"""The Python API on a tiny untrained model: what it takes, gives, refuses and compiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lavit_jax.data import text as text_data
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference import drawing, selection, writing
from lavit_jax.inference.api import Lavit
from lavit_jax.inference.presets import DrawOptions
from lavit_jax.inference.writing import Said
from lavit_jax.models import attention, lavit, quantizer
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


RAGGED = [
    ["what is this?", PICTURES[0]],
    "a red apple",
    [PICTURES[1], "woman", PICTURES[2], PICTURES[3], "a green"],
    [PICTURES[4]],
]


@pytest.mark.parametrize("how", [{"beams": 3}, {"beams": 1, "repetition_penalty": 1.5}])
def test_ragged_prompts_in_a_batch_are_those_one_by_one(model, how):
    together = model.complete(RAGGED, max_new=6, **how)
    alone = [model.complete([prompt], max_new=6, **how)[0] for prompt in RAGGED]
    for row, other in zip(together, alone):
        assert row[0].text == other[0].text
        assert row[0].score == pytest.approx(other[0].score, abs=1e-4)


def test_the_n_best_texts_are_sorted(model):
    for row in model.complete(RAGGED, n_best=4, beams=4, max_new=5):
        scores = [text.score for text in row]
        assert scores == sorted(scores, reverse=True)
        assert len(row) == 4


def test_sampled_texts_depend_on_the_seed(model):
    how = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "max_new": 6}
    first = model.caption(PICTURES, seed=1, **how)
    assert first == model.caption(PICTURES, seed=1, **how)
    assert first != model.caption(PICTURES, seed=2, **how)


def test_texts_are_cut_at_marks(model):
    (whole,) = model.caption(PICTURES[:1], max_new=8)
    mark = whole[len(whole) // 2]
    (cut,) = model.caption(PICTURES[:1], max_new=8, cut=(mark,))
    assert cut == whole.partition(mark)[0].strip()


def test_a_token_budget_is_kept_to(model):
    for tokens in model.tokenize(PICTURES, select="top=3"):
        assert tokens.kept == 3
    assert model.caption(PICTURES[:2], select="top=1", max_new=6) != model.caption(
        PICTURES[:2], select="top=16", max_new=6
    )


def test_sampled_selections_repeat_with_their_seed_only(model):
    first, again, other = (model.tokenize(PICTURES, "sample", seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal([t.keep for t in first], [t.keep for t in again])
    assert any((a.keep != b.keep).any() for a, b in zip(first, other))


@functools.cache
def score_program(llm):
    """From embeddings to log-probabilities, compiled once for each length."""

    def scores(params, embeds):
        mask = attention.causal_segment_mask(jnp.ones(embeds.shape[:2], jnp.int32))
        positions = jnp.arange(embeds.shape[1])[None]
        hidden, _ = llm.apply({"params": params}, embeds, positions, mask, method="hidden")
        return jax.nn.log_softmax(llm.apply({"params": params}, hidden, method="logits")[0])

    return jax.jit(scores)


def teacher_forced(model, pieces, targets):
    """Summed log-probability of ids after pieces: ids, or (features, count) of a picture."""
    table = np.asarray(model.params["llm"]["embedding"])
    rows = [table[[p]] if isinstance(p, int) else p for p in [*pieces, *targets]]
    embeds = np.concatenate(rows)[None]
    scores = np.asarray(score_program(model.modules.llm)(model.params["llm"], embeds))
    first = embeds.shape[1] - len(targets)
    return sum(float(scores[first + k - 1, token]) for k, token in enumerate(targets))


def test_scores_are_teacher_forced_log_probabilities(model):
    texts = ["a red apple", "woman detective dark skin tone what is this?", "what"]
    found = model.score(PICTURES[:3], texts)
    special = model.special
    for image, text, score in zip(PICTURES, texts, found):
        seen = model.see([image], selection.GREEDY, 0)
        features = np.asarray(seen.features_BLE)[0, : seen.kept[0]]
        words = model.text.encode(text)
        begun = [special.image_start, features, special.image_end]
        ahead = teacher_forced(model, begun, [*words, special.eos])
        assert score.text_given_image == pytest.approx(ahead, abs=1e-3)
        codes = [special.code(int(k)) for k in model.tokenize([image])[0].ids]
        back = teacher_forced(model, [*words, special.image_start], [*codes, special.image_end])
        assert score.image_given_text == pytest.approx(back, abs=1e-3)
        assert (score.text_tokens, score.image_tokens) == (len(words) + 1, len(codes) + 1)


def test_one_picture_is_scored_with_many_texts_and_one_text_with_many_pictures(model):
    texts = ["a red apple", "woman", "what is this?"]
    many = model.score(PICTURES[:1], texts)
    pairs = model.score([PICTURES[0]] * 3, texts)
    for one, other in zip(many, pairs):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-4)
    assert len(model.score(PICTURES, ["a red apple"])) == len(PICTURES)


def test_the_best_of_several_drawings_is_the_one_its_words_are_likeliest_for(model):
    (candidates,) = model.draw(["a red apple"], n=6, seed=3)
    best = model.draw(["a red apple"], n=2, seed=3, best_of=3)[0]
    scores = [s.text_given_image for s in model.score(candidates, ["a red apple"])]
    for number, picture in enumerate(best):
        group = slice(3 * number, 3 * number + 3)
        chosen = candidates[group][int(np.argmax(scores[group]))]
        np.testing.assert_array_equal(picture, chosen)


def test_published_drawings_may_skip_ids_of_text(model):
    first = model.draw(["woman"], seed=2)
    published = model.draw(["woman"], seed=2, preset="published")
    assert np.shape(first) == np.shape(published)


def test_the_number_of_ids_of_a_drawing_is_kept_to(model):
    prompts = drawing.read_prompts(model, ["woman", "a red apple"], (), selection.GREEDY, 0)
    options = DrawOptions(min_ids=5, max_ids=7, temperature=3.0, guidance=1.0)
    jobs = [(row, number) for row in range(2) for number in range(4)]
    codes = drawing.sample_codes(model, prompts, jobs, options, seed=0)
    assert all(5 <= len(ids) <= 7 for ids in codes)
    assert all((ids >= 0).all() and (ids < 64).all() for ids in codes)


def test_guidance_of_mixed_prompts_is_their_own_in_any_company(model):
    mixed = [PICTURES[0], "a red apple"]
    together = model.draw([mixed, "woman"], temperature=0)
    np.testing.assert_array_equal(together[0], model.draw([mixed], temperature=0)[0])
    other = model.draw([mixed], temperature=0, mixed_guidance=0.0)
    assert not np.array_equal(together[0], other[0])


def test_a_prompt_changes_the_caption(model):
    assert model.caption(PICTURES, prompt="a red", max_new=6) != model.caption(PICTURES, max_new=6)


def test_answers_in_a_batch_are_those_one_by_one(model):
    asked = ["what?", "what is this?", "which woman or apple is this?", "a?", "red?"]
    together = model.answer(PICTURES, asked, max_new=5)
    alone = [model.answer([i], [q], max_new=5)[0] for i, q in zip(PICTURES, asked)]
    assert alone == together


def test_the_published_preset_asks_plain_questions(model, monkeypatch):
    asked = []

    def write(engine, prompts, *args, **options):
        asked.extend(words for _, words in prompts)
        return [[Said("yes", 0.0)] for _ in prompts]

    monkeypatch.setattr(writing, "write", write)
    for how in ({}, {"preset": "published"}, {"preset": "published", "plain_question": False}):
        model.answer(PICTURES[:1], ["What is THIS!"], **how)
    assert asked == [
        "Question: What is THIS! Answer:",
        "Question: what is this Answer:",
        "Question: What is THIS! Answer:",
    ]
    with pytest.raises(UserError, match="question is empty"):
        model.answer(PICTURES[:1], ["!!"], preset="published")


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
    (lambda m: m.tokenize(PICTURES[:1], "top=17"), "top=17, but this model keeps at most 16"),
    (lambda m: m.reconstruct(PICTURES[:1], decoder="lowres"), "no lowres decoder; it has: onepass"),
    (lambda m: m.reconstruct(PICTURES[:1], decoder="best"), "decoder is 'best', expected one of"),
    (lambda m: m.draw(["x"], preset="fid"), "no lowres decoder"),
    (lambda m: m.draw(["x"], decoder_size=(8, 8)), "onepass decoder paints at one size"),
    (lambda m: m.draw([[PICTURES[0]]], best_of=2), "best_of needs words"),
    (lambda m: m.draw(["x"], max_ids=99), "max_ids is 99, but this model draws at most 16"),
    (lambda m: m.complete(["x"], n_best=3), "n_best is 3, expected 1 to the 2 of beams"),
    (lambda m: m.complete([" "]), "the prompt is empty"),
    (lambda m: m.score(PICTURES[:2], ["x"] * 3), "2 images and 3 texts"),
])  # fmt: skip
def test_mistakes_are_told_in_one_line(model, call, says):
    with pytest.raises(UserError, match=says) as raised:
        call(model)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_half_trained_says_what_it_lacks(model):
    only = Lavit(model.modules, {"encoder": model.params["encoder"]}, model.codebook, model.text)
    with pytest.raises(UserError, match="no llm: .*training has not come to the phase"):
        only.caption(PICTURES[:1])


def test_calls_of_one_bucket_compile_nothing_new(model):
    def calls(images, words, seed):
        model.tokenize(images)
        model.caption(images, max_new=6)
        model.draw(words, seed=seed, guidance=3.0 + seed)
        model.tokenize(images, select=f"top={3 + seed}")
        model.caption(images, max_new=6, length_penalty=1.0 + seed, min_new=seed)
        model.caption(images, max_new=6, temperature=1.0 + seed, top_p=0.9, seed=seed)
        model.score(images, words)

    calls(PICTURES[:3], ["a red apple", "woman", "apple"], 0)
    programs = model.programs
    counted = (
        programs.tokenize,
        programs.see,
        programs.search,
        programs.sample,
        programs.paint,
        programs.likelihood,
    )
    before = [program._cache_size() for program in counted]
    calls(PICTURES[1:5], ["woman", "a", "apple", "detective"], 1)
    assert [program._cache_size() for program in counted] == before
