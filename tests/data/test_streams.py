from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavit_jax.data import streams
from lavit_jax.data.layout import SpecialIds, plain_text
from lavit_jax.data.packing import Limits, PackedRows, Staged, useful_share
from lavit_jax.data.streams import PERIOD, Mixture, Stream
from lavit_jax.errors import UserError

SPECIAL = SpecialIds(10_000, 1)


def stream(name: str, capacity: int | None = None, tokens: int = 5) -> Stream:
    """A stream whose n-th example says so in its first id."""
    return Stream(name, capacity, lambda n: plain_text(SPECIAL, [n + 3] * tokens))


def seen(mixture, count: int) -> list[tuple[int, int]]:
    return [mixture.find(place) for place in range(count)]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_every_source_has_its_share_in_every_stretch(weights):
    period = streams.spread(weights)
    shares = np.array(weights) / np.sum(weights)
    assert len(period) == PERIOD
    for source, share in enumerate(shares):
        count = np.cumsum(period == source)
        ideal = share * np.arange(1, PERIOD + 1)
        assert np.abs(count - ideal).max() < 1 + len(weights)


def test_each_stream_is_read_in_order_without_gaps():
    mixture = Mixture([stream("a"), stream("b"), stream("c")], [[3, 2, 1]]).begun(())
    read: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for source, number in seen(mixture, 10_000):
        read[source].append(number)
    for numbers in read.values():
        assert numbers == list(range(len(numbers)))
    assert abs(len(read[0]) / 10_000 - 0.5) < 0.001


def test_a_source_that_is_used_up_leaves_its_share_to_the_others():
    mixture = Mixture([stream("a", 50), stream("b")], [[0.5, 0.5]]).begun(())
    found = seen(mixture, 300)
    assert [number for source, number in found if source == 0] == list(range(50))
    assert [number for source, number in found if source == 1] == list(range(250))
    assert {source for source, _ in found[110:]} == {1}


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
    st.lists(st.integers(1, 100), min_size=4, max_size=4),
)
def test_all_examples_of_limited_sources_come_exactly_once(capacities, weights):
    made = [stream(str(n), capacity) for n, capacity in enumerate(capacities)]
    mixture = Mixture(made, [weights[: len(made)]]).begun(())
    found = seen(mixture, sum(capacities))
    assert sorted(found) == [(s, n) for s, c in enumerate(capacities) for n in range(c)]
    with pytest.raises(UserError, match=f"used up after {sum(capacities)} examples"):
        mixture.find(sum(capacities))


def test_stages_change_shares_where_they_began_and_lose_nothing():
    mixture = Mixture([stream("a"), stream("b")], [[1, 0], [1, 3], [0, 1]])
    found = seen(mixture.begun((100, 500)), 1000)
    assert {source for source, _ in found[:100]} == {0}
    assert abs(np.mean([source for source, _ in found[100:500]]) - 0.75) < 0.01
    assert {source for source, _ in found[500:]} == {1}
    for source in (0, 1):
        numbers = [number for s, number in found if s == source]
        assert numbers == list(range(len(numbers)))
    assert seen(mixture.begun((100,)), 500) == found[:500]


def test_weights_by_tokens_give_shares_of_tokens():
    made = [stream("long", tokens=90), stream("short", tokens=9)]
    mixture = Mixture(made, streams.per_token(made, [[0.25, 0.75]])).begun(())
    tokens: Counter[int] = Counter()
    for place in range(4000):
        tokens[mixture.find(place)[0]] += len(mixture[place])
    assert abs(tokens[0] / tokens.total() - 0.25) < 0.01


def staged() -> Staged:
    made = [stream("a", tokens=7), stream("b", tokens=11)]
    return Staged((40, 90), Mixture(made, [[1, 0], [1, 1], [0, 1]]).begun)


def rows_of(iterator, count: int) -> list[list[tuple[int, int]]]:
    return [
        [(len(example), int(example.ids[0])) for example in next(iterator)] for _ in range(count)
    ]


def test_a_curriculum_follows_the_rows_given_out_and_survives_a_restart():
    limits = Limits(64, 1)
    whole = rows_of(iter(PackedRows(staged(), limits, window=16)), 200)
    short = [np.mean([length == 8 for length, _ in row]) for row in whole]
    assert set(short[:30]) == {1.0}
    assert set(short[120:]) == {0.0}
    assert 0.2 < np.mean(short[55:80]) < 0.8
    for done in (0, 35, 45, 95, 150):
        first = iter(PackedRows(staged(), limits, window=16))
        rows_of(first, done)
        state = first.get_state()
        again = iter(PackedRows(staged(), limits, window=16))
        again.set_state(state)
        assert rows_of(again, 40) == whole[done : done + 40]


def test_no_example_is_lost_or_doubled_across_stages():
    iterator = iter(PackedRows(staged(), Limits(64, 1), window=16))
    found: dict[int, list[int]] = {8: [], 12: []}
    for row in rows_of(iterator, 300):
        for length, first in row:
            found[length].append(first - 3)
    for numbers in found.values():
        assert len(set(numbers)) == len(numbers)
        # But for what waits for its row, all before the last have come.
        assert len(numbers) >= max(numbers) + 1 - 16


def test_processes_share_the_rows_of_a_curriculum():
    limits = Limits(64, 1)
    whole = rows_of(iter(PackedRows(staged(), limits, window=16)), 120)
    halves = [
        rows_of(iter(PackedRows(staged(), limits, 16, process_index=p, process_count=2)), 60)
        for p in range(2)
    ]
    assert whole == [row for pair in zip(*halves) for row in pair]


def test_rows_of_cached_ids_are_nearly_full():
    """Lengths as of the published tokenizer: about a third of 256 patches, and a caption."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 130, 20_000)

    class Examples:
        def __getitem__(self, place):
            return plain_text(SPECIAL, [3] * int(lengths[place]))

    iterator = iter(PackedRows(Examples(), Limits(2048, 64)))
    used = [sum(len(example) for example in next(iterator)) for _ in range(500)]
    assert np.mean(used) / 2048 > 0.97
    assert useful_share(np.array([[1, 1, 1, 0]])) == 0.75
