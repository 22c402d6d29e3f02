import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lavit_jax.data import images, twemoji
from lavit_jax.errors import UserError


def test_a_record_has_what_the_docstring_says(records):
    record = next(r for r in records["train"] if r["key"] == "1f44d")
    assert set(record) == {
        "key", "image", "alpha", "captions", "questions", "answers", "base", "tones",
    }  # fmt: skip
    assert record["image"].shape == (72, 72, 3)
    assert record["alpha"].shape == (72, 72, 1)
    assert record["image"].dtype == record["alpha"].dtype == np.uint8
    assert record["captions"][0] == "thumbs up"
    assert record["tones"] == ()


def test_a_picture_is_what_loading_its_file_gives(records):
    files = {path.stem: path for path in twemoji._picture_files()}
    for record in records["test_new"][:20]:
        np.testing.assert_array_equal(record["image"], images.load_image(files[record["key"]]))


def test_records_are_in_the_order_of_their_keys(records):
    for members in records.values():
        keys = [record["key"] for record in members]
        assert keys == sorted(keys)


def test_the_source_is_a_sequence(data_dir):
    source = twemoji.source("test_new", data_dir)
    assert source[-1]["key"] == source[len(source) - 1]["key"]
    assert [record["key"] for record in source[3:5]] == [source[3]["key"], source[4]["key"]]
    with pytest.raises(IndexError):
        source[len(source)]


def test_plain_tfds_reads_the_folder_too(data_dir):
    folder = data_dir / "twemoji" / "en" / "1.0.0"
    for builder in (
        tfds.builder_from_directory(folder),
        tfds.builder("twemoji/en", data_dir=str(data_dir)),
    ):
        source = builder.as_data_source("test_combo")
        assert len(source) == 300
        assert source[0]["image"].shape == (72, 72, 3)
        assert source[0]["key"].decode() == twemoji.source("test_combo", data_dir)[0]["key"]
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "array_record"


def test_preparing_again_writes_nothing(data_dir):
    def times() -> dict:
        return {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}

    before = times()
    twemoji.prepare(data_dir)
    assert times() == before


def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    real = twemoji._png
    calls = []

    def fail_late(image):
        calls.append(image)
        if len(calls) > 100:
            raise KeyboardInterrupt
        return real(image)

    monkeypatch.setattr(twemoji, "_png", fail_late)
    with pytest.raises(KeyboardInterrupt):
        twemoji.prepare(tmp_path)
    assert not list(tmp_path.rglob("*array_record*"))
    with pytest.raises(UserError, match="not prepared"):
        twemoji.source("train", tmp_path)


def test_what_a_killed_preparation_left_is_swept_away(tmp_path):
    folder = tmp_path / "en"
    old, fresh = folder / "incomplete.OLD_1.0.0", folder / "incomplete.NEW_1.0.0"
    for left in (old, fresh):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    twemoji._sweep(folder)
    assert not old.exists()
    assert fresh.exists()


def test_losing_a_race_is_no_error(tmp_path, data_dir, monkeypatch):
    def other_was_first(self, **options):
        target = tmp_path / "twemoji" / "en" / "1.0.0"
        target.parent.mkdir(parents=True)
        target.symlink_to(data_dir / "twemoji" / "en" / "1.0.0")
        raise OSError("directory not empty")

    monkeypatch.setattr(twemoji.Twemoji, "download_and_prepare", other_was_first)
    twemoji.prepare(tmp_path)
    assert len(twemoji.source("test_new", tmp_path)) == 200


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_a_damaged_data_set_says_how_to_mend_it(tmp_path, data_dir, harm):
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    (shard,) = copy.rglob("*train*")
    if harm == "missing":
        shard.unlink()
    else:
        os.truncate(shard, 1_000_000)
    with pytest.raises(UserError, match=r"damaged: delete .*1\.0\.0"):
        twemoji.source("train", copy)[0]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the data set to .*file"):
        twemoji.prepare(tmp_path / "file")


def test_unknown_splits_languages_and_places_are_named(tmp_path, data_dir):
    with pytest.raises(UserError, match="no split 'test'"):
        twemoji.source("test", data_dir)
    with pytest.raises(UserError, match="'xx'"):
        twemoji.source("train", data_dir, ("xx",))
    with pytest.raises(UserError, match="'xx'"):
        twemoji.prepare(tmp_path, ("xx",))
    with pytest.raises(UserError, match="not prepared"):
        twemoji.source("train", tmp_path)


def test_sentences_are_every_text(records):
    record = next(r for r in records["train"] if r["key"] == "1f44d-1f3fb")
    sentences = list(twemoji.sentences([record]))
    assert set(record["captions"]) <= set(sentences)
    assert "which skin tone? light" in sentences


@pytest.mark.subprocess
def test_preparing_and_reading_need_no_tensorflow_and_say_nothing(tmp_path):
    program = """
import sys
from lavit_jax.data import twemoji
twemoji.prepare(sys.argv[1], ("de", "en"))
assert twemoji.source("test_new", sys.argv[1], ("de", "en"))[0]["image"].shape == (72, 72, 3)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
