"""Parquet files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lavit_jax.data.sources import Options, open_source
from lavit_jax.errors import UserError
from shards import caption, everything, jpeg, keys, lost, parquet, whole


def test_parquet_of_img2dataset(tmp_path):
    path = parquet(tmp_path / "00000.parquet", 10)
    assert [(p.start, p.stop) for p in open_source(str(path)).parts()] == [(0, 1), (1, 2), (2, 3)]
    found = everything(tmp_path)
    assert [raw.key for raw in found] == keys(10)
    assert [raw.captions for raw in found] == [(caption(n).encode(),) for n in range(10)]
    assert found[9].image == jpeg(9)


def test_parquet_of_hugging_face(tmp_path):
    images = [{"bytes": jpeg(n), "path": None} for n in range(3)]
    pq.write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), tmp_path / "x.parquet")
    found = everything(tmp_path / "x.parquet")
    assert [(raw.image, raw.captions) for raw in found] == [
        (jpeg(n), (text.encode(),)) for n, text in enumerate("abc")
    ]


def test_rows_that_were_not_downloaded_say_so(tmp_path):
    path = parquet(
        tmp_path / "x.parquet", 3, jpg=[jpeg(0), None, None], status=["success", "404", "success"]
    )
    assert [getattr(item, "reason", "good") for item in everything(path)] == [
        "good",
        "not downloaded",
        "no image",
    ]


def test_one_caption_that_is_not_utf8_spoils_no_other(tmp_path):
    broken = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    path = parquet(tmp_path / "x.parquet", 3, caption=broken)
    assert [raw.captions for raw in everything(path)] == [(b"a",), (b"\xff\xfe",), (b"c",)]


def test_a_damaged_parquet_file_is_one_broken_shard(tmp_path):
    data = parquet(tmp_path / "x.parquet", 3).read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[:-20])
    (broken,) = everything(tmp_path)
    assert broken.reason == "corrupt shard"


def test_parquet_without_captions_names_its_columns(tmp_path):
    pq.write_table(pa.table({"picture": [b"x"], "title": ["t"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"picture, title.*--caption-field"):
        everything(tmp_path)
    options = Options(image_field="picture", caption_field="title")
    assert everything(tmp_path, options)[0].captions == (b"t",)


def test_parquet_counts_the_rows_that_it_cannot_give(tmp_path):
    path = parquet(tmp_path / "a.parquet", 10)
    data = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[begin : begin + 40] = b"\xff" * 40  # rows 4 to 7
    path.write_bytes(data)
    found = everything(path)
    assert (whole(found), lost(found)) == (6, 4)
    path.write_bytes(data[:-20])  # without its end nothing of it can be read
    parquet(tmp_path / "b.parquet", 7)
    found = everything(tmp_path)
    assert (whole(found), lost(found)) == (7, 7)
