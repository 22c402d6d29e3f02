from collections import Counter

import numpy as np
import pytest

from lavit_jax.data import mixture, views
from lavit_jax.data.mixture import ExampleMaker
from lavit_jax.errors import UserError

IMG, END = 500, 501


@pytest.fixture
def maker(config, records, tokenizer, cache):
    return ExampleMaker(config, records["train"], tokenizer, cache)


def kind_of(example) -> str:
    if example.condition is None:
        return "text_image" if IMG in example.ids else "text"
    first = int(np.argmax(example.loss))
    return "image_text" if example.ids[first - 1] == END else "question"


def test_kinds_come_in_the_shares_of_the_config(config, maker):
    examples = mixture.mixed(config, maker, 3509, seed=0)
    counts = Counter(kind_of(examples[i]) for i in range(2000))
    for kind, share in config.data.mixture.items():
        assert abs(counts[kind] / 2000 - share) < 0.01


def test_examples_depend_on_seed_and_place_only(config, maker):
    one, same, other = (mixture.mixed(config, maker, 3509, seed) for seed in (1, 1, 2))
    forth = [one[i].ids.tolist() for i in range(50)]
    back = [same[i].ids.tolist() for i in reversed(range(50))][::-1]
    assert forth == back
    assert forth != [other[i].ids.tolist() for i in range(50)]


def test_each_kind_goes_through_all_pictures_anew_shuffled(config, maker):
    config.data.mixture = {"image_text": 1.0}
    examples = mixture.mixed(config, maker, 100, seed=0)
    epochs = [[examples[e * 100 + i].condition.image // 2 for i in range(100)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100))
    assert epochs[0] != epochs[1]


def test_condition_codes_and_text_belong_to_one_picture(maker, records, tokenizer, cache):
    rng = np.random.default_rng(0)
    for picture in range(50):
        captions = records["train"][picture]["captions"]
        shown = maker.image_text(picture, rng)
        assert shown.condition.image // 2 == picture
        np.testing.assert_array_equal(shown.condition.keep_N, cache.keep_MN[shown.condition.image])
        assert tokenizer.decode(shown.ids[shown.loss > 0].tolist()) in captions
        drawn = maker.text_image(picture, rng)
        start = drawn.ids.tolist().index(IMG)
        codes = drawn.ids[start + 1 : -1] - 502
        np.testing.assert_array_equal(codes, cache.codes(2 * picture))  # the plain picture
        assert tokenizer.decode(drawn.ids[:start].tolist()) in (*captions, "")


def test_answers_follow_their_questions(maker, records, tokenizer):
    rng = np.random.default_rng(0)
    for picture in range(50):
        record = records["train"][picture]
        example = maker.question(picture, rng)
        begin = example.condition.kept + 2
        asked = tokenizer.decode(example.ids[begin:][example.loss[begin:] == 0].tolist())
        answer = tokenizer.decode(example.ids[example.loss > 0].tolist())
        pairs = zip(record["questions"], record["answers"], strict=True)
        assert (asked, answer) in [(f"Question: {q} Answer:", a) for q, a in pairs]


def test_a_long_question_or_answer_fits_a_row_all_the_same(config, records, tokenizer, cache):
    room, rng = config.data.row_length, np.random.default_rng(0)
    for question, answer, kind in (
        ("tone? " * 400, "dark", "image_text"),
        ("tone?", "dark " * 400, "question"),
    ):
        asked = [{**records["train"][0], "questions": (question,), "answers": (answer,)}]
        example = ExampleMaker(config, asked, tokenizer, cache).question(0, rng)
        assert len(example) <= room
        assert kind_of(example) == kind


def test_pictures_without_questions_are_captioned_instead(config, records, tokenizer, cache):
    bare = [{**record, "questions": (), "answers": ()} for record in records["train"][:20]]
    maker = ExampleMaker(config, bare, tokenizer, cache)
    rng = np.random.default_rng(0)
    assert {kind_of(maker.question(picture, rng)) for picture in range(20)} == {"image_text"}


def test_text_is_dropped_as_often_as_the_config_says(config, records, tokenizer, cache):
    config.data.text_drop = 0.25
    maker = ExampleMaker(config, records["train"], tokenizer, cache)
    rng = np.random.default_rng(0)
    dropped = [maker.text_image(i, rng).ids[0] == IMG for i in range(2000)]
    assert abs(np.mean(dropped) - 0.25) < 0.04


def test_the_canonical_caption_comes_as_often_as_the_config_says():
    rng = np.random.default_rng(0)
    drawn = Counter(views.choose_caption(("a", "b", "c"), rng, 0.6) for _ in range(3000))
    assert abs(drawn["a"] / 3000 - 0.6) < 0.03
    assert abs(drawn["b"] / 3000 - 0.2) < 0.03
    assert views.choose_caption(("a",), rng, 0.0) == "a"


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"image_text": 0.0}, "a share above 0"),
        ({"image_text": -1.0, "text": 1.0}, "0 or more"),
        ({"poems": 1.0}, r"config\.data\.mixture\.poems"),
    ],
)
def test_wrong_shares_are_named(config, maker, shares, message):
    config.data.mixture = shares
    with pytest.raises(UserError, match=message):
        mixture.mixed(config, maker, 10, seed=0)
