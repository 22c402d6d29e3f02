"""Peak memory of `lavit convert`, both ways, on a synthetic language model and conditioner.

    python benchmarks/convert_memory.py [--gb 2] [--shards 4] [--layout safetensors|torch] [DIR]

Each is of --gb; the conditioner, which is published as one file, is in one. The bar is the largest
file + 2 GB; exits with 1 where it is missed. Peak memory is what the kernel
counts for the whole process, mapped pages of the source included; the peak of what is really
allocated is told beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lavit_jax.convert import forms, names, write
from lavit_jax.convert.read import Info
from lavit_jax.models.config import LlamaConfig, MergerConfig

GB = 1e9
ALLOWED = 2 * GB  # beside the largest shard
CODES, TEXT = 16384, 32000
WIDTH, HIDDEN = 2048, 5504
VISION = 1408


class Peak(NamedTuple):
    """Bytes: as the kernel counts them, and without mapped files."""

    resident: int
    allocated: int
    seconds: float


def sizes(gigabytes: float) -> LlamaConfig:
    """A Llama of about that many bytes in float32."""
    heads = WIDTH // 128
    layer = 4 * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN)
    outer = 4 * 2 * WIDTH * (TEXT + 2 + CODES)
    depth = max(1, round((gigabytes * GB - outer) / layer))
    return LlamaConfig(WIDTH, depth, heads, heads, HIDDEN, TEXT, CODES)


def merger_sizes(gigabytes: float) -> MergerConfig:
    """A conditioner's merger of about that many bytes in float32."""
    one = MergerConfig(width=VISION, depth=1, heads=VISION // 88, attention="published")
    block = 4 * (8 * VISION**2 + 2 * VISION * one.hidden)
    return dataclasses.replace(one, depth=max(1, round(gigabytes * GB / block)))


def write_conditioner(folder: Path, table: forms.Table, layout: str) -> int:
    """Writes random weights as one file beside the language model's; returns its bytes."""
    rng = np.random.default_rng(1)
    places = forms.places(table)
    infos = {n: Info(p.entry.form.published, "float32", Path()) for n, p in places.items()}
    suffix = "safetensors" if layout == "safetensors" else "bin"
    save = write.write_safetensors if layout == "safetensors" else write.write_torch
    path = folder / f"visual_weight.{suffix}"
    save(path, infos, lambda n: rng.standard_normal(infos[n].shape, np.float32))
    return path.stat().st_size


def write_checkpoint(folder: Path, c: LlamaConfig, shards: int, layout: str) -> int:
    """Writes random weights shard by shard; returns the bytes of the largest."""
    places = forms.places(names.llama(c))
    shapes = {name: place.entry.form.published for name, place in places.items()}
    suffix = "safetensors" if layout == "safetensors" else "bin"
    stem = "model" if layout == "safetensors" else "pytorch_model"
    save = write.write_safetensors if layout == "safetensors" else write.write_torch
    total, rng = sum(4 * int(np.prod(s)) for s in shapes.values()), np.random.default_rng(0)
    where: dict[str, str] = {}
    filled = 0
    for name, shape in shapes.items():
        shard = min(shards - 1, filled * shards // total)
        where[name] = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{suffix}"
        filled += 4 * int(np.prod(shape))
    folder.mkdir(parents=True)
    for file in sorted(set(where.values())):
        infos = {n: Info(shapes[n], "float32", Path()) for n, f in where.items() if f == file}
        save(folder / file, infos, lambda n: rng.standard_normal(shapes[n], np.float32))
    index = json.dumps({"weight_map": where})
    (folder / f"{stem}.{suffix}.index.json").write_text(index)
    settings = {
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "rms_norm_eps": c.norm_eps,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return max((folder / file).stat().st_size for file in set(where.values()))


def measure(*argv: str) -> Peak:
    """Runs `lavit` in a process of its own."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "lavit_jax", *argv], stdout=sys.stderr)
    allocated, ended = 0, 0
    while not ended:
        allocated = max(allocated, _allocated(process.pid))
        time.sleep(0.05)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if status:
        raise SystemExit(f"lavit {' '.join(argv)}: exit status {os.waitstatus_to_exitcode(status)}")
    return Peak(1024 * usage.ru_maxrss, allocated, time.monotonic() - start)


def _allocated(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return 1024 * int(fields.get("RssAnon", "0 kB").split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, help="for the files (default: /tmp)")
    parser.add_argument("--gb", type=float, default=2)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--layout", choices=("safetensors", "torch"), default="safetensors")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    work = Path(tempfile.mkdtemp(prefix="convert_memory_", dir=args.directory))
    try:
        c = sizes(args.gb)
        folder = work / "src" / "language_model"
        largest = write_checkpoint(folder, c, args.shards, args.layout)
        table = names.conditioner(merger_sizes(args.gb), c.width)
        largest = max(largest, write_conditioner(folder, table, args.layout))
        src, ours, back = (str(work / name) for name in ("src", "ours", "back"))
        runs = {
            "convert": ("convert", src, ours, "--codes", str(CODES)),
            "convert --reverse": ("convert", ours, back, "--reverse"),
        }
        missed = False
        print(
            f"twice {args.gb:g} GB, {args.layout}, {args.shards} shards and one file, "
            f"of up to {largest / GB:.2f} GB"
        )
        for what, argv in runs.items():
            peak = measure(*argv)
            missed |= peak.resident > largest + ALLOWED
            print(
                f"{what}: peak {peak.resident / GB:.2f} GB (bar {(largest + ALLOWED) / GB:.2f}), "
                f"allocated {peak.allocated / GB:.2f} GB, {peak.seconds:.0f} s"
            )
        return int(missed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
