"""Visual question answering as the published model is measured: protocol and accuracy (SPEC 9)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np

from lavit_jax.data import layout
from lavit_jax.errors import UserError
from lavit_jax.inference import presets
from lavit_jax.inference.api import Image, Lavit, Select
from lavit_jax.inference.presets import TextChanges

ANSWERABLE = 'Is the question: "{}" answerable?'
UNANSWERABLE = "unanswerable"
AGREEING = 3  # people whose answer makes an answer wholly right

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0", "nope": "no"}
ARTICLES = ("a", "an", "the")
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# Each as it stands with one apostrophe left out.
MISSPELT = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
NOT_KNOWN = ("i don't know", "i do n't know", "i need to know")
# Dropped one after another, in this order, with all that stands before their last occurrence.
LEADS = (
    "it's", "it is", "this is", "that is", "she's", "she 's", "she is", "he's", "he 's", "he is",
    "they are", "they're", "very", "for", "to", "in", "on", "at", "a", "an", "the",
)  # fmt: skip


def answer_if_answerable(
    model: Lavit,
    images: Sequence[Image],
    questions: Sequence[str],
    *,
    select: Select = "greedy",
    seed: int = 0,
    preset: str | None = None,
    **changes: Unpack[TextChanges],
) -> list[str]:
    """Answers as VizWiz is measured: the model is first asked whether it can answer.

    Args:
      model: all parts that `Lavit.answer` takes.
      images: paths or uint8 [H, W, 3].
      questions: one for each picture.
      select: which patches the model sees.
      seed: of sampling.
      preset: where settings come from; None is the model's own.
      changes: fields of `TextOptions`.

    Returns:
      An answer to each question; "unanswerable" where the first reply has a "no" in it, as
      published anywhere in it ("not", "unknown").

    Raises:
      UserError: as `Lavit.answer`.
    """
    options = presets.changed(presets.preset(preset or model.preset).answer, changes)
    if options.plain_question:
        questions = [layout.plain_question(question) for question in questions]
    # Made plain before, and never again: that would take the first question's quotation marks.
    settled: TextChanges = {**changes, "plain_question": False}

    def ask(asked: Sequence[str]) -> list[str]:
        return model.answer(images, asked, select=select, seed=seed, preset=preset, **settled)

    answers = ask(questions)
    replies = ask([ANSWERABLE.format(question) for question in questions])
    return [
        UNANSWERABLE if "no" in reply.lower() else answer
        for reply, answer in zip(replies, answers, strict=True)
    ]


def without_punctuation(text: str) -> str:
    """Lower case without punctuation, as the VQA challenge compares answers.

    A mark beside a space goes, one between letters becomes a space; with a comma between digits
    anywhere all of them go. Full stops go unless a digit follows.
    """
    commas = re.search(r"\d,\d", text) is not None
    made = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if beside_space or commas else " ")
    return " ".join(re.sub(r"\.(?!\d)", "", made).lower().split())


def normal_form(answer: str) -> str:
    """An answer as it is compared: no punctuation, articles or leading words, numbers as digits."""
    text = without_punctuation(re.sub(r"[\n\t]", " ", answer).strip())
    words = [WORDS.get(word, word) for word in text.split()]
    text = " ".join(MISSPELT.get(word, word) for word in words if word not in ARTICLES)
    if not text or text.startswith(NOT_KNOWN):
        text = UNANSWERABLE
    for lead in LEADS:
        if text.startswith(f"{lead} "):
            text = text.rsplit(f"{lead} ", 1)[-1]
    return text


def answer_accuracy(
    answer: str, references: Sequence[str], lemmatize: Callable[[str], str] | None = None
) -> float:
    """How right one answer is: min(1, n / 3) for the n people who gave it, the mean over leaving
    each of them out.

    Args:
      answer: the model's.
      references: what people answered, usually ten; where they differ, their punctuation goes.
        Their articles and number words stay, as published: annotations have none.
      lemmatize: turns words into their base forms, on both sides; None where the annotations are
        to be compared as they are.

    Raises:
      UserError: no references.
    """
    if not references:
        raise UserError("a question has no reference answers")
    base = lemmatize or str
    # Annotations that all agree are compared as they stand, as in the challenge's own code.
    given = [base(reference) for reference in references]
    if len(set(given)) > 1:
        given = [without_punctuation(reference) for reference in given]
    equal = np.array(given) == normal_form(base(answer))
    return float(np.minimum(1, (equal.sum() - equal) / AGREEING).mean())


def accuracy(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    lemmatize: Callable[[str], str] | None = None,
) -> float:
    """VQA accuracy, the mean of `answer_accuracy`, in [0, 1].

    Args:
      answers: the model's.
      references: for each question what people answered.
      lemmatize: see `answer_accuracy`.

    Raises:
      UserError: no questions, another number of references than of answers, or a question
        without any.
    """
    if not answers or len(answers) != len(references):
        raise UserError(f"{len(answers)} answers and references of {len(references)} questions")
    scores = [
        answer_accuracy(answer, people, lemmatize) for answer, people in zip(answers, references)
    ]
    return float(np.mean(scores))
