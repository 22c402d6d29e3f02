"""`lavit data`: its actions on small data, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from lavit_jax.cli.main import main
from shards import pair, tars, write_tar


@pytest.fixture
def prepared(tmp_path, capsys):
    """A prepared folder of 40 pictures, one left out."""
    members = [member for number in range(40) for member in pair(number, (48, 32))]
    write_tar(tmp_path / "src" / "0.tar", [*members, ("bad.jpg", b"x"), ("bad.txt", b"y")])
    command = ["data", "prepare", str(tmp_path / "src"), str(tmp_path / "dst")]
    assert main([*command, "--max-bad-share", "0.1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["examples"], document["rejected"]) == (40, {"wrong type": 1})
    return tmp_path / "dst"


def test_prepare_says_what_it_did(tmp_path, capsys):
    source = tars(tmp_path / "src", 1, 3)
    assert main(["data", "prepare", str(source), str(tmp_path / "dst")]) == 0
    out = capsys.readouterr().out
    assert "3 examples (3 with an image) in 1 shards" in out


def test_inspect_shows_counts_shares_and_pictures(prepared, capsys):
    assert main(["data", "inspect", str(prepared)]) == 0
    out = capsys.readouterr().out
    for text in (
        "examples    40: 40 with an image, 0 text alone",
        "left out    2.44% when it was prepared: 1 wrong type",
        "broken      0.00%",
        "48 .. 48, half 48",
        "en 100.0%",
        "repeated    0 keys, 0 images",
    ):
        assert text in out
    sheet = np.asarray(Image.open(prepared / "contact_sheet.png"))
    assert sheet.std() > 20
    # A sheet in the folder does not disturb reading it.
    assert main(["data", "inspect", str(prepared), "--json", "--most", "7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["looked_at"], found["width"]["p50"]) == (7, 48.0)


def test_inspect_fetches_some_shards_of_a_bucket(tmp_path, capsys, monkeypatch):
    source = tars(tmp_path / "src", 6, 10)
    command = ["data", "prepare", str(source), "memory://inspected/set", "--workers", "1"]
    assert main([*command, "--shard-mb", "0.02"]) == 0
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    inspect = ["data", "inspect", "memory://inspected/set"]
    assert main([*inspect, "--shards", "2"]) == 0
    out = capsys.readouterr().out
    assert "of 20 looked at, in 2 of 6 shards" in out
    assert "examples    60: 60 with an image" in out
    assert np.asarray(Image.open(tmp_path / "contact_sheet.png")).std() > 20
    assert main([*inspect, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["looked_at"], found["looked_at_shards"]) == (60, 6)


def test_bench_times_every_step(prepared, capsys):
    command = ["data", "bench", str(prepared), "--seconds", "0.1", "--config.data.row_length=512"]
    assert main([*command, "--json", "--step-seconds", "0.5", "--hosts", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    rates = found["images_per_second_per_core"]
    assert list(rates) == [
        "read",
        "decode_alone",
        "decode",
        "preprocess",
        "pack",
        "jpeg_to_packed_batch",
    ]
    assert min(rates.values()) > 0
    assert found["needs"]["encoder"] == {
        "images_per_step_and_host": 48.0,
        "images_per_second_and_host": 96.0,
    }
    assert main(command) == 0
    assert "no loader on this machine can be faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["data"], "ACTION"),
        (["data", "prepare", "./nowhere", "dst"], "no such file or folder: ./nowhere"),
        (["data", "prepare", "src"], "DST"),
        (["data", "prepare", "src", "dst", "--runner", "spark"], "spark"),
        (["data", "inspect", "nowhere"], "nowhere is not a prepared data set"),
        (["data", "bench", "nowhere"], "nowhere is not a prepared data set"),
        (["data", "inspect", "x", "--config.seed=1"], "unrecognized arguments"),
        (["tokenize-dataset", "x", "y"], "--checkpoint"),
        (["tokenize-dataset", "x", "y", "--checkpoint", "w"], "w is not a work directory"),
    ],
)
def test_mistakes_get_one_line(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert not list(tmp_path.iterdir())
