import html.parser
import json
import math
import re

import jinja2
import numpy as np
import pytest

from lavit_jax.errors import UserError
from lavit_jax.report import galleries
from lavit_jax.report.data import SHOWN_CARDS, Bar, Card, Gallery, ReportData, twemoji_bars
from lavit_jax.report.html import add_gallery, render, write_report

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (30, 16, 16, 3), np.uint8)


@pytest.fixture
def data() -> ReportData:
    names = [f"picture {index}" for index in range(len(PICTURES))]
    return ReportData(
        title="A <run> & more",
        metrics={"cosine_loss": 0.2, "codebook_in_use": 0.3, "kept_mean": math.nan, "other": 7.25},
        bars=twemoji_bars(),
        records=[
            {"step": 1, "phase": "encoder", "loss": 2.0},
            {"step": 2, "phase": "encoder", "loss": None},
            {"step": 3, "phase": "select", "loss": 1.0, "cosine_loss": 0.5},
        ],
        code_counts_K=np.arange(64),
        galleries=[
            galleries.kept_patches(PICTURES, RNG.integers(0, 2, (30, 16))),
            galleries.reconstructions(PICTURES, PICTURES, [4] * 30),
            galleries.captions(PICTURES, ["picture 0"] * 30, [[name] for name in names]),
            galleries.drawings(names, PICTURES, PICTURES, names, [True] * 30),
        ],
        config={"schedule": ("encoder", "select"), "name": "</pre><script>"},
        facts={"jax": "0"},
    )


class _Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects what the page would load."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_sound_and_loads_nothing_from_elsewhere(data):
    text = render(data)
    page = _Page()
    page.feed(text)
    assert not page.open
    assert page.scripts == 0
    for load in page.loads:
        assert load.startswith(("data:image/png;base64,", "#", "data:,")), load
    assert not re.search(r"https?://|url\(|@import", text)
    targets = [load[1:] for load in page.loads if load.startswith("#")]
    assert set(targets) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_section_is_there(data):
    text = render(data)
    for heading in ("Numbers", "What it keeps", "From ids back", "Captions of", "Drawn from"):
        assert heading in text
    for phase in ("encoder", "select"):
        assert f"<h3>{phase} " in text
    assert "A &lt;run&gt; &amp; more" in text
    assert "&lt;/pre&gt;" in text


def test_metrics_stand_beside_their_bars(data):
    rows = re.findall(r"<tr>.*?</tr>", render(data), re.S)
    found = {re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in rows}
    assert "Cosine loss features from ids, unseen pictures 0.200 at most 0.25 ✓ met" in found
    assert "Codes in use share of the codebook 0.300 at least 0.5 ✗ missed" in found
    assert any("not a number 0.283 to 0.383 ✗ missed" in row for row in found)
    assert any("Minutes" in row and "not measured at most 15 ✗ missed" in row for row in found)
    assert "<strong>1 of 12</strong> bars met" in render(data)


def test_numbers_are_written_beside_the_page(data, tmp_path):
    page = write_report(tmp_path, data)
    assert page == tmp_path / "report" / "index.html"
    assert json.loads((tmp_path / "report" / "metrics.json").read_text()) == {
        "cosine_loss": 0.2,
        "codebook_in_use": 0.3,
        "kept_mean": None,
        "other": 7.25,
    }
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "metrics.json"]


def test_metrics_may_be_numpys(tmp_path):
    write_report(tmp_path, ReportData("t", {"a": np.float32(0.5), "b": np.int64(3), "n": 4}))
    stored = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert stored == {"a": 0.5, "b": 3, "n": 4}


def test_a_report_that_fails_leaves_the_old_one(data, tmp_path):
    page = write_report(tmp_path, data)
    before = page.read_text()
    broken = ReportData("t", {}, galleries=[Gallery("g", [None])])  # type: ignore[list-item]
    with pytest.raises(jinja2.UndefinedError):
        write_report(tmp_path, broken)
    assert page.read_text() == before


def test_an_almost_empty_report_is_a_page_too():
    page = _Page()
    page.feed(render(ReportData("Nothing yet", {}, galleries=[Gallery("None", [])])))
    assert not page.open


def test_long_galleries_unfold(data):
    many = Gallery("Many", [Card([PICTURES[0]])] * (SHOWN_CARDS + 5))
    assert "<summary>5 more</summary>" in render(ReportData("t", {}, galleries=[many]))


def test_captions_are_right_only_to_the_letter():
    said, names = ["cat", "Cat", "a dog", ""], [["cat"], ["cat"], ["dog", "a dog"], ["x"]]
    cards = galleries.captions(PICTURES[:4], said, names).cards
    assert [card.right for card in cards] == [True, False, True, False]
    assert [card.note for card in cards] == ["", "is: cat", "", "is: x"]
    assert cards[3].title == "(nothing)"


def test_kept_patches_go_from_few_to_many():
    keep = np.tril(np.ones((16, 16)))[::-1]
    cards = galleries.kept_patches(PICTURES[:16], keep, count=4).cards
    assert [card.note for card in cards] == ["1 of 16", "6 of 16", "11 of 16", "16 of 16"]


def test_a_card_has_a_label_for_each_picture_or_none():
    with pytest.raises(ValueError, match="1 pictures and 2 labels"):
        Card([PICTURES[0]], labels=["a", "b"])


@pytest.mark.parametrize(
    ("bar", "value", "passes"),
    [
        (Bar("m", "", high=1.0), 1.0, True),
        (Bar("m", "", high=1.0), 1.01, False),
        (Bar("m", "", low=1.0), 1.0, True),
        (Bar("m", "", low=1.0, high=2.0), 0.9, False),
        (Bar("m", "", low=1.0), math.nan, False),
        (Bar("m", "", low=1.0), None, False),
    ],
)
def test_bars_hold_within_their_bounds(bar, value, passes):
    assert bar.passes(value) is passes


def test_a_gallery_can_be_added_later_and_again(data, tmp_path):
    index = write_report(tmp_path, data)
    before = index.read_text()
    cards = [Card(images=[PICTURES[0]], title="one & only")]
    add_gallery(index, "both-decoders", Gallery("Both <decoders>", cards))
    once = index.read_text()
    assert once.count("one &amp; only") == 2  # its title, and the picture's description
    assert '<section id="both-decoders">' in once
    assert '<a href="#both-decoders">Both &lt;decoders&gt;</a>' in once
    page = _Page()
    page.feed(once)
    assert page.open == [] and "both-decoders" in page.ids
    add_gallery(index, "both-decoders", Gallery("Both <decoders>", cards))
    assert index.read_text() == once
    add_gallery(index, "both-decoders", Gallery("Other", []))
    assert "one &amp; only" not in index.read_text()
    assert len(index.read_text()) < len(once) and len(before) < len(once)


def test_a_page_without_room_for_a_gallery_is_told(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<html></html>")
    with pytest.raises(UserError, match="not a report of this version"):
        add_gallery(page, "more", Gallery("More", []))
    assert page.read_text() == "<html></html>"


def test_both_decoders_stand_beside_the_picture_where_there_is_one():
    shown = galleries.decoders(
        ["drawn", "again"], [None, PICTURES[0]], PICTURES[:2], PICTURES[2:4], "why"
    )
    assert [list(card.labels) for card in shown.cards] == [
        ["one pass", "diffusion"],
        ["picture", "one pass", "diffusion"],
    ]
    np.testing.assert_array_equal(shown.cards[1].images[2], PICTURES[3])
