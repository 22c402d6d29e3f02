import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit_jax.report import charts

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def record(step: int, **metrics: float | None) -> dict:
    return {"step": step, "phase": "p", **metrics}


def coordinates(svg: str) -> list[float]:
    """Every number of every path and polygon."""
    found = []
    for element in ET.fromstring(svg).iter():
        text = element.get("d", "") + element.get("points", "")
        for sign in "MLHV,":
            text = text.replace(sign, " ")
        found += [float(part) for part in text.split()]
    return found


def test_a_phase_gets_the_charts_of_what_it_recorded():
    records = [record(i, loss=1 / i, kept_mean=0.3, kept_min=0.1, kept_max=0.6) for i in (1, 2, 3)]
    drawn = charts.phase_charts(records)
    assert [chart.title for chart in drawn] == ["Loss", "Share of patches kept"]
    assert 'class="band"' in drawn[1].svg
    assert drawn[1].legend == [("mean", "0.3")]


def test_metrics_that_were_never_finite_are_left_out():
    assert charts.phase_charts([record(1, loss=None), record(2, loss=math.nan)]) == []


def test_gaps_in_a_line_stay_gaps():
    values = np.array([1.0, 2.0, np.nan, 3.0])
    svg = charts.line_chart("t", np.arange(4.0), {"a": values})
    line = next(e for e in ET.fromstring(svg).iter() if e.get("class") == "raw c0")
    assert line.get("d").count("M") == 2


@settings(max_examples=60)
@given(
    st.lists(FINITE | st.just(math.nan), min_size=1, max_size=60).filter(
        lambda values: not all(map(math.isnan, values))
    )
)
def test_whatever_the_values_charts_are_sound_and_inside_their_frame(values):
    steps = np.arange(1.0, len(values) + 1)
    svg = charts.line_chart("t", steps, {"a": np.array(values)})
    places = coordinates(svg)
    assert all(map(math.isfinite, places))
    assert 0 <= min(places) <= max(places) <= charts.WIDTH


@settings(max_examples=60)
@given(FINITE, st.floats(1e-6, 1e6))
def test_ticks_are_few_and_within_the_span(low, width):
    if low + width == low or width < abs(low) * 1e-6:
        return
    ticks = charts.nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 6
    slack = 1e-6 * (abs(low) + width)
    assert low - slack <= ticks[0] < ticks[-1] <= low + width + slack


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12.5, "12.5"), (1e-5, "1e-5"), (12345.6, "12,346"), (-0.5, "-0.5")],
)
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


def test_usage_counts_codes_and_their_perplexity():
    assert charts.usage_summary(np.array([5, 5, 0, 5, 5])) == "4 of 5 codes in use, perplexity 4"
    assert charts.usage_summary(np.zeros(3)) == "none of 3 codes in use"


@pytest.mark.parametrize("codes", [1, 64, 16384])
def test_usage_chart_draws_any_codebook(codes):
    svg = charts.usage_chart(np.arange(codes))
    bars = [e for e in ET.fromstring(svg).iter() if e.tag == "rect"]
    assert len(bars) <= charts.MAX_BARS
    assert charts.usage_chart(np.zeros(codes)).count("<rect") == 0
