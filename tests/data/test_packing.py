import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit_jax.data import packing
from lavit_jax.data.layout import Condition, Example
from lavit_jax.data.packing import Limits, PackedRows, RowShape
from lavit_jax.errors import UserError

PATCHES = 4
TOKENS = 24


class Numbered:
    """Endless examples: number i repeats a drawn kind; its ids are i * 100, i * 100 + 1, ..."""

    def __init__(self, kinds: list[tuple[int, bool]]) -> None:
        self.kinds = kinds

    def __getitem__(self, index: int) -> Example:
        length, has_image = self.kinds[index % len(self.kinds)]
        ids = (index * 100 + np.arange(length)).astype(np.int32)
        loss = (ids % 3 > 0).astype(np.int8)
        feature = np.full(length, -1, np.int32)
        if not has_image:
            return Example(ids, loss, feature)
        kept = min(length, PATCHES)
        feature[:kept] = np.arange(kept)
        keep = (np.arange(PATCHES) < kept).astype(np.uint8)
        return Example(ids, loss, feature, Condition(index, keep))


def picture(index: int) -> np.ndarray:
    return np.full((2, 2, 3), index % 256, np.uint8)


kinds = st.lists(st.tuples(st.integers(1, TOKENS), st.booleans()), min_size=1, max_size=12)
windows = st.integers(1, 20)
image_limits = st.integers(1, 4)


def packed(drawn, images: int, window: int, **process) -> PackedRows:
    return PackedRows(Numbered(drawn), Limits(TOKENS, images), window, **process)


def numbers(row: list[Example]) -> list[int]:
    return [int(example.ids[0]) // 100 for example in row]


@given(kinds, image_limits, windows)
@settings(max_examples=60, deadline=None)
def test_every_example_is_in_exactly_one_row_and_none_waits_for_ever(drawn, images, window):
    rows = [numbers(row) for row in itertools.islice(packed(drawn, images, window), 60)]
    seen = list(itertools.chain.from_iterable(rows))
    assert len(seen) == len(set(seen))
    # Whatever is missing below the highest number is still waiting: never more than a window.
    waiting = set(range(max(seen) + 1)) - set(seen)
    assert len(waiting) <= window
    # The first of a window is given out with it, so a wait is bounded by a window of windows.
    assert min(waiting, default=max(seen)) >= max(seen) - window * (window + 1)


@given(kinds, image_limits, windows)
@settings(max_examples=60, deadline=None)
def test_a_row_never_holds_more_than_it_can(drawn, images, window):
    for row in itertools.islice(packed(drawn, images, window), 40):
        assert row
        assert sum(map(len, row)) <= TOKENS
        assert sum(example.condition is not None for example in row) <= images


@given(kinds, image_limits, windows)
@settings(max_examples=60, deadline=None)
def test_an_arranged_row_holds_every_token_once_in_order(drawn, images, window):
    limits = Limits(TOKENS, images)
    shape = RowShape(limits, PATCHES, image_size=2)
    for row in itertools.islice(packed(drawn, images, window), 20):
        laid = packing.lay_row(row, shape, picture)
        useful = sum(map(len, row))
        segments = laid["segment_ids"]
        assert (segments[:useful] > 0).all()
        assert (segments[useful:] == 0).all()
        assert (np.diff(segments[:useful]) >= 0).all()
        slot = 0
        for segment, example in enumerate(row, start=1):
            here = segments == segment
            np.testing.assert_array_equal(laid["ids"][here], example.ids)
            np.testing.assert_array_equal(laid["loss"][here], example.loss)
            np.testing.assert_array_equal(laid["positions"][here], np.arange(len(example)))
            feature = laid["feature"][here]
            np.testing.assert_array_equal(feature >= 0, example.feature >= 0)
            if example.condition is None:
                continue
            np.testing.assert_array_equal(
                feature[feature >= 0], slot * PATCHES + np.arange(example.condition.kept)
            )
            np.testing.assert_array_equal(laid["images"][slot], picture(example.condition.image))
            np.testing.assert_array_equal(laid["keep"][slot], example.condition.keep_N)
            slot += 1
        assert not laid["images"][slot:].any()
        assert not laid["keep"][slot:].any()
        for name, padding in (("ids", 0), ("positions", 0), ("loss", 0), ("feature", -1)):
            assert (laid[name][useful:] == padding).all()


@given(kinds, image_limits, windows, st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_going_on_from_a_saved_state_gives_the_same_rows(drawn, images, window, done):
    rows = iter(packed(drawn, images, window))
    for _ in range(done):
        next(rows)
    state = json.loads(json.dumps(rows.get_state()))
    expected = [numbers(next(rows)) for _ in range(10)]
    for other in (iter(packed(drawn, images, window)), rows):
        other.set_state(state)
        assert [numbers(next(other)) for _ in range(10)] == expected


@given(kinds, windows, st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_processes_share_the_stream_of_one(drawn, window, count):
    alone = [numbers(row) for row in itertools.islice(packed(drawn, 2, window), 12 * count)]
    for index in range(count):
        rows = packed(drawn, 2, window, process_index=index, process_count=count)
        assert [numbers(row) for row in itertools.islice(rows, 12)] == alone[index::count]


@given(kinds, windows, st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_state_of_one_process_is_that_of_all_however_many(drawn, window, before, after, done):
    alone = packed(drawn, 2, window)
    rows = iter(packed(drawn, 2, window, process_index=0, process_count=before))
    for _ in range(done):
        next(rows)
    state = json.loads(json.dumps(rows.get_state()))
    begun = done * before
    expected = [numbers(row) for row in itertools.islice(alone, begun, begun + 3 * after)]
    for index in range(after):
        again = iter(packed(drawn, 2, window, process_index=index, process_count=after))
        again.set_state(state)
        assert [numbers(next(again)) for _ in range(3)] == expected[index::after]


def test_little_is_padding_with_lengths_like_real_ones():
    rng = np.random.default_rng(0)
    drawn = [(int(rng.integers(28, 48)), bool(rng.random() < 0.5)) for _ in range(1000)]
    rows = PackedRows(Numbered(drawn), Limits(256, 5))
    used = [sum(map(len, row)) for row in itertools.islice(rows, 200)]
    assert np.mean(used) / 256 > 0.95


def test_rows_short_of_images_do_not_stop_the_stream():
    drawn = [(4, True)] * 9 + [(4, False)]
    rows = list(itertools.islice(packed(drawn, images=1, window=16), 100))
    assert all(sum(example.condition is not None for example in row) <= 1 for row in rows)


def test_an_example_longer_than_a_row_names_the_field():
    with pytest.raises(UserError, match=r"30 tokens.*config\.data\.row_length=24"):
        next(iter(packed([(30, False)], 1, 4)))


def test_an_image_where_rows_take_none_names_the_field():
    with pytest.raises(UserError, match=r"config\.data\.images_per_row=0"):
        next(iter(packed([(3, True)], 0, 4)))


def test_first_fit_fills_the_first_row_with_room():
    examples = [Numbered([(length, False)])[0] for length in (20, 10, 4, 14, 5)]
    assert packing.first_fit(examples, Limits(TOKENS, 1)) == [[0, 2], [1, 3], [4]]


def test_useful_share_counts_tokens_in_segments():
    assert packing.useful_share(np.array([[1, 1, 2, 0]])) == 0.75
