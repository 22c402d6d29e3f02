"""What the quickstart's numbers mean, on examples small enough to count by hand."""

import numpy as np
import pytest

from lavit_jax.evaluation import twemoji

HAND = {"captions": ("waving hand", "hello"), "base": "hand", "tones": ()}
DARK = {"captions": ("waving hand dark skin tone",), "base": "hand", "tones": ("dark",)}
PALE = {"captions": ("waving hand light skin tone",), "base": "hand", "tones": ("light",)}
BOAT = {"captions": ("sailboat",), "base": "boat", "tones": ()}


def test_a_caption_is_exact_only_to_the_letter():
    said = ["hello", "waving hand", "waving hand dark skin tone", "sail boat"]
    assert twemoji._exact(said, [HAND, DARK, DARK, BOAT]) == 0.5


@pytest.mark.parametrize(
    ("caption", "tones"),
    [
        ("waving hand", []),
        ("hand medium-light skin tone", ["medium-light"]),
        ("couple dark skin tone, light skin tone", ["dark", "light"]),
        ("hand medium light skin tone", ["medium", "light"]),
    ],
)
def test_a_compound_tone_is_one_tone(caption, tones):
    assert twemoji.tones_said(caption) == tones


def test_tones_count_only_when_none_is_missing_or_too_many():
    both = {"tones": ("light", "dark")}
    said = ["dark, light", "light", "light", "waving hand"]
    assert twemoji._tones_right(said, [both, both, PALE, HAND]) == 0.75


def test_neighbours_are_sorted_by_cosine():
    everything = np.eye(6, dtype=np.float32)
    query = np.array([[0.1, 0.5, 0.4, 0.3, 0.2, 0.0]], np.float32)
    np.testing.assert_array_equal(twemoji._neighbours(query, everything), [[1, 2, 3, 4, 0]])


def test_any_tone_counts_among_five_and_the_right_tone_for_the_nearest():
    records = [HAND, DARK, PALE, BOAT, BOAT, BOAT, BOAT, BOAT]
    neighbours = np.array([[1, 3, 4, 5, 6], [3, 4, 5, 6, 2], [3, 4, 5, 6, 7], [2, 3, 4, 5, 6]])
    found = twemoji._drawing_metrics(neighbours, [DARK, DARK, DARK, DARK], records)
    assert found == {"draw_top5_combo": 0.75, "draw_tone_combo": 0.25}
