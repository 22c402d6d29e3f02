"""The split rule, on the real pictures and on invented ones."""

import hashlib
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit_jax.data import emoji_splits
from lavit_jax.data.emoji_names import Description


def toned(key: str, base: str, *tones: str) -> Description:
    return Description(key, (key,), (), (), base, tones)


def look(record: dict) -> bytes:
    return hashlib.sha256(record["image"].tobytes() + record["alpha"].tobytes()).digest()


@pytest.fixture(scope="module")
def looks(records):
    return {split: Counter(map(look, members)) for split, members in records.items()}


@pytest.fixture(scope="module")
def by_base(records):
    groups = {split: defaultdict(list) for split in records}
    for split, members in records.items():
        for record in members:
            groups[split][record["base"]].append(record)
    return groups


def test_sizes(records):
    assert {split: len(members) for split, members in records.items()} == {
        "train": 3509,
        "test_new": 200,
        "test_combo": 300,
    }
    keys = [record["key"] for members in records.values() for record in members]
    assert len(keys) == len(set(keys))


def test_no_test_picture_looks_like_another_picture(looks):
    for split in ("test_new", "test_combo"):
        others = looks["train"] + looks[{"test_new": "test_combo"}.get(split, "test_new")]
        for seen, count in looks[split].items():
            assert count == 1
            assert seen not in others


def test_no_version_of_a_new_picture_is_in_training(records, by_base):
    for record in records["test_new"]:
        assert record["tones"] == ()
        assert record["base"] not in by_base["train"]
        assert record["base"] not in by_base["test_combo"]


def test_each_combination_is_seen_in_parts_never_together(records, by_base):
    tones_anywhere = {tone for record in records["train"] for tone in record["tones"]}
    for record in records["test_combo"]:
        same_base = by_base["train"][record["base"]]
        assert record["base"] in {other["key"] for other in same_base}
        toned = [other for other in same_base if other["tones"]]
        assert len(toned) >= 2
        assert all(other["tones"] != record["tones"] for other in toned)
        assert set(record["tones"]) <= tones_anywhere
        if len(record["tones"]) == 2:
            assert set(record["tones"]) <= {tone for other in toned for tone in other["tones"]}


def test_single_and_double_tones_are_both_tested(records):
    counts = Counter(len(record["tones"]) for record in records["test_combo"])
    assert counts.keys() == {1, 2}
    assert min(counts.values()) >= 30


def test_no_canonical_caption_of_a_test_is_in_training(records):
    seen = {caption for record in records["train"] for caption in record["captions"]}
    for split in ("test_new", "test_combo"):
        assert not {record["captions"][0] for record in records[split]} & seen


pictures = st.lists(
    st.tuples(st.integers(0, 8), st.lists(st.sampled_from("abcde"), max_size=2)), max_size=60
)


@given(pictures, st.data())
@settings(max_examples=100, deadline=None)
def test_the_rule_holds_for_any_pictures(drawn, data):
    described = {}
    for base, tones in drawn:
        key = "-".join([str(base), *tones])
        words = tuple(tones[:1] if len(set(tones)) == 1 else tones)
        described[key] = toned(key, str(base), *words)
    looks = {key: data.draw(st.binary(min_size=1, max_size=1)) for key in described}
    try:
        splits = emoji_splits.assign(described, looks, new_count=2, combo_count=3)
    except ValueError:
        return
    assert Counter(splits.values())["test_new"] == 2
    assert Counter(splits.values())["test_combo"] == 3
    shuffled = dict(reversed(described.items()))
    assert emoji_splits.assign(shuffled, looks, new_count=2, combo_count=3) == splits
    for key, split in splits.items():
        if split == "train":
            continue
        assert list(looks.values()).count(looks[key]) == 1
        family = [k for k in described if described[k].base == described[key].base]
        if split == "test_new":
            assert family == [key]
        else:
            stays = [k for k in family if splits[k] == "train" and described[k].tones]
            assert splits[described[key].base] == "train"
            assert len(stays) >= 2


def test_too_few_pictures_are_an_error():
    described = {"a": toned("a", "a")}
    with pytest.raises(ValueError, match="1 of 200 new"):
        emoji_splits.assign(described, {"a": b""})
