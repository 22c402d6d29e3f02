"""Charts as inline SVG; colours come from the page's style sheet, so they follow its theme."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
MAX_POINTS = 300
MAX_BARS = 256
SMOOTHING = 40  # a line averages over a 40th of the steps

Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Which metrics share a chart.

    Attributes:
      title: above it.
      lines: metric name to its name in the legend.
      band: two metrics; the area between them is shaded.
    """

    title: str
    lines: Mapping[str, str]
    band: tuple[str, str] | None = None


CHARTS = (
    Chart("Loss", {"loss": "loss"}),
    Chart("Cosine loss", {"cosine_loss": "cosine loss"}),
    Chart("Pixel loss", {"pixel_loss": "pixel loss"}),
    Chart(
        "Share of patches kept",
        {"kept_mean": "mean", "kept_greedy": "greedy"},
        band=("kept_min", "kept_max"),
    ),
    Chart("Selector entropy", {"selector_entropy": "entropy"}),
    Chart("Share of codes in use", {"codebook_in_use": "in use"}),
    Chart("Codebook perplexity", {"codebook_perplexity": "perplexity"}),
    Chart("Dead codes re-seeded", {"dead_codes": "codes"}),
    Chart("Next-token loss", {"text_loss": "text", "visual_loss": "visual ids"}),
    Chart(
        "Accuracy",
        {"accuracy": "image to text", "text_accuracy": "text", "visual_accuracy": "visual ids"},
    ),
    Chart("Useful tokens in a row", {"useful_tokens": "share"}),
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A chart ready for the page.

    Attributes:
      title: above it.
      legend: name and last value of each line, in order.
      svg: the chart.
    """

    title: str
    legend: Sequence[tuple[str, str]]
    svg: Markup


def phase_charts(records: Sequence[Mapping[str, Any]]) -> list[Drawn]:
    """A chart of everything in `CHARTS` that these steps of one phase recorded."""
    steps = np.array([record["step"] for record in records], np.float64)

    def column(name: str) -> Values | None:
        values = [record.get(name) for record in records]
        found = np.array([math.nan if value is None else value for value in values], np.float64)
        return found if np.isfinite(found).any() else None

    drawn = []
    for chart in CHARTS:
        lines = {
            label: values
            for name, label in chart.lines.items()
            if (values := column(name)) is not None
        }
        if not lines:
            continue
        band = None
        if chart.band is not None:
            low, high = map(column, chart.band)
            band = (low, high) if low is not None and high is not None else None
        legend = [(label, number(_last(_smooth(values)))) for label, values in lines.items()]
        drawn.append(Drawn(chart.title, legend, line_chart(chart.title, steps, lines, band)))
    return drawn


def line_chart(
    title: str,
    steps: Values,
    lines: Mapping[str, Values],
    band: tuple[Values, Values] | None = None,
) -> Markup:
    """Smoothed lines over the raw values in faint, and a shaded band if given.

    Args:
      title: for screen readers.
      steps: [T], ascending.
      lines: [T] each; NaN leaves a gap.
      band: lower and upper outline, [T] each.
    """
    smooth = {label: _smooth(values) for label, values in lines.items()}
    shown = [*smooth.values(), *(map(_smooth, band) if band else ())]
    low, high = _span(lines.values() if band is None else [*lines.values(), *shown])
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left, right = float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1)

    def x(value: Any) -> Any:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(value: Any) -> Any:
        share = np.clip((value - low) / (high - low), 0, 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        place = y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{place + 3.5:.1f}" text-anchor="end">'
            f"{number(tick)}</text>"
        )
    for value, anchor in ((left, "start"), ((left + right) / 2, "middle"), (right, "end")):
        parts.append(
            f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - 6}" '
            f'text-anchor="{anchor}">{round(value):,}</text>'
        )
    picked = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).astype(int))
    xs = x(steps[picked])
    if band is not None:
        lower, upper = (y(_smooth(edge)[picked]) for edge in band)
        sound = np.isfinite(lower) & np.isfinite(upper)
        outline = [
            *zip(xs[sound], upper[sound], strict=True),
            *reversed(list(zip(xs[sound], lower[sound], strict=True))),
        ]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
        parts.append(f'<polygon class="band" points="{points}"/>')
    for index, label in enumerate(lines):
        parts.append(f'<path class="raw c{index}" d="{_path(xs, y(lines[label][picked]))}"/>')
    for index, label in enumerate(lines):
        parts.append(f'<path class="line c{index}" d="{_path(xs, y(smooth[label][picked]))}"/>')
    return _svg(f"{title} by step", parts)


def usage_chart(counts_K: NDArray[Any]) -> Markup:
    """How often each code occurs, most used first, on a logarithmic scale."""
    sizes = np.sort(np.asarray(counts_K, np.float64))[::-1]
    bars = np.array([group.mean() for group in np.array_split(sizes, min(len(sizes), MAX_BARS))])
    top = max(1, math.ceil(math.log10(1 + bars.max())))
    wide, tall = WIDTH * 3, HEIGHT
    step = (wide - LEFT - RIGHT) / len(bars)
    parts = []
    for power in range(top + 1):
        place = HEIGHT - BOTTOM - power / top * (tall - TOP - BOTTOM)
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{wide - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{place + 3.5:.1f}" text-anchor="end">'
            f"{10**power - 1 if power == 0 else 10**power:,}</text>"
        )
    for index, size in enumerate(bars):
        if size > 0:
            height = math.log10(1 + size) / top * (tall - TOP - BOTTOM)
            parts.append(
                f'<rect class="fill0" x="{LEFT + index * step:.2f}" '
                f'y="{HEIGHT - BOTTOM - height:.1f}" width="{step * 0.82:.2f}" '
                f'height="{height:.1f}"/>'
            )
    for rank, anchor in ((1, "start"), (len(sizes), "end")):
        place = LEFT if anchor == "start" else wide - RIGHT
        parts.append(
            f'<text class="tick" x="{place}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
            f"{rank:,}{' most used' if rank == 1 else ''}</text>"
        )
    return _svg("How often each code is used", parts, wide)


def usage_summary(counts_K: NDArray[Any]) -> str:
    """Codes in use and their perplexity, in words."""
    counts = np.asarray(counts_K, np.float64)
    used, total = int((counts > 0).sum()), counts.sum()
    if total == 0:
        return f"none of {len(counts):,} codes in use"
    shares = counts[counts > 0] / total
    perplexity = math.exp(-float((shares * np.log(shares)).sum()))
    return f"{used:,} of {len(counts):,} codes in use, perplexity {perplexity:,.0f}"


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers within (or just around) a span."""
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(
        factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """A number short enough for an axis."""
    if not math.isfinite(value):
        return "?"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    text = f"{value:.3f}" if size < 1 else f"{value:.4g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _smooth(values: Values) -> Values:
    """Centred moving average that leaves NaN out."""
    half = max(0, round(len(values) / SMOOTHING / 2))
    sound = np.isfinite(values)
    sums = np.concatenate([[0.0], np.where(sound, values, 0.0).cumsum()])
    counts = np.concatenate([[0], sound.cumsum()])
    index = np.arange(len(values))
    start, end = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    seen = counts[end] - counts[start]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(seen > 0, (sums[end] - sums[start]) / seen, np.nan)


def _span(series: Any) -> tuple[float, float]:
    """The range to show: without the outermost values, from 0 if that is near."""
    values = np.concatenate([line[np.isfinite(line)] for line in series])
    low, high = np.quantile(values, [0.005, 0.995])
    if 0 < low < 0.6 * high:
        low = 0.0
    if high - low < 1e-9 * max(1.0, abs(high)):
        return float(low) - 0.5 * (abs(low) or 1.0), float(high) + 0.5 * (abs(high) or 1.0)
    return float(low), float(high)


def _last(values: Values) -> float:
    sound = values[np.isfinite(values)]
    return float(sound[-1]) if len(sound) else math.nan


def _path(xs: Values, ys: Values) -> str:
    """Path data with a gap wherever y is NaN."""
    pieces, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        pieces.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(pieces)


def _svg(label: str, parts: Sequence[str], width: int = WIDTH) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
    )
