"""`lavit quickstart`, whole but tiny: every stage, the numbers, the report, and going on."""

import json
import re
from pathlib import Path

import pytest

import small_run
from lavit_jax import quickstart
from lavit_jax.report.data import twemoji_bars

PHASES = ("encoder", "select", "quantize", "unified")
# The steps of the tests that train, whose compiled programs so serve here too.
OVERRIDES = [*small_run.OVERRIDES, "--config.log.sample_every=7"]


def run(workdir: Path) -> Path:
    return quickstart.run(workdir, "configs/mini.py", OVERRIDES)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    assert run(folder) == folder / "report" / "index.html"
    return folder


@pytest.fixture(scope="module")
def metrics(workdir) -> dict:
    return json.loads((workdir / "report" / "metrics.json").read_text())


def test_every_number_that_has_a_bar_is_measured(metrics):
    assert {bar.key for bar in twemoji_bars()} <= metrics.keys()
    assert all(isinstance(value, float) for value in metrics.values())


def test_shares_are_shares(metrics):
    share = re.compile("codebook|kept_mean|caption|tone|draw|useful")
    assert all(0 <= metrics[key] <= 1 for key in metrics if share.search(key))
    assert metrics["useful_token_share"] > 0.85
    assert 0 < metrics["minutes"] < 60
    assert 0.1 < metrics["peak_rss_gb"] < 24


def test_the_report_needs_no_network_and_shows_every_section(workdir):
    page = (workdir / "report" / "index.html").read_text()
    assert not re.search(r"""(src|href)=["']?https?://""", page.replace("<a href", ""))
    assert page.count("data:image/png;base64,") > 50
    for section in (
        "Cosine loss",
        "From ids back to pictures",
        "Captions of unseen combinations",
        "Drawn recognisably",
        "encoder",
        "unified",
    ):
        assert section in page


def test_each_step_is_recorded_once(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, small_run.TOTAL + 1))
    assert [record["phase"] for record in records] == [
        name for name in PHASES for _ in range(small_run.STEPS[name])
    ]


def test_sample_pictures_are_written_while_training(workdir):
    written = sorted(path.name for path in (workdir / "samples").glob("*.png"))
    assert written == [
        "0000007-select.png",
        "0000010-select.png",
        "0000014-quantize.png",
        "0000021-unified.png",
        "0000022-unified.png",
    ]


def test_a_finished_run_only_tells_where_its_report_is(workdir, capsys):
    report = workdir / "report" / "index.html"
    before = report.stat().st_mtime_ns
    assert run(workdir) == report
    assert report.stat().st_mtime_ns == before
    assert "finished before" in capsys.readouterr().err


def test_stopped_before_its_report_it_only_measures_again(workdir, metrics):
    (workdir / "report" / "index.html").unlink()
    trained = (workdir / "metrics.jsonl").read_text()
    run(workdir)
    again = json.loads((workdir / "report" / "metrics.json").read_text())
    assert (workdir / "metrics.jsonl").read_text() == trained
    assert again["minutes"] > metrics["minutes"]
    same = metrics.keys() - {"minutes", "peak_rss_gb"}
    assert {key: again[key] for key in same} == {key: metrics[key] for key in same}
