"""The plans that `plan_all.sh` left in a folder, as Markdown tables."""

import json
import sys
from pathlib import Path

COLUMNS = (
    "plan",
    "chips",
    "mesh",
    "rows/chip",
    "remat",
    "peak HBM",
    "flops",
    "bytes",
    "step",
    "by",
    "useful",
    "MFU bound",
)


def main(folder: str) -> None:
    plans = [
        (path.stem, entry)
        for path in sorted(Path(folder).glob("*.json"))
        for entry in json.loads(path.read_text())
    ]
    print(f"| {' | '.join(COLUMNS)} |")
    print("|" + "---|" * len(COLUMNS))
    for stem, entry in plans:
        print(_line(stem, entry))
    for stem, entry in plans:
        print(f"\n{stem}: {entry['name']}\n")
        print("| collective | array | chips | times | sent | where |\n|---|---|---|---|---|---|")
        for found in entry["collectives"]:
            if found["sent"] < 1e6:
                continue
            kind = found["kind"] + (" between slices" if found["between_slices"] else "")
            print(
                f"| {kind} | {found['array']} | {found['group']} | {found['count']:g} "
                f"| {found['sent'] / 1e9:.3f} GB | {found['what']} |"
            )


def _line(stem: str, entry: dict) -> str:
    mesh = " ".join(f"{axis} {size}" for axis, size in entry["mesh"].items() if size > 1)
    peak, settings = entry["peak_bytes"], entry["settings"]
    cells = (
        f"{stem}: {entry['name']}",
        entry["chips"],
        mesh,
        f"{settings['rows_per_chip']:g}",
        settings.get("remat", ""),
        f"{peak / 2**30:.2f} GiB ({peak / entry['hbm_bytes']:.0%})",
        f"{(entry['flops'] + entry['kernel_flops']) / 1e12:.1f}e12",
        f"{entry['bytes'] / 1e9:.0f}e9",
        f"{entry['seconds']:.3f} s",
        entry["seconds_by"],
        f"{entry['useful_share']:.1%}",
        f"{entry['mfu']:.1%}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main(sys.argv[1])
