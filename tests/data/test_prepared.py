import json
import logging

import numpy as np
import pytest

from lavit_jax.data import prepared
from lavit_jax.data.prepared import Prepared, Sound, Split
from lavit_jax.data.sources import Broken
from lavit_jax.data.tally import TooManyBroken
from lavit_jax.errors import UserError
from shards import jpeg, keys


@pytest.fixture
def copied(data_set, tmp_path):
    """A copy that a test may damage."""
    for path in data_set.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_examples_are_read_in_any_order(data_set):
    stored = Prepared(data_set)
    assert len(stored) == 120
    for place in (119, 0, 60, 61):
        assert stored[place].key == keys(120)[place]
        assert stored[place].image == jpeg(place)
    with pytest.raises(IndexError):
        stored[120]


def test_few_shards_are_held_open(data_set, monkeypatch):
    monkeypatch.setattr(prepared, "OPEN_SHARDS", 1)
    stored = Prepared(data_set)
    assert [stored[place].key for place in range(120)] == keys(120)


def test_decoded_examples_have_what_the_pipeline_reads(data_set):
    record = prepared.examples(data_set, 16, 0.01)[5]
    assert record["image"].shape == (16, 24, 3)
    assert (record["key"], record["captions"]) == (keys(6)[5], ("picture 5 of a thing",))


def damage(path):
    data = bytearray(path.read_bytes())
    place = data.index(jpeg(7)[-60:-20])
    data[place] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_record_is_replaced_by_the_next_and_logged(copied, caplog):
    damage(copied / "shard-000000-000.array_record")
    stored = Prepared(copied)
    assert isinstance(stored[7], Broken)
    assert "hash mismatch" in stored[7].detail
    found = prepared.examples(copied, 16, 0.01)
    with caplog.at_level(logging.WARNING):
        assert [found[place]["key"] for place in (6, 7, 8, 7)] == [keys(9)[n] for n in (6, 8, 8, 8)]
    assert found.tally.reasons == {"corrupt record": 2}
    assert len(caplog.records) == 1
    assert "shard-000000-000.array_record:record 7" in caplog.text


def test_a_disk_that_fails_is_no_damaged_record(copied, monkeypatch):
    def fails(*_):
        raise RuntimeError("pread() failed: Input/output error; reading shard")

    monkeypatch.setattr(prepared.ShardReader, "read", fails)
    with pytest.raises(UserError, match="cannot read .*record 7: Input/output error"):
        Prepared(copied)[7]


@pytest.mark.parametrize("left", [0, 1000, 70_000])
def test_a_truncated_shard_stops_the_run_past_the_limit(copied, left):
    path = copied / "shard-000001-000.array_record"
    path.write_bytes(path.read_bytes()[:left])
    found = prepared.examples(copied, 16, 0.01)
    with pytest.raises(UserError, match=r"corrupt record \(first: .*shard-000001-000"):
        for place in range(120):
            found[place]


def test_too_many_broken_examples_stop_with_every_reason():
    items = [Broken("a" if n % 20 else "b", f"x:{n}") if n % 10 == 0 else n for n in range(1000)]
    sound = Sound(items, lambda item: item, max_bad_share=0.05)
    with pytest.raises(TooManyBroken) as stopped:
        for place in range(1000):
            sound[place]
    text = str(stopped.value)
    assert "more than config.data.max_bad_share=0.05 allows" in text
    assert "a (first: x:10)" in text
    assert "b (first: x:0)" in text
    allowed = Sound(items, lambda item: item, max_bad_share=0.2)
    assert [allowed[place] for place in (9, 10, 11)] == [9, 11, 11]


def test_only_broken_examples_are_no_endless_search():
    sound = Sound([Broken("a", "x")] * 150, lambda item: item, max_bad_share=1.0)
    with pytest.raises(UserError, match="100 examples on end are broken"):
        sound[0]


@pytest.mark.parametrize(("count", "held_out"), [(10, 64), (99, 3), (1000, 64), (1000, 0)])
def test_every_item_is_trained_on_or_held_out(count, held_out):
    train, held = (Split(range(count), held_out, train) for train in (True, False))
    assert sorted([*train, *held]) == list(range(count))
    assert 1 <= len(held) <= max(count // 10, held_out)
    assert list(held) == list(held)[:]
    assert train[-1] == list(train)[-1]


def test_too_few_examples_cannot_be_split():
    with pytest.raises(UserError, match="at least 10 examples, got 9"):
        Split(range(9), 64, train=True)


def test_what_is_no_prepared_folder_says_so(tmp_path, copied):
    with pytest.raises(UserError, match=r"no index.*lavit data prepare"):
        Prepared(tmp_path / "nowhere")
    (tmp_path / "begun" / ".work").mkdir(parents=True)
    (tmp_path / "begun" / ".work" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="has not finished"):
        Prepared(tmp_path / "begun")
    with pytest.raises(UserError, match=r"^memory://no/such is not a prepared data set"):
        Prepared("memory://no/such")
    index = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps({**index, "examples": 3}))
    with pytest.raises(UserError, match="do not add up"):
        Prepared(copied)


def test_decoding_large_jpegs_small_still_covers_the_model():
    from lavit_jax.data.images import decode_image

    large = jpeg(0, (640, 480))
    assert decode_image(large, "x").shape == (480, 640, 3)
    small = decode_image(large, "x", least=100)
    assert small.shape[0] in range(100, 240)
    assert np.abs(small.mean() - decode_image(large, "x").mean()) < 2
