"""Writes `report/index.html`, one file that needs nothing else, and `report/metrics.json`."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.report import charts, figures
from lavit_jax.report.data import SHOWN_CARDS, Bar, Gallery, ReportData

_HERE = Path(__file__).parent
# Where the page has room for what is added later.
LINKS, GALLERIES = "<!-- further links -->", "<!-- further galleries -->"


def write_report(workdir: Path, data: ReportData) -> Path:
    """Writes the report of a run into `WORKDIR/report`, each file aside and then renamed.

    Args:
      workdir: of the run.
      data: what to show.

    Returns:
      The path of `index.html`.
    """
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_text(folder / "metrics.json", json.dumps(_finite(data.metrics), indent=2) + "\n")
    page = folder / "index.html"
    disk.write_text(page, render(data))
    return page


def render(data: ReportData) -> str:
    """The page as one HTML document: styles, charts and pictures are inside it."""
    return (
        _environment()
        .get_template("index.html.jinja")
        .render(
            data=data,
            style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
            rows=_rows(data.metrics, data.bars),
            others=_others(data.metrics, data.bars),
            passed=sum(bar.passes(data.metrics.get(bar.key)) for bar in data.bars),
            phases=_phases(data.records),
            usage=None if data.code_counts_K is None else charts.usage_chart(data.code_counts_K),
            usage_text=""
            if data.code_counts_K is None
            else charts.usage_summary(data.code_counts_K),
            config=json.dumps(data.config, indent=2, default=list, ensure_ascii=False),
            shown=SHOWN_CARDS,
        )
    )


def add_gallery(index: Path, name: str, gallery: Gallery) -> None:
    """Adds a gallery to a written report; one of the same name is replaced.

    Args:
      index: the report's `index.html`.
      name: of the section, in letters and dashes.
      gallery: what to show.

    Raises:
      UserError: the file is no report.
    """
    page = index.read_text(encoding="utf-8")
    if LINKS not in page or GALLERIES not in page:
        raise UserError(f"{index}: not a report of this version of lavit_jax; write it anew")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = re.sub(f"{start}.*?{end}\n", "", page, flags=re.DOTALL)
    module = _environment().get_template("gallery.html.jinja").module
    section = module.section(gallery, name, SHOWN_CARDS)  # type: ignore[attr-defined]
    link = f'<a href="#{name}">{escape(gallery.title)}</a>'
    page = page.replace(LINKS, f"{start}{link}{end}\n{LINKS}")
    page = page.replace(GALLERIES, f"{start}\n{section}{end}\n{GALLERIES}")
    disk.write_text(index, page)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data_uri"] = _data_uri
    return environment


def _rows(metrics: Mapping[str, float | None], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    return [
        {
            "bar": bar,
            "value": _value(metrics.get(bar.key)),
            "passes": bar.passes(metrics.get(bar.key)),
        }
        for bar in bars
    ]


def _others(metrics: Mapping[str, float | None], bars: Sequence[Bar]) -> list[tuple[str, str]]:
    """Metrics without a bar."""
    barred = {bar.key for bar in bars}
    return [(key, _value(value)) for key, value in metrics.items() if key not in barred]


def _value(value: float | None) -> str:
    """A result with three or four figures."""
    if value is None:
        return "not measured"
    if not math.isfinite(value):
        return "not a number"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def _phases(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Charts of each phase, in the order they ran."""
    found = []
    for name, group in itertools.groupby(records, key=lambda record: record.get("phase", "")):
        steps = list(group)
        found.append(
            {
                "name": name,
                "first": steps[0]["step"],
                "last": steps[-1]["step"],
                "charts": charts.phase_charts(steps),
            }
        )
    return found


def _data_uri(image: figures.Picture) -> Markup:
    encoded = base64.b64encode(figures.to_png(np.asarray(image))).decode()
    return Markup(f"data:image/png;base64,{encoded}")


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no NaN and knows no numbers of numpy's."""

    def plain(value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return None
        return value if isinstance(value, int) else float(value)

    return {key: plain(value) for key, value in metrics.items()}
