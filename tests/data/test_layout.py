import numpy as np

from lavit_jax.data import layout
from lavit_jax.data.layout import Condition, SpecialIds

SPECIAL = SpecialIds(text_vocab=100, n_codes=8)
IMG, END = 100, 101
CONDITION = Condition(image=3, keep_N=np.array([0, 1, 0, 1, 1], np.uint8))


def test_ids_lie_as_published():
    assert (SPECIAL.pad, SPECIAL.bos, SPECIAL.eos) == (0, 1, 2)
    assert (SPECIAL.image_start, SPECIAL.image_end) == (IMG, END)
    assert SPECIAL.code(0) == 102
    assert SPECIAL.vocab == 110
    assert SPECIAL.visual([7, 0]) == [IMG, 109, 102, END]


def test_image_text_has_features_between_the_marks_and_loss_on_the_caption():
    example = layout.image_text(SPECIAL, CONDITION, [11, 12])
    assert example.ids.tolist() == [IMG, 0, 0, 0, END, 11, 12, 2]
    assert example.feature.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]
    assert example.loss.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert example.condition is CONDITION


def test_a_question_has_loss_on_the_answer_only():
    example = layout.question(SPECIAL, CONDITION, asked=[21, 22], answer=[31])
    assert example.ids.tolist() == [IMG, 0, 0, 0, END, 21, 22, 31, 2]
    assert example.loss.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_text_image_has_loss_on_the_codes_and_the_end():
    example = layout.text_image(SPECIAL, [11, 12], [4, 0])
    assert example.ids.tolist() == [11, 12, IMG, 106, 102, END]
    assert example.loss.tolist() == [0, 0, 0, 1, 1, 1]
    assert example.feature.tolist() == [-1] * 6
    assert example.condition is None


def test_a_dropped_caption_leaves_what_guidance_starts_from():
    example = layout.text_image(SPECIAL, [], [4])
    assert example.ids.tolist() == [IMG, 106, END]
    assert example.loss.tolist() == [0, 1, 1]


def test_plain_text_has_loss_on_all_that_has_a_predecessor():
    example = layout.plain_text(SPECIAL, [11, 12])
    assert example.ids.tolist() == [11, 12, 2]
    assert example.loss.tolist() == [0, 1, 1]


def test_arrays_have_their_types():
    example = layout.image_text(SPECIAL, CONDITION, [11])
    assert example.ids.dtype == example.feature.dtype == np.int32
    assert example.loss.dtype == np.int8
    assert len(example) == 7
