"""Small image-text shards in every form the sources read."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from lavit_jax.data.sources import Broken, Options, Raw, open_source


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


def everything(spec: str | Path, options: Options | None = None) -> list[Raw | Broken]:
    """What all parts of a source give."""
    source = open_source(str(spec), options)
    return [item for part in source.parts() for item in source.read(part)]


def parquet(path: Path, rows: int, **columns: list) -> Path:
    """A file with the columns of img2dataset."""
    table = {
        "key": keys(rows),
        "jpg": [jpeg(n) for n in range(rows)],
        "caption": [caption(n) for n in range(rows)],
        "status": ["success"] * rows,
        **columns,
    }
    pq.write_table(pa.table(table), path, row_group_size=4)
    return path


def json_folder(folder: Path, rows: Iterable[object]) -> Path:
    """JSON lines beside three images."""
    folder.mkdir(exist_ok=True)
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "metadata.jsonl"


def image_folder(folder: Path, rows: int, size: int) -> Path:
    """JSON lines that name one large image after the other."""
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(jpeg(n).ljust(size, b"\0"))
    lines = [json.dumps({"image": f"{n % 3}.jpg", "caption": f"c{n}"}) for n in range(rows)]
    (folder / "x.jsonl").write_text("\n".join(lines))
    return folder / "x.jsonl"


def zipped(folder: Path, count: int, name: str = "x.tar.gz") -> Path:
    """A compressed tar."""
    data = write_tar(folder / "x.tar", [m for n in range(count) for m in pair(n)]).read_bytes()
    (folder / "x.tar").unlink()
    (folder / name).write_bytes(gzip.compress(data, mtime=0))
    return folder / name


def tf_examples(folder: Path, rows: Iterable[dict[str, list]]) -> Path:
    """Records as TFDS writes them."""
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(exist_ok=True)
    path = folder / "coco-train.array_record-00000-of-00001.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for row in rows:
        example = tf_example_pb2.Example()
        for name, values in row.items():
            kind = "int64_list" if isinstance(values[0], int) else "bytes_list"
            getattr(example.features.feature[name], kind).value.extend(values)
        writer.write(example.SerializeToString())
    writer.close()
    return path


def lost(found: Iterable[Raw | Broken]) -> int:
    """Examples that are counted as broken."""
    return sum(item.count for item in found if isinstance(item, Broken))


def whole(found: Iterable[Raw | Broken]) -> int:
    """Examples that are there."""
    return sum(isinstance(item, Raw) for item in found)
