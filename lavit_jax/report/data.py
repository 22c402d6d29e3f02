"""What a report shows: numbers with their bars, curves and galleries of pictures.

Legend: H height, W width, K codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lavit_jax.report.figures import Picture

SHOWN_CARDS = 24  # of a gallery; the others unfold


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a metric has to reach.

    Attributes:
      key: the metric's name in metrics.json.
      label: what it is, in words.
      low: the least it may be, if that matters.
      high: the most it may be, if that matters.
      note: how it is measured.
    """

    key: str
    label: str
    low: float | None = None
    high: float | None = None
    note: str = ""

    def passes(self, value: float | None) -> bool:
        """Whether the value is within the bounds; None and NaN never are."""
        if value is None:
            return False
        low = -float("inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high
        return low <= value <= high

    @property
    def text(self) -> str:
        """The bounds in words; empty if there are none."""
        if self.low is not None and self.high is not None:
            return f"{self.low:.3g} to {self.high:.3g}"
        if self.high is not None:
            return f"at most {self.high:g}"
        return "" if self.low is None else f"at least {self.low:g}"


def twemoji_bars(kept_share: float = 1 / 3, minutes: float = 15) -> tuple[Bar, ...]:
    """The quickstart's bars.

    Args:
      kept_share: the share of patches the selector is trained to keep (rho).
      minutes: that the config is laid out for.
    """
    return (
        Bar("minutes", "Minutes, first run", high=minutes, note="all stages, after installation"),
        Bar("peak_rss_gb", "Memory, GB", high=6, note="largest resident size"),
        Bar("cosine_loss", "Cosine loss", high=0.25, note="features from ids, unseen pictures"),
        Bar("codebook_in_use", "Codes in use", low=0.5, note="share of the codebook"),
        Bar(
            "kept_mean",
            "Patches kept, mean",
            low=kept_share - 0.05,
            high=kept_share + 0.05,
            note="share of a picture's patches",
        ),
        Bar("kept_std", "Patches kept, spread", low=0.03, note="standard deviation over pictures"),
        Bar("useful_token_share", "Useful tokens", low=0.9, note="of the packed rows"),
        Bar("caption_exact_train", "Exact captions, seen", low=0.6, note="training pictures"),
        Bar("caption_exact_combo", "Exact captions, new tones", low=0.4, note="test_combo"),
        Bar("tone_correct_combo", "Tones named right", low=0.8, note="test_combo"),
        Bar("draw_top5_combo", "Drawn recognisably", low=0.5, note="test_combo, 5 nearest"),
        Bar("draw_tone_combo", "Drawn in the right tone", low=0.6, note="test_combo, nearest"),
    )


@dataclasses.dataclass(frozen=True)
class Card:
    """Pictures that belong together, and what to say about them.

    Attributes:
      images: uint8 [H, W, 3] each, shown side by side.
      labels: under each picture; none or as many as there are pictures.
      title: a caption or prompt.
      note: a line in smaller print.
      right: marks the card as right or wrong; None for no mark.
    """

    images: Sequence[Picture]
    labels: Sequence[str] = ()
    title: str = ""
    note: str = ""
    right: bool | None = None

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.images):
            raise ValueError(f"{len(self.images)} pictures and {len(self.labels)} labels")


@dataclasses.dataclass(frozen=True)
class Gallery:
    """A section of cards; those after the first `SHOWN_CARDS` unfold."""

    title: str
    cards: Sequence[Card]
    intro: str = ""


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Everything a report shows; what is left empty is left out.

    Attributes:
      title: of the page.
      metrics: final numbers by name, written to metrics.json as they are (NaN as null).
      bars: what metrics have to reach; each is also the row of its metric in the table.
      records: what `metrics.jsonl` holds: `step`, `phase` and that step's metrics.
      code_counts_K: how often each code was used.
      galleries: sections of pictures.
      config: the experiment's fields.
      facts: other things worth knowing, such as versions.
    """

    title: str
    metrics: Mapping[str, float | None]
    bars: Sequence[Bar] = ()
    records: Sequence[Mapping[str, Any]] = ()
    code_counts_K: np.ndarray | None = None
    galleries: Sequence[Gallery] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
