"""`lavit data`: its actions on small data, through the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from lavit_jax.cli.main import main
from lavit_jax.config import load_config
from lavit_jax.data import needs
from lavit_jax.parallel import topology
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


def test_bench_times_every_step_and_says_what_hosts_need(prepared, tmp_path, capsys):
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
        "gather",
    ]
    assert min(rates.values()) > 0
    need = found["needs"]["encoder"]
    assert (need["images_per_step_and_host"], need["images_per_second_and_host"]) == (48.0, 96.0)
    assert need["cores"] == pytest.approx(96 / rates["jpeg_to_packed_batch"])

    plan = tmp_path / "plan.json"
    of_a_phase = {"name": "unified", "topology": "v5p-128", "slices": 2, "seconds": 0.004}
    plan.write_text(json.dumps([of_a_phase]))
    assert main([*command, "--plan", str(plan)]) == 0
    out = capsys.readouterr().out
    assert "no loader on this machine can be faster" in out
    assert "2 x v5p-128: 32 hosts of 208 vCPUs" in out
    # 8 rows of 512 tokens and up to 5 pictures over 32 hosts, planned; other phases are not.
    assert "phase unified: 1.25 images at most and 128 tokens a step and host\n" in out
    assert "    in steps of 0.004 s 312 images a second: " in out
    assert "phase encoder: 3 images a step and host\n    reading keeps up with steps of 0.0" in out


def test_needs_compare_a_host_with_what_a_core_does():
    config = load_config("configs/unified_7b.py:v5p-128")
    rates = {"jpeg_to_packed_batch": 500.0, "gather": 6000.0}
    place = topology.parse("v5p-128")
    target = needs.Target(place.title, place.hosts, place.host_cores)

    def said(seconds):
        found = needs.needs(config, target, {"unified": seconds}, rates)
        return found["unified"], needs.describe(target, found)[2]

    need, text = said(1.25)  # 256 rows of 10 pictures over 16 hosts
    assert (need["images_per_second_and_host"], need["cores"]) == (128, 0.256)
    assert need["tokens_per_step_and_host"] == 256 * 2048 / 16
    assert text.endswith("128 images a second: 0.3 cores; enough, with config.data.threads=1")
    need, text = said(0.08)
    assert text.endswith("2,000 images a second: 4.0 cores; enough, with config.data.workers=8")
    need, text = said(0.05)  # half of what one process gathers is the limit, not 208 cores
    assert need["shortest_step_seconds"] == 160 / 3000
    assert text.endswith("not enough: reading keeps up with steps of 0.0533 s or more")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["data"], "ACTION"),
        (["data", "prepare", "./nowhere", "dst"], "no such file or folder: ./nowhere"),
        (["data", "prepare", "src"], "DST"),
        (["data", "prepare", "src", "dst", "--runner", "spark"], "spark"),
        (["data", "inspect", "nowhere"], "nowhere is not a prepared data set"),
        (["data", "bench", "nowhere"], "nowhere is not a prepared data set"),
        (["data", "bench", "x", "--topology", "v9-8"], "--topology 'v9-8' is not known"),
        (["data", "bench", "x", "--topology", "v4-8", "--hosts", "2"], "--hosts or --topology"),
        (["data", "bench", "x", "--plan", "p.json"], "--plan p.json: cannot be read: No such file"),
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
