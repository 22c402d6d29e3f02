"""Mutated shards, images and captions through the loader: nothing may crash, hang or get by.

    python benchmarks/fuzz_loader.py --count 10000

Every input is a sound file of some kind with a few random edits. It is read as a source, every
example is checked, decoded, resized, stored and read back, as training would. An input is survived
if all that comes out is examples that can be used and faults that are counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavit_jax.data import images, languages, record
from lavit_jax.data.check import checked
from lavit_jax.data.sources import Broken, Options, Raw, open_source
from lavit_jax.errors import UserError

SECONDS = 20  # of processor time that an input may take
WAIT = 600  # seconds by the clock
MEMORY = 4 << 30  # bytes, of a process
CHUNK = 250  # inputs of a process
SIDE = 32  # of the resized image
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "DDS")
PIECES = (b"", b"\0", b"\xff", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"IEND", b"\xff\xd9")
PIECES += (b"99999999999999", b"\xff" * 8, b"../../", b"ustar\x0000", b"PAR1", b'{"a":' * 40)


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
      kind: what is done, see `mutate`.
      place: where, as a share of the length.
      length: of how many bytes.
      piece: bytes that are put in.
    """

    kind: str
    place: float
    length: int
    piece: bytes


KINDS = ("flip", "cut", "insert", "overwrite", "repeat", "truncate", "zero")


def mutate(data: bytes, edits: Sequence[Edit]) -> bytes:
    """The bytes with all edits applied in turn."""
    for edit in edits:
        at = int(edit.place * len(data))
        end = at + edit.length
        data = {
            "flip": lambda d, a, e, p: d[:a] + bytes(b ^ 0xFF for b in d[a:e]) + d[e:],
            "cut": lambda d, a, e, p: d[:a] + d[e:],
            "insert": lambda d, a, e, p: d[:a] + p + d[a:],
            "overwrite": lambda d, a, e, p: d[:a] + p + d[a + len(p) :],
            "repeat": lambda d, a, e, p: d[:e] + d[a:e] + d[e:],
            "truncate": lambda d, a, e, p: d[:a],
            "zero": lambda d, a, e, p: d[:a] + bytes(len(d[a:e])) + d[e:],
        }[edit.kind](data, at, end, edit.piece)
    return data


def random_edits(rng: random.Random) -> list[Edit]:
    return [
        Edit(
            rng.choice(KINDS),
            # Headers decide most: half of all edits are among the first bytes.
            rng.random() ** (4 if rng.random() < 0.5 else 1),
            int(2 ** rng.uniform(0, 10)),
            rng.choice(PIECES) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 64)),
        )
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8)))
    ]


def picture(format_name: str, number: int = 0) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(buffer, format_name)
    return buffer.getvalue()


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def _tar_base() -> bytes:
    pairs = [
        [(f"{n}.jpg", picture("JPEG", n)), (f"{n}.txt", f"thing {n}".encode())] for n in range(4)
    ]
    return tar([member for pair in pairs for member in pair])


def _parquet_base() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {
        "key": [str(n) for n in range(6)],
        "jpg": [picture("JPEG", n) for n in range(6)],
        "caption": [f"thing {n}" for n in range(6)],
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer, row_group_size=3)
    return buffer.getvalue()


def _array_record_base() -> bytes:
    from array_record.python.array_record_module import ArrayRecordWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for n in range(6):
            writer.write(record.encode(Raw(str(n), "", picture("JPEG", n), (f"thing {n}",))))
        writer.close()
        return path.read_bytes()


def _json_base() -> bytes:
    rows: list[dict[str, Any]] = [{"text": f"a text of number {n}", "id": n} for n in range(6)]
    rows += [{"image": "0.jpg", "captions": ["a", "b"]}, {"image": "1.jpg", "caption": "é 猫"}]
    return "\n".join(json.dumps(row) for row in rows).encode()


def bases() -> dict[str, bytes]:
    """A sound file of every kind, by the name it gets."""
    found = {
        "x.tar": _tar_base(),
        "x.parquet": _parquet_base(),
        "x.array_record": _array_record_base(),
        "x.jsonl": _json_base(),
        "x.txt": "one\ntwo\n\nthrée 猫\n\nfour\n".encode(),
        "caption": "a caption of a thing, é 猫".encode(),
        "record": record.encode(Raw("k", "", picture("PNG"), ("a thing",), ("q",), ("a",))),
    }
    return found | {f"image.{name.lower()}": picture(name) for name in FORMATS}


