"""TFDS data sets and array records."""

import json

import fsspec
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from lavit_jax.data.sources import Broken, Options, Raw, open_source
from lavit_jax.errors import UserError
from shards import everything, jpeg, lost, tf_examples, whole


def test_tfds_data_sets_by_package_and_builder(data_dir, records):
    options = Options(split="test_combo", data_dir=str(data_dir))
    source = open_source("lavit_jax.data.twemoji:Twemoji", options)
    found = list(source.read(source.parts()[0]))
    assert len(found) == 300
    record = records["test_combo"][5]
    assert (found[5].key, found[5].answers) == (
        record["key"],
        tuple(answer.encode() for answer in record["answers"]),
    )
    assert found[5].image.startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"no split 'valid': choose --split from .*train"):
        open_source("lavit_jax.data.twemoji:Twemoji", Options("valid", str(data_dir))).parts()


def test_records_of_tfds_are_read(tmp_path):
    rows = [
        {
            "image": [jpeg(n)],
            "captions/text": [f"a {n}".encode(), f"b {n}".encode()],
            "key": [f"k{n}".encode()],
            "image/id": [n],
        }
        for n in range(5)
    ]
    found = everything(tf_examples(tmp_path, rows))
    assert [(raw.key, raw.image) for raw in found] == [(f"k{n}", jpeg(n)) for n in range(5)]
    assert found[3].captions == (b"a 3", b"b 3")


def test_other_fields_of_tfds_records_are_named(tmp_path):
    rows = [{"picture": [jpeg(0)], "title": [b"t"], "number": [7]}, {"text": [b"alone"]}]
    path = tf_examples(tmp_path, rows)
    named, alone = everything(path, Options(image_field="picture", caption_field="title"))
    assert (named.image, named.captions) == (jpeg(0), (b"t",))
    assert (alone.image, alone.captions) == (None, ())
    assert everything(path)[1].captions == (b"alone",)
    # A field of numbers is no image and no caption.
    (number, _) = everything(path, Options(image_field="number", caption_field="number"))
    assert (getattr(number, "image", None), getattr(number, "captions", ())) == (None, ())


def test_a_corrupt_tfds_record_spoils_no_other(tmp_path):
    path = tf_examples(tmp_path, [{"image": [jpeg(n)], "text": [b"x"]} for n in range(5)])
    data = bytearray(path.read_bytes())
    data[data.index(jpeg(2)[-60:-20])] ^= 0xFF
    path.write_bytes(data)
    reasons = [getattr(item, "reason", "good") for item in everything(path)]
    assert reasons == ["good", "good", "corrupt record", "good", "good"]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in (b"\x0a\xff\xff", b"", b"\x0a\x00", b"junk"):
        writer.write(record)
    writer.close()
    found = everything(path)
    assert [item.reason for item in found if isinstance(item, Broken)] == ["corrupt record"] * 3
    # An example without any field is one without text: the check of examples says so.
    assert [item.captions for item in found if isinstance(item, Raw)] == [()]


def test_a_truncated_array_record_is_one_broken_shard(tmp_path):
    path = tf_examples(tmp_path, [{"image": [jpeg(n)], "text": [b"x"]} for n in range(5)])
    path.write_bytes(path.read_bytes()[:-100])
    assert [item.reason for item in everything(tmp_path)] == ["corrupt shard"]


def test_array_records_are_read_through_fsspec(tmp_path):
    path = tf_examples(tmp_path, [{"image": [jpeg(n)], "text": [b"x"]} for n in range(3)])
    fsspec.filesystem("memory").put(str(path), "/records/x.array_record")
    assert [raw.image for raw in everything("memory://records")] == [jpeg(n) for n in range(3)]


def test_array_records_that_cannot_be_opened_count_as_others_or_as_their_index_says(tmp_path):
    cut = tf_examples(tmp_path, [{"text": [b"x"]} for _ in range(5)])
    cut = cut.rename(tmp_path / "a.array_record")
    tf_examples(tmp_path, [{"text": [b"x"]} for _ in range(9)])
    (plan, _) = open_source(str(tmp_path)).parts()
    cut.write_bytes(cut.read_bytes()[:-100])
    found = everything(tmp_path)
    assert (whole(found), lost(found)) == (9, 9)
    assert [item.count for item in open_source(str(tmp_path)).read(plan)] == [5]
    index = {"shards": [{"name": cut.name, "examples": 6}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert lost(everything(tmp_path)) == 6
