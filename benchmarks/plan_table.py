"""The plans that `plan_all.sh` left in a folder, as the page docs/plans.md.

python benchmarks/plan_table.py workdir/plans >docs/plans.md
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

INTRODUCTION = """\
# Plans

What `lavit plan --quick` says of every preset of the large configs; `benchmarks/plan_all.sh` writes
this page. [TPU pods](pods.md) explains the columns. Nothing of this has run on a TPU.
"""
NAMES = ("unified", "tokenizer", "pixels", "pixels-sdxl", "generation")
COLUMNS = (
    "plan", "chips", "mesh", "rows/chip", "remat", "peak HBM", "flops/chip", "HBM traffic", "sent",
    "step", "by", "useful", "MFU bound", "whole run",
)  # fmt: skip
LEAST = 1e6  # bytes: collectives that send less a step on every preset share a line

Entry = dict[str, Any]
Array = tuple[str, str]  # collective, dtype and shape


def main(folder: str) -> None:
    found = {
        path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))
    }
    print(INTRODUCTION)
    _table(COLUMNS, (_line(stem, each) for stem in _order(found) for each in found[stem]))
    _parts(Path(folder))
    _scaling(found)
    _search(found)
    print("\n## Collectives\n")
    print(
        "Of every preset, by array (axes of one left out): what each chip sends a step by the "
        "usual ring, how often, and over how many chips. Arrays that send less than "
        f"{LEAST / 1e6:.0f} MB on all presets share the last line. Arrays in bfloat16 with the "
        "shape of a parameter are "
        "parameters that are gathered, those in float32 gradients that are summed. What is left in "
        "stage two: ids of the batch (s32), and embedded words, each chip having looked up its "
        "part of all words' widths (all-to-all), and pieces of parameters that the compiler pads "
        "to whole blocks (collective-permute); in generation, whose chips share heads and MLP, "
        "what they sum behind both. On two slices the compiler packs small arrays into one, whose "
        "size differs with the number of layers: it is counted for all layers, which is too often."
    )
    sections: dict[str, dict[str, Entry]] = {}
    for stem in _order(found):
        name = _config(stem)
        for entry in found[stem]:
            sections.setdefault(_named(name, entry), {})[stem.removeprefix(f"{name}-")] = entry
    for title, presets in sections.items():
        _collectives(title, presets)


def _order(found: dict[str, Any]) -> list[str]:
    """Of presets, config by config."""
    stems = [stem for stem in found if not stem.startswith(("scaling", "search"))]
    return sorted(stems, key=lambda stem: NAMES.index(_config(stem)))


def _config(stem: str) -> str:
    """What a preset is one of: the longest of `NAMES` that it begins with."""
    return max((name for name in NAMES if stem.startswith(f"{name}-")), key=len)


def _table(columns: tuple[str, ...], lines: Any) -> None:
    print(f"| {' | '.join(columns)} |")
    print("|" + " --- |" * len(columns))
    for cells in lines:
        print(f"| {' | '.join(map(str, cells))} |")


def _line(stem: str, entry: Entry) -> tuple[Any, ...]:
    mesh = ", ".join(f"{axis} {size}" for axis, size in entry["mesh"].items() if size > 1)
    settings, sent = entry["settings"], entry["sent_within_slices"]
    between = entry["sent_between_slices"]
    return (
        _named(stem, entry),
        entry["chips"],
        mesh,
        f"{settings['rows_per_chip']:g}",
        settings.get("remat", ""),
        _memory(entry),
        f"{(entry['flops'] + entry['kernel_flops']) / 1e12:.1f}e12",
        f"{entry['bytes'] / 1e9:.0f} GB",
        f"{sent / 1e9:.1f} GB" + (f" + {between / 1e9:.1f} GB between slices" if between else ""),
        f"{entry['seconds']:.3f} s",
        entry["seconds_by"],
        f"{entry['useful_share']:.1%}" if entry["tokens_per_second"] else "",
        f"{entry['mfu']:.1%}",
        f"{entry['run_hours']:,.1f} h, {entry['chip_hours']:,.0f} chip-hours"
        if entry["steps"]
        else "",
    )


def _named(stem: str, entry: Entry) -> str:
    return stem if stem.startswith(("unified", "pixels")) else f"{stem}: {entry['name']}"


def _memory(entry: Entry) -> str:
    peak, has = entry["peak_bytes"], entry["hbm_bytes"]
    return f"{peak / 2**30:.2f} of {has / 2**30:.1f} GiB ({peak / has:.0%})"


def _parts(folder: Path) -> None:
    """What `plan_parts.py` printed."""
    files = sorted(folder.glob("parts-*.txt"))
    if not files:
        return
    told = [dict(line.split(": ", 1) for line in _lines(file)) for file in files]
    names = list(dict.fromkeys(name for each in told for name in each))
    print("\n## The step of stage two and its parts\n\nFlops of each chip, parts planned alone.\n")
    rows = (
        (file.stem.removeprefix("parts-"), *map(each.get, names)) for file, each in zip(files, told)
    )
    _table(("topology", *names), rows)


def _lines(file: Path) -> list[str]:
    return [part for line in file.read_text().splitlines() for part in line.split("; ")]


def _scaling(found: dict[str, list[Entry]]) -> None:
    stems = [stem for stem in found if stem.startswith(("scaling-", "unified-v5p-128"))]
    plans = sorted(
        (found[stem][0] for stem in stems if found[stem][0]["slices"] == 1),
        key=lambda entry: entry["chips"],
    )
    if len(plans) < 2:
        return
    least = plans[0]["seconds"]
    print("\n## Weak scaling\n\nStage two on v5p, 4 rows of 2,048 tokens a chip.\n")
    _table(
        ("chips", "mesh", "peak HBM", "sent by a chip", "step", "beside the first"),
        (
            (
                f"{entry['chips']:,}",
                ", ".join(f"{axis} {size}" for axis, size in entry["mesh"].items() if size > 1),
                _memory(entry),
                f"{entry['sent_within_slices'] / 1e9:.1f} GB",
                f"{entry['seconds']:.3f} s",
                f"{entry['seconds'] / least:.3f}",
            )
            for entry in plans
        ),
    )


def _search(found: dict[str, list[Entry]]) -> None:
    """The best of what `--search` tried."""
    for stem, entries in found.items():
        if stem.startswith("search-"):
            where = stem.removeprefix("search-")
            print(f"\n## Search\n\nStage two on {where}: what `--search` ranks first.\n")
            _table(
                ("mesh", "rows/chip", "remat", "peak HBM", "step", "MFU bound"),
                (tuple(_line(stem, each)[at] for at in (2, 3, 4, 5, 9, 12)) for each in entries),
            )


def _collectives(title: str, presets: dict[str, Entry]) -> None:
    """One table: a line for each array, a column for each preset."""
    listed: collections.defaultdict[Array, dict[str, list[Entry]]]
    listed = collections.defaultdict(lambda: {preset: [] for preset in presets})
    for preset, entry in presets.items():
        for each in entry["collectives"]:
            kind = each["kind"] + (" between slices" if each["between_slices"] else "")
            listed[kind, each["array"]][preset].append(each)
    most = {
        array: max(sum(each["sent"] for each in found) for found in columns.values())
        for array, columns in listed.items()
    }
    order = sorted(listed, key=lambda array: -most[array])
    large = [array for array in order if most[array] >= LEAST]
    print(f"\n### {title}\n")
    lines = [(*array, *map(_cell, listed[array].values())) for array in large]
    small = order[len(large) :]
    if small:
        rest = (_rest([each for array in small for each in listed[array][p]]) for p in presets)
        lines.append(("smaller ones", "", *rest))
    _table(("collective", "array", *presets), lines)


def _cell(found: list[Entry]) -> str:
    return "; ".join(
        f"{each['sent'] / 1e9:.3f} GB, {each['count']:g} x over {each['group']}" for each in found
    )


def _rest(found: list[Entry]) -> str:
    if not found:
        return ""
    total, largest = sum(each["sent"] for each in found), max(found, key=lambda e: e["size"])
    return f"{total / 1e6:.1f} MB, {len(found)} arrays, the largest {largest['array']}"


if __name__ == "__main__":
    main(sys.argv[1])
