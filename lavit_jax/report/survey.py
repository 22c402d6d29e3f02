"""What a prepared data set has: counts, sizes, lengths, languages, what is broken, and pictures."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lavit_jax.data import copies, languages, prepared
from lavit_jax.data import images as image_data
from lavit_jax.data.check import checked
from lavit_jax.data.sources.base import Broken, Raw
from lavit_jax.data.tally import Tally
from lavit_jax.report import figures

SHOWN = 48  # pictures of the contact sheet
FETCHED = 8  # shards of a data set in a bucket that are looked at
SAY_SECONDS = 10.0
PERCENTILES = (0, 5, 50, 95, 100)


def survey(
    folder: str | os.PathLike[str],
    most: int,
    shards: int | None = None,
    sheet: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Looks through a prepared data set.

    Args:
      folder: the data set, or a URL.
      most: examples that are looked at, evenly spread; counts and sizes are of all.
      shards: of which they are at most, evenly spread; None is all, of a URL `FETCHED`.
      sheet: where pictures from all over it are written with their captions, if it has any.
      say: told now and then how far it is.

    Returns:
      JSON-able: counts, sizes, shares, and the sheet's path if there is one.

    Raises:
      UserError: no prepared data set.
    """
    stored = prepared.Prepared(folder)
    tally, seen, gallery = Tally(), _Seen(), _Gallery()
    if shards is None and copies.is_remote(folder):
        shards = FETCHED
    used = _places(stored.facts["shards"], shards)
    places = [used[place] for place in _spread(len(used), most)]
    shown = {places[place] for place in _spread(len(places), SHOWN)}
    told = time.monotonic()
    for number, place in enumerate(places):
        if time.monotonic() - told > SAY_SECONDS:
            told = time.monotonic()
            say(f"{number} of {len(places)} examples looked at")
        raw = stored[place]
        if place in shown and sheet is not None:
            gallery.add(raw)
        for item in checked(raw):
            if isinstance(item, Broken):
                tally.add_broken(item)
            else:
                tally.good += 1
                seen.add(item)
    index = stored.facts
    rejected = dict(sorted(index["rejected"].items(), key=lambda item: -item[1]))
    offered = index["examples"] + sum(rejected.values())
    return {
        "data": os.fspath(folder),
        "source": index["job"]["source"],
        "examples": index["examples"],
        "images": index["images"],
        "text_only": index["examples"] - index["images"],
        "shards": len(index["shards"]),
        "bytes": index["bytes"],
        "rejected": rejected,
        "rejected_share": sum(rejected.values()) / offered,
        "looked_at": len(places),
        "looked_at_shards": min(len(index["shards"]), shards or len(index["shards"])),
        "broken": dict(tally.reasons),
        "broken_share": tally.bad_share,
        **seen.summary(),
        **({"contact_sheet": str(sheet)} if sheet is not None and gallery.save(sheet) else {}),
    }


def _places(shards: Sequence[dict[str, Any]], most: int | None) -> list[int]:
    """The examples of at most so many shards."""
    counts = [shard["examples"] for shard in shards]
    firsts = [0, *itertools.accumulate(counts)]
    used = _spread(len(counts), most or len(counts))
    return [place for shard in used for place in range(firsts[shard], firsts[shard + 1])]


def _spread(count: int, most: int) -> list[int]:
    used = min(count, most)
    return [place * count // used for place in range(used)]


class _Seen:
    """Adds up what sound examples have."""

    def __init__(self) -> None:
        self._sides: list[tuple[int, int]] = []
        self._bytes: list[int] = []
        self._lengths: list[int] = []
        self._captions: list[int] = []
        self._languages: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._looks: Counter[bytes] = Counter()

    def add(self, example: Raw) -> None:
        self._keys[example.key] += 1
        self._captions.append(len(example.captions))
        for caption in example.captions:
            self._lengths.append(len(caption))
            self._languages[languages.guess(str(caption))] += 1
        if example.image is not None:
            self._sides.append(image_data.check_image(example.image, example.origin))
            self._bytes.append(len(example.image))
            self._looks[hashlib.sha256(example.image).digest()] += 1

    def summary(self) -> dict[str, Any]:
        total = max(1, self._languages.total())
        return {
            "width": _percentiles([width for width, _ in self._sides]),
            "height": _percentiles([height for _, height in self._sides]),
            "image_bytes": _percentiles(self._bytes),
            "captions_per_example": _percentiles(self._captions),
            "caption_characters": _percentiles(self._lengths),
            "languages": {
                name: round(count / total, 4) for name, count in self._languages.most_common()
            },
            "repeated_keys": sum(count - 1 for count in self._keys.values()),
            "repeated_images": sum(count - 1 for count in self._looks.values()),
        }


def _percentiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}


class _Gallery:
    """Pictures with their captions, of those that can be shown."""

    def __init__(self) -> None:
        self._cells: list[np.ndarray] = []
        self._labels: list[str] = []

    def add(self, raw: Raw | Broken) -> None:
        if isinstance(raw, Broken) or raw.image is None:
            return
        try:
            self._cells.append(image_data.decode_image(raw.image, raw.origin, least=192))
        except image_data.ImageError:
            return
        self._labels.append(str(raw.captions[0]) if raw.captions else "")

    def save(self, path: Path) -> bool:
        """Writes the sheet; False if there are none."""
        if self._cells:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet = figures.contact_sheet(self._cells, self._labels, columns=8, cell=160)
            figures.save_png(path, sheet)
        return bool(self._cells)


def describe(found: dict[str, Any]) -> str:
    """The findings for people."""
    lines = [
        f"{found['data']}  (from {found['source']})",
        f"  examples    {found['examples']:,}: {found['images']:,} with an image, "
        f"{found['text_only']:,} text alone",
        f"  stored in   {found['shards']:,} shards, {found['bytes'] / 1e6:,.1f} MB",
        f"  left out    {found['rejected_share']:.2%} when it was prepared"
        f"{_reasons(found['rejected'])}",
        f"of {found['looked_at']:,} looked at{_shares(found)}",
        f"  broken      {found['broken_share']:.2%}{_reasons(found['broken'])}",
    ]
    for name, what in (
        ("width", "pixels"),
        ("height", "pixels"),
        ("image_bytes", "bytes"),
        ("captions_per_example", "captions"),
        ("caption_characters", "characters"),
    ):
        if found[name]:
            low, five, half, most, top = (f"{value:,.0f}" for value in found[name].values())
            shown = f"{low} .. {top}, half {half}, most {five} to {most}"
            lines.append(f"  {name.replace('_', ' '):20}  {shown} {what}")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found["languages"].items())
    lines.append(f"  languages   {shares or 'none'}")
    lines.append(f"  repeated    {found['repeated_keys']} keys, {found['repeated_images']} images")
    if "contact_sheet" in found:
        lines.append(f"  pictures    {found['contact_sheet']}")
    return "\n".join(lines)


def _shares(found: dict[str, Any]) -> str:
    if found["looked_at_shards"] == found["shards"]:
        return ""
    return f", in {found['looked_at_shards']:,} of {found['shards']:,} shards"


def _reasons(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    return ": " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