def _file(name: str, data: bytes) -> tuple[str, bytes]:
    """The shard that a mutated file is in, where it is no shard itself."""
    if name.startswith("image."):
        return "x.tar", tar([("k.jpg", data), ("k.txt", b"a thing")])
    if name == "caption":
        return "x.tar", tar([("k.jpg", picture("JPEG")), ("k.txt", data)])
    return name, data


def load(name: str, data: bytes, folder: Path) -> Counter[str]:
    """Reads a file as training would; counts what came of it.

    Raises:
      anything: which is what this is to find.
    """
    found: Counter[str] = Counter()
    if name == "record":
        try:
            items: list[Raw | Broken] = [record.decode(data, "x")]
        except ValueError as error:
            items = [Broken("corrupt record", "x", str(error))]
        return _use(items, found)
    name, data = _file(name, data)
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(picture("JPEG", number))
    (folder / name).write_bytes(data)
    try:
        source = open_source(str(folder / name), Options())
        for part in source.parts():
            _use(source.read(part), found)
    except UserError as error:  # a whole file without captions, said in one line
        if "\n" in str(error):
            raise AssertionError(str(error)) from error
        found["refused"] += 1
    return found


def _use(items: Any, found: Counter[str]) -> Counter[str]:
    for raw in items:
        for item in checked(raw):
            if isinstance(item, Broken):
                found[item.reason] += 1
                json.dumps(dataclasses.asdict(item)).encode()
                continue
            if item.image is not None:
                try:
                    decoded = images.decode_image(item.image, item.origin, least=SIDE)
                except images.ImageError as error:
                    found[f"late: {error.reason}"] += 1
                    continue
                assert images.resize(decoded, SIDE).shape == (SIDE, SIDE, 3)
            languages.guess(str(item.captions[0]))
            stored = record.decode(record.encode(item), item.origin)
            assert stored == item, "what is stored is not what is read"
            found["good"] += 1
    return found


def _case(number: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    rng = random.Random(number)
    name = sorted(files)[number % len(files)]
    return name, mutate(files[name], random_edits(rng))


def _chunk(numbers: range, results: Any) -> None:
    """Runs inputs in a process of their own, so that one that dies is found."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    files = bases()

    def hang(*unused: object) -> None:
        raise TimeoutError(f"over {SECONDS} s of work, or {WAIT} s of waiting")

    signal.signal(signal.SIGALRM, hang)
    signal.signal(signal.SIGPROF, hang)
    for number in numbers:
        name, data = _case(number, files)
        begun = time.process_time()
        signal.alarm(WAIT)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with tempfile.TemporaryDirectory() as folder:
                found, fault = load(name, data, Path(folder)), ""
        except BaseException as error:
            found, fault = Counter(), f"{type(error).__name__}: {error}"
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        results.put((number, name, dict(found), fault, time.process_time() - begun))


def run(first: int, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs inputs; returns how many were survived, what came of them, and every failure."""
    context = multiprocessing.get_context("spawn")
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    survived, slowest = 0, 0.0
    for start in range(first, first + count, CHUNK):
        numbers = range(start, min(start + CHUNK, first + count))
        left = numbers
        while left:
            results = context.SimpleQueue()
            process = context.Process(target=_chunk, args=(left, results))
            process.start()
            last = left.start - 1
            while process.is_alive() or not results.empty():
                if results.empty():
                    time.sleep(0.01)
                    continue
                last, name, found, fault, seconds = results.get()
                slowest = max(slowest, seconds)
                outcomes.update(found)
                survived += not fault
                if fault:
                    failures.append(f"{last} {name}: {fault}")
            process.join()
            left = range(last + 1, left.stop)
            if left:
                failures.append(f"{left.start}: the process died ({process.exitcode})")
                left = range(left.start + 1, left.stop)
        say(f"{numbers.stop - first} of {count}: {survived} survived")
    return {
        "inputs": count,
        "survived": survived,
        "slowest_seconds": round(slowest, 2),
        "outcomes": dict(outcomes.most_common()),
        "failures": failures,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    args = parser.parse_args()
    found = run(args.first, args.count, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(found, indent=1))
    return int(found["survived"] != found["inputs"])


if __name__ == "__main__":
    sys.exit(main())
