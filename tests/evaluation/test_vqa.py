"""VQA as published: questions made plain, the answerable step, accuracy."""

import pytest

from lavit_jax.data import layout
from lavit_jax.errors import UserError
from lavit_jax.evaluation import vqa


class Model:
    """Answers by a table, and remembers what it was asked."""

    preset = "published"

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def answer(self, images, questions, **options):
        self.asked += [(question, options["plain_question"]) for question in questions]
        return [self.replies[question] for question in questions]


def test_the_answerable_step_decides_what_is_answered():
    model = Model({
        "what is it": "a cat",
        "who is it": "a dog",
        'Is the question: "what is it" answerable?': "yes",
        'Is the question: "who is it" answerable?': "No, it is not",
    })  # fmt: skip
    answers = vqa.answer_if_answerable(model, ["x", "y"], ["What is it!", "Who is it"])
    assert answers == ["a cat", "unanswerable"]
    assert not any(plain for _, plain in model.asked)


def test_the_answerable_step_takes_questions_as_they_are_where_the_preset_does():
    model = Model({"Who?": "a dog", 'Is the question: "Who?" answerable?': "yes"})
    assert vqa.answer_if_answerable(model, ["x"], ["Who?"], preset="own") == ["a dog"]


@pytest.mark.parametrize(("question", "plain"), [
    ("What is (this) thing?", "what is this thing?"),
    ('The "RED" one: #1; ~*.! ', "the red one 1"),
    ("it's mid-air, no?", "it's mid-air, no?"),
    (" ".join(["word"] * 60), " ".join(["word"] * 50)),
])  # fmt: skip
def test_questions_are_made_plain(question, plain):
    assert layout.plain_question(question) == plain


@pytest.mark.parametrize(("answer", "expected"), [
    ("The cat.", "cat"),
    ("Two", "2"),
    ("none", "0"),
    ("dont", "don't"),
    ("couldn'tve", "couldn't've"),
    ("1,000", "1000"),
    ("3.5", "3.5"),
    ("black/white", "black white"),
    ("black, white", "black white"),
    ("on the table\n", "table"),
    ("it is a dog", "dog"),
    ("i dont know", "unanswerable"),
    ("", "unanswerable"),
])  # fmt: skip
def test_answers_are_compared_in_their_normal_form(answer, expected):
    assert vqa.normal_form(answer) == expected


@pytest.mark.parametrize(("right", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_accuracy_is_the_mean_over_leaving_each_person_out(right, expected):
    people = ["yes"] * right + [f"other {n}" for n in range(10 - right)]
    assert vqa.answer_accuracy("Yes.", people) == pytest.approx(expected)


def test_accuracy_is_the_mean_over_questions():
    people = [["cat"] * 10, ["Dog!"] * 9 + ["dog"]]
    assert vqa.accuracy(["a cat", "the dog"], people) == 1
    assert vqa.accuracy(["a cat", "a cat"], people) == 0.5


def test_words_are_compared_in_their_base_form():
    people = [["cat"] * 10]
    assert vqa.accuracy(["cats"], people) == 0
    assert vqa.accuracy(["cats"], people, lemmatize=lambda text: text.replace("cats", "cat")) == 1


@pytest.mark.parametrize(("answers", "people", "says"), [
    (["a"], [], "1 answers and references of 0 questions"),
    ([], [], "0 answers and references of 0 questions"),
    (["a"], [[]], "no reference answers"),
])  # fmt: skip
def test_answers_that_cannot_be_judged_are_told(answers, people, says):
    with pytest.raises(UserError, match=says):
        vqa.accuracy(answers, people)
