"""Compares Apache Beam's direct runner with `lavit data prepare`'s own: every kind of source, each
way that the direct runner works, killed and taken up again. All has to be the same to the byte.

    pip install 'lavit_jax[beam,parquet]'
    python benchmarks/beam_equal.py --kills 10
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import kill_prepare
import numpy as np
from PIL import Image

COUNT = 200
MODES = ("in_memory", "multi_threading", "multi_processing")


def _jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def _sources(folder: Path) -> dict[str, Path]:
    """A source of each kind, in several shards where a kind has them."""
    import pyarrow
    import pyarrow.parquet

    pictures = [(_jpeg(number), f"picture {number}") for number in range(COUNT)]
    for name in ("tar.gz", "parquet", "json_lines", "text"):
        (folder / name).mkdir(parents=True)
    for shard in range(4):
        numbers = range(shard * COUNT // 4, (shard + 1) * COUNT // 4)
        with tarfile.open(folder / "tar.gz" / f"{shard}.tar.gz", "w:gz") as tar:
            for number in numbers:
                picture, caption = pictures[number]
                for extension, data in (("jpg", picture), ("txt", caption.encode())):
                    header = tarfile.TarInfo(f"{number:06d}.{extension}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
        columns = {
            "jpg": [pictures[n][0] for n in numbers],
            "caption": [pictures[n][1] for n in numbers],
        }
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(
            table, folder / "parquet" / f"{shard}.parquet", row_group_size=20
        )
    rows = []
    for number, (picture, caption) in enumerate(pictures):
        (folder / "json_lines" / f"{number}.jpg").write_bytes(picture)
        rows.append(json.dumps({"image": f"{number}.jpg", "caption": caption}))
    (folder / "json_lines" / "all.jsonl").write_text("\n".join(rows))
    for shard in range(4):
        text = "\n\n".join(f"document {n} of {shard}" for n in range(COUNT))
        (folder / "text" / f"{shard}.txt").write_text(text)
    return {path.name: path for path in sorted(folder.iterdir())}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    found: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sources = _sources(folder / "src")
        plain = {}
        for name, source in sources.items():
            subprocess.run(kill_prepare.command(source, folder / name, 1), check=True)
            plain[name] = _content(folder / name)
        # What is prepared is a source, too.
        sources["array_record"] = folder / "parquet"
        again = folder / "again"
        subprocess.run(kill_prepare.command(sources["array_record"], again, 1), check=True)
        plain["array_record"] = _content(again)

        def beam(name: str, target: Path, mode: str) -> list[str]:
            options = (f"--direct_running_mode={mode}", "--direct_num_workers=2")
            extra = ["--runner", "direct", *(f"--beam={option}" for option in options)]
            return [*kill_prepare.command(sources[name], target, 1), *extra]

        for mode in MODES:
            for name in sources:
                target = folder / f"{name}-{mode}"
                subprocess.run(beam(name, target, mode), check=True)
                found[f"{name}, {mode}"] = _content(target) == plain[name]
        chance, kills, number = random.Random(0), 0, 0
        while kills < args.kills:
            number += 1
            target = folder / f"killed-{number}"
            program = beam("tar.gz", target, MODES[number % len(MODES)])
            while kill_prepare.killed(program, target, chance.uniform(0, 0.3)):
                kills += 1
            subprocess.run(program, check=True)
            found[f"{kills} kills"] = _content(target) == plain["tar.gz"]
    print(json.dumps({"same_to_the_byte": found}, indent=1))
    return int(not all(found.values()))


if __name__ == "__main__":
    sys.exit(main())
