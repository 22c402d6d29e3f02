"""JSON lines beside images."""

import json

import pytest

from lavit_jax.data.sources import json_lines, open_source
from shards import everything, image_folder, jpeg, json_folder


def test_json_lines_beside_an_image_folder(tmp_path):
    rows = [{"file_name": f"{n}.jpg", "captions": [f"c{n}", "d"]} for n in range(3)]
    found = everything(json_folder(tmp_path, rows))
    assert [raw.image for raw in found] == [jpeg(n) for n in range(3)]
    assert found[1].captions == ("c1", "d")


def test_json_lines_never_read_outside_their_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(7))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    places = ["../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "file:///x", "a/../../b"]
    rows = [{"image": place, "caption": "x"} for place in places]
    found = everything(json_folder(tmp_path / "in", rows))
    assert [item.reason for item in found] == ["no image"] * len(places)


def test_broken_json_lines_are_told_apart(tmp_path):
    rows = ['{"text": "good"}', "{", "[1]", '{"image": 3, "caption": "x"}', "[" * 5000, ""]
    found = everything(json_folder(tmp_path, rows))
    assert [getattr(item, "reason", "good") for item in found] == [
        "good",
        "not JSON",
        "not JSON",
        "no image",
        "not JSON",
    ]


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_every_line_is_in_exactly_one_part(tmp_path, monkeypatch, size):
    monkeypatch.setattr(json_lines, "PART_BYTES", size)
    rows = [json.dumps({"text": "x" * (n * 7 % 40), "id": n}) for n in range(60)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(rows))
    assert [raw.key for raw in everything(path)] == [str(n) for n in range(60)]


def test_an_endless_line_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE", 64)
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' + "y" * 1000 + '\n{"text": "b"}\n')
    assert [getattr(item, "reason", "good") for item in everything(path)] == [
        "good",
        "too large",
        "good",
    ]


def test_json_lines_are_cut_by_the_bytes_of_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "PART_BYTES", 100_000)
    path = image_folder(tmp_path / "a", 200, size=10_000)
    parts = open_source(str(path)).parts()
    assert len(parts) in range(18, 24)
    assert sum(part.size for part in parts) == pytest.approx(200 * 10_000, rel=0.1)
    assert open_source(str(path)).parts() == parts
    assert [raw.captions[0] for raw in everything(path)] == [f"c{n}" for n in range(200)]
    # Images that are not there take nothing.
    (lines,) = open_source(str(json_folder(tmp_path / "b", [{"image": "no.jpg"}] * 50))).parts()
    assert lines.size == lines.stop
