"""Small image-text shards in every form the sources read."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A picture of its own for each number."""
    small = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def caption(number: int) -> str:
    return f"picture {number} of a thing"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def pair(number: int, size: tuple[int, int] = (24, 16)) -> list[tuple[str, bytes]]:
    """The members of one example, as img2dataset writes them."""
    key = f"{number:09d}"
    return [
        (f"{key}.jpg", jpeg(number, size)),
        (f"{key}.txt", caption(number).encode()),
        (f"{key}.json", json.dumps({"key": key, "status": "success"}).encode()),
    ]


def tars(folder: Path, shards: int, each: int, size: tuple[int, int] = (24, 16)) -> Path:
    """A folder of webdataset shards."""
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        members = [member for number in numbers for member in pair(number, size)]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def keys(count: int) -> list[str]:
    """The keys of the first examples of `tars`."""
    return [f"{number:09d}" for number in range(count)]
