import contextlib
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from lavit_jax.data.sources import (
    Broken,
    Options,
    Part,
    Raw,
    files,
    json_lines,
    open_source,
    plain_text,
)
from lavit_jax.data.sources.tar import TarSource, read_tar
from lavit_jax.errors import UserError
from shards import caption, jpeg, keys, pair, tars, write_tar


def everything(spec, options=None) -> list[Raw | Broken]:
    source = open_source(str(spec), options)
    return [item for part in source.parts() for item in source.read(part)]


def test_tar_members_of_one_name_are_one_example(tmp_path):
    found = everything(tars(tmp_path, shards=2, each=3))
    assert [raw.key for raw in found] == keys(6)
    assert [raw.image for raw in found] == [jpeg(n) for n in range(6)]
    assert [raw.captions for raw in found] == [(caption(n).encode(),) for n in range(6)]
    assert found[4].origin == f"{tmp_path}/00001.tar:{4:09d}"


def test_ranges_globs_and_files_name_the_same_shards(tmp_path):
    tars(tmp_path, shards=12, each=1)
    whole = everything(tmp_path)
    assert everything(tmp_path / "{00000..00011}.tar") == whole
    assert everything(tmp_path / "*.tar") == whole
    assert everything(tmp_path / "00003.tar") == whole[3:4]


def test_sources_are_read_through_fsspec(tmp_path):
    tars(tmp_path, shards=2, each=2)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/shards/", recursive=True)
    found = everything("memory://bucket/shards")
    assert [raw.key for raw in found] == keys(4)
    assert found[0].origin.startswith("memory://")


def test_tar_members_are_never_written_to_disk(tmp_path, monkeypatch):
    members = [("../../evil.jpg", jpeg(0)), ("../../evil.txt", b"a"), ("/abs.jpg", jpeg(1))]
    path = write_tar(tmp_path / "deep" / "er" / "x.tar", [*members, ("/abs.txt", b"b")])
    with tarfile.open(path, "a") as tar:
        for name, kind in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        device = tarfile.TarInfo("null.jpg")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    before = sorted(tmp_path.rglob("*"))
    assert [raw.key for raw in everything(path)] == ["../../evil", "/abs"]
    assert sorted(tmp_path.rglob("*")) == before


def test_reading_goes_on_after_a_damaged_tar_header(tmp_path):
    data = bytearray(
        write_tar(tmp_path / "x.tar", [m for n in range(5) for m in pair(n)]).read_bytes()
    )
    place = data.index(b"000000002.jpg")
    data[place : place + 300] = b"\xff" * 300
    found = list(read_tar(io.BytesIO(data), "x.tar"))
    whole = [item.key for item in found if isinstance(item, Raw)]
    assert whole == [f"{n:09d}" for n in (0, 1, 3, 4)]
    reasons = [item.reason for item in found if isinstance(item, Broken)]
    assert reasons == ["corrupt shard", "no image"]


def test_a_truncated_tar_gives_what_is_whole_and_says_so(tmp_path):
    data = write_tar(tmp_path / "x.tar", [m for n in range(5) for m in pair(n)]).read_bytes()
    found = list(read_tar(io.BytesIO(data[: data.index(b"000000003.jpg") + 700]), "x.tar"))
    assert [item.key for item in found if isinstance(item, Raw)] == keys(3)
    assert [item.reason for item in found if isinstance(item, Broken)] == ["corrupt shard"]


@pytest.mark.parametrize("content", [b"", b"no tar", b"\0" * 10240, os.urandom(5000)])
def test_what_is_no_tar_gives_nothing(content):
    assert not [raw for raw in read_tar(io.BytesIO(content), "x") if isinstance(raw, Raw)]


def test_a_tar_that_claims_a_huge_sparse_member_is_not_believed(tmp_path):
    path = write_tar(tmp_path / "x.tar", pair(0))
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        header = tarfile.TarInfo("sparse.jpg")
        header.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(1 << 50),
            "GNU.sparse.realsize": str(1 << 50),
        }
        tar.addfile(header)
    assert [raw.key for raw in everything(path) if isinstance(raw, Raw)] == keys(1)


def parquet(path, rows: int, **columns):
    table = {
        "key": keys(rows),
        "jpg": [jpeg(n) for n in range(rows)],
        "caption": [caption(n) for n in range(rows)],
        "status": ["success"] * rows,
        **columns,
    }
    pq.write_table(pa.table(table), path, row_group_size=4)
    return path


def test_parquet_of_img2dataset(tmp_path):
    path = parquet(tmp_path / "00000.parquet", 10)
    assert [(p.start, p.stop) for p in open_source(str(path)).parts()] == [(0, 1), (1, 2), (2, 3)]
    found = everything(tmp_path)
    assert [raw.key for raw in found] == keys(10)
    assert [raw.captions for raw in found] == [(caption(n).encode(),) for n in range(10)]
    assert found[9].image == jpeg(9)


def test_parquet_of_hugging_face(tmp_path):
    images = [{"bytes": jpeg(n), "path": None} for n in range(3)]
    pq.write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), tmp_path / "x.parquet")
    found = everything(tmp_path / "x.parquet")
    assert [(raw.image, raw.captions) for raw in found] == [
        (jpeg(n), (text.encode(),)) for n, text in enumerate("abc")
    ]


def test_rows_that_were_not_downloaded_say_so(tmp_path):
    path = parquet(
        tmp_path / "x.parquet", 3, jpg=[jpeg(0), None, None], status=["success", "404", "success"]
    )
    assert [getattr(item, "reason", "good") for item in everything(path)] == [
        "good",
        "not downloaded",
        "no image",
    ]


def test_one_caption_that_is_not_utf8_spoils_no_other(tmp_path):
    broken = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())
    path = parquet(tmp_path / "x.parquet", 3, caption=broken)
    assert [raw.captions for raw in everything(path)] == [(b"a",), (b"\xff\xfe",), (b"c",)]


def test_a_damaged_parquet_file_is_one_broken_shard(tmp_path):
    data = parquet(tmp_path / "x.parquet", 3).read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[:-20])
    (broken,) = everything(tmp_path)
    assert broken.reason == "corrupt shard"


def test_parquet_without_captions_names_its_columns(tmp_path):
    pq.write_table(pa.table({"picture": [b"x"], "title": ["t"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"picture, title.*--caption-field"):
        everything(tmp_path)
    options = Options(image_field="picture", caption_field="title")
    assert everything(tmp_path, options)[0].captions == (b"t",)


def json_folder(folder, rows):
    folder.mkdir(exist_ok=True)
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "metadata.jsonl"


def test_json_lines_beside_an_image_folder(tmp_path):
    rows = [{"file_name": f"{n}.jpg", "captions": [f"c{n}", "d"]} for n in range(3)]
    found = everything(json_folder(tmp_path, rows))
    assert [raw.image for raw in found] == [jpeg(n) for n in range(3)]
    assert found[1].captions == ("c1", "d")


def test_json_lines_never_read_outside_their_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg(7))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    places = ["../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "file:///x", "a/../../b"]
    rows = [{"image": place, "caption": "x"} for place in places]
    found = everything(json_folder(tmp_path / "in", rows))
    assert [item.reason for item in found] == ["no image"] * len(places)


def test_broken_json_lines_are_told_apart(tmp_path):
    rows = ['{"text": "good"}', "{", "[1]", '{"image": 3, "caption": "x"}', "[" * 5000, ""]
    found = everything(json_folder(tmp_path, rows))
    assert [getattr(item, "reason", "good") for item in found] == [
        "good",
        "not JSON",
        "not JSON",
        "no image",
        "not JSON",
    ]


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_every_line_is_in_exactly_one_part(tmp_path, monkeypatch, size):
    monkeypatch.setattr(json_lines, "PART_BYTES", size)
    rows = [json.dumps({"text": "x" * (n * 7 % 40), "id": n}) for n in range(60)]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(rows))
    assert [raw.key for raw in everything(path)] == [str(n) for n in range(60)]


def test_an_endless_line_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE", 64)
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n' + "y" * 1000 + '\n{"text": "b"}\n')
    assert [getattr(item, "reason", "good") for item in everything(path)] == [
        "good",
        "too large",
        "good",
    ]


def image_folder(folder, rows, size):
    """JSON lines that name one large image after the other."""
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(jpeg(n).ljust(size, b"\0"))
    lines = [json.dumps({"image": f"{n % 3}.jpg", "caption": f"c{n}"}) for n in range(rows)]
    (folder / "x.jsonl").write_text("\n".join(lines))
    return folder / "x.jsonl"


def test_json_lines_are_cut_by_the_bytes_of_their_images(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "PART_BYTES", 100_000)
    path = image_folder(tmp_path / "a", 200, size=10_000)
    parts = open_source(str(path)).parts()
    assert len(parts) in range(18, 24)
    assert sum(part.size for part in parts) == pytest.approx(200 * 10_000, rel=0.1)
    assert open_source(str(path)).parts() == parts
    assert [raw.captions[0] for raw in everything(path)] == [f"c{n}" for n in range(200)]
    # Images that are not there take nothing.
    (lines,) = open_source(str(json_folder(tmp_path / "b", [{"image": "no.jpg"}] * 50))).parts()
    assert lines.size == lines.stop


def test_a_plan_is_not_made_of_images_that_a_disk_does_not_give(tmp_path, monkeypatch):
    path = image_folder(tmp_path / "a", 10, size=1000)
    stat = os.stat

    def failing_stat(place, **options):
        if str(place).endswith("1.jpg"):
            raise ERRORS[0]
        return stat(place, **options)

    monkeypatch.setattr(files.os, "stat", failing_stat)
    with pytest.raises(UserError, match=r"cannot read .*/1.jpg: Input/output error"):
        open_source(str(path)).parts()


TEXTS = st.text(st.sampled_from("ab\n \r"), max_size=60) | st.lists(
    st.sampled_from(["a", "bc", "\n", "\n\n", " \n", "x" * 40]), max_size=40
).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 40), st.sampled_from([8, 1000]))
def test_every_document_is_in_exactly_one_part(text, size, longest):
    """The same as of one part, also where lines are too long to be read."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patched,
    ):
        patched.setattr(json_lines, "MAX_LINE", longest)
        path = Path(folder) / "x.txt"
        path.write_bytes(text.encode())
        (whole,) = open_source(str(path)).parts()
        expected = list(open_source(str(path)).read(whole))
        patched.setattr(plain_text, "PART_BYTES", size)
        assert len(open_source(str(path)).parts()) == max(1, -(-len(text) // size))
        assert everything(path) == expected


def test_plain_text_documents_end_at_blank_lines(tmp_path):
    (tmp_path / "x.txt").write_text("one\ntwo\n\n\n  \nthree\n\nfour")
    found = everything(tmp_path)
    assert [raw.captions[0] for raw in found] == [b"one\ntwo", b"three", b"four"]
    assert len({raw.key for raw in found}) == 3


def test_tfds_data_sets_by_package_and_builder(data_dir, records):
    options = Options(split="test_combo", data_dir=str(data_dir))
    source = open_source("lavit_jax.data.twemoji:Twemoji", options)
    found = list(source.read(source.parts()[0]))
    assert len(found) == 300
    record = records["test_combo"][5]
    assert (found[5].key, found[5].answers) == (
        record["key"],
        tuple(answer.encode() for answer in record["answers"]),
    )
    assert found[5].image.startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"no split 'valid': choose --split from .*train"):
        open_source("lavit_jax.data.twemoji:Twemoji", Options("valid", str(data_dir))).parts()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nosuch.package:Builder", "no TFDS builder"),
        ("./nowhere", "no such file or folder"),
        ("gopher://x/y", "gopher"),
        ("no_such_dataset", "no_such_dataset"),
        ("coco_captions", "`pip install tensorflow` to prepare it"),
    ],
)
def test_what_cannot_be_read_is_named(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec).parts()


def test_a_folder_of_nothing_known_says_what_is_known(tmp_path):
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(UserError, match=r"\.tar.*\.parquet.*\.jsonl"):
        open_source(str(tmp_path))


def test_a_changed_file_changes_its_fingerprint(tmp_path):
    tars(tmp_path, shards=1, each=1)
    (before,) = TarSource(str(tmp_path), Options()).parts()
    tars(tmp_path, shards=1, each=2)
    (after,) = TarSource(str(tmp_path), Options()).parts()
    assert before.fingerprint != after.fingerprint
    assert before == Part(before.place, size=before.size, fingerprint=before.fingerprint)


@pytest.mark.subprocess
def test_preparing_needs_neither_jax_nor_tensorflow_datasets():
    program = """
import sys, lavit_jax.data.prepare.run
sys.exit(str([m for m in ("jax", "tensorflow_datasets", "grain") if m in sys.modules] or ""))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""


def zipped(folder, count, name="x.tar.gz"):
    data = write_tar(folder / "x.tar", [m for n in range(count) for m in pair(n)]).read_bytes()
    (folder / "x.tar").unlink()
    (folder / name).write_bytes(gzip.compress(data, mtime=0))
    return folder / name


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz"])
def test_a_zipped_tar_is_read_as_a_tar(tmp_path, name):
    path = zipped(tmp_path, 5, name)
    assert [raw.key for raw in everything(tmp_path)] == keys(5)
    assert everything(path)[4].image == jpeg(4)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.99, 0.9999])
def test_a_truncated_zipped_tar_gives_what_is_whole_and_says_so(tmp_path, share):
    path = zipped(tmp_path, 20)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    found = everything(path)
    whole = [item for item in found if isinstance(item, Raw)]
    assert [raw.key for raw in whole] == keys(len(whole))
    assert [raw.image for raw in whole] == [jpeg(n) for n in range(len(whole))]
    assert len(whole) >= 20 * share - 6  # the last 10 KB may be lost
    assert [item.reason for item in found if isinstance(item, Broken)] == ["corrupt shard"]


@pytest.mark.parametrize("where", [0, 3, 0.1, 0.5, -6])
def test_damage_inside_a_zipped_tar_is_told(tmp_path, where):
    """In its header, in the stream, or in its checksum."""
    path = zipped(tmp_path, 20)
    data = bytearray(path.read_bytes())
    place = int(len(data) * where) if isinstance(where, float) else where
    data[place] ^= 0xFF
    path.write_bytes(data)
    found = everything(path)
    reasons = [item.reason for item in found if isinstance(item, Broken)]
    # A byte of the header that says how it was packed may be anything.
    assert "corrupt shard" in reasons or where == 3
    images = {raw.key: raw.image for raw in found if isinstance(raw, Raw)}
    assert sum(images[f"{n:09d}"] != jpeg(n) for n in range(20) if f"{n:09d}" in images) <= 1


def tf_examples(folder, rows):
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


def test_records_of_tfds_are_read(tmp_path):
    rows = [
        {
            "image": [jpeg(n)],
            "captions/text": [f"a {n}".encode(), f"b {n}".encode()],
            "key": [f"k{n}".encode()],
            "image/id": [n],
        }
        for n in range(5)
    ]
    found = everything(tf_examples(tmp_path, rows))
    assert [(raw.key, raw.image) for raw in found] == [(f"k{n}", jpeg(n)) for n in range(5)]
    assert found[3].captions == (b"a 3", b"b 3")


def test_other_fields_of_tfds_records_are_named(tmp_path):
    rows = [{"picture": [jpeg(0)], "title": [b"t"], "number": [7]}, {"text": [b"alone"]}]
    path = tf_examples(tmp_path, rows)
    named, alone = everything(path, Options(image_field="picture", caption_field="title"))
    assert (named.image, named.captions) == (jpeg(0), (b"t",))
    assert (alone.image, alone.captions) == (None, ())
    assert everything(path)[1].captions == (b"alone",)
    # A field of numbers is no image and no caption.
    (number, _) = everything(path, Options(image_field="number", caption_field="number"))
    assert (getattr(number, "image", None), getattr(number, "captions", ())) == (None, ())


def test_a_corrupt_tfds_record_spoils_no_other(tmp_path):
    path = tf_examples(tmp_path, [{"image": [jpeg(n)], "text": [b"x"]} for n in range(5)])
    data = bytearray(path.read_bytes())
    data[data.index(jpeg(2)[-60:-20])] ^= 0xFF
    path.write_bytes(data)
    reasons = [getattr(item, "reason", "good") for item in everything(path)]
    assert reasons == ["good", "good", "corrupt record", "good", "good"]
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in (b"\x0a\xff\xff", b"", b"\x0a\x00", b"junk"):
        writer.write(record)
    writer.close()
    found = everything(path)
    assert [item.reason for item in found if isinstance(item, Broken)] == ["corrupt record"] * 3
    # An example without any field is one without text: the check of examples says so.
    assert [item.captions for item in found if isinstance(item, Raw)] == [()]


def test_a_truncated_array_record_is_one_broken_shard(tmp_path):
    path = tf_examples(tmp_path, [{"image": [jpeg(n)], "text": [b"x"]} for n in range(5)])
    path.write_bytes(path.read_bytes()[:-100])
    assert [item.reason for item in everything(tmp_path)] == ["corrupt shard"]


def test_array_records_are_read_through_fsspec(tmp_path):
    path = tf_examples(tmp_path, [{"image": [jpeg(n)], "text": [b"x"]} for n in range(3)])
    fsspec.filesystem("memory").put(str(path), "/records/x.array_record")
    assert [raw.image for raw in everything("memory://records")] == [jpeg(n) for n in range(3)]


def test_a_tar_that_breaks_off_within_a_header_says_so(tmp_path):
    data = write_tar(tmp_path / "x.tar", [m for n in range(5) for m in pair(n)]).read_bytes()
    found = list(read_tar(io.BytesIO(data[: data.index(b"000000003.jpg") + 100]), "x.tar"))
    assert [item.key for item in found if isinstance(item, Raw)] == keys(3)
    assert [item.reason for item in found if isinstance(item, Broken)] == ["corrupt shard"]


class Failing(io.BytesIO):
    """A file of which a disk, or a bucket's client, gives the first bytes and then an error."""

    def __init__(self, data, good, error):
        super().__init__(data)
        self._good, self._error = good, error

    def _checked(self, size):
        if self.tell() + (len(self.getvalue()) if size < 0 else size) > self._good:
            raise self._error

    def read(self, size=-1):
        self._checked(size)
        return super().read(size)

    def readline(self, size=-1):
        self._checked(1)
        return super().readline(size)


class ClientError(Exception):
    """As gcsfs's: of no kind but Exception."""


ERRORS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError("Forbidden: no billing account"),
    ClientError("429: slow down\nand more"),
]


@pytest.fixture
def failing(monkeypatch):
    """While inside, files break off with an error."""

    @contextlib.contextmanager
    def fail(share, error, suffix=""):
        def opened(path, mode):
            with open(path, "rb") as file:
                data = file.read()
            good = int(len(data) * share) if str(path).endswith(suffix) else len(data) + 10**6
            return Failing(data, good, error)

        with monkeypatch.context() as patched:
            patched.setattr(files, "open", opened, raising=False)
            yield

    return fail


def small_sources(folder):
    """A shard of each kind that is read through Python."""
    rows = [{"file_name": f"{n}.jpg", "caption": "c"} for n in range(3)]
    (folder / "x.txt").write_text("one\n\ntwo\n\n" * 5)
    return [
        write_tar(folder / "x.tar", [member for n in range(40) for member in pair(n)]),
        zipped(folder / "z", 40),
        parquet(folder / "x.parquet", 40),
        json_folder(folder, rows),
        folder / "x.txt",
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_disk_or_a_bucket_that_fails_is_no_damage(tmp_path, failing, error):
    for path in small_sources(tmp_path):
        plan = open_source(str(path)).parts()
        with failing(0.5, error, path.name), pytest.raises(UserError) as told:
            for part in plan:
                list(open_source(str(path)).read(part))
        words = getattr(error, "strerror", None) or str(error).splitlines()[0]
        assert str(told.value) == f"cannot read {path}: {words}"


def test_a_plan_is_not_made_of_what_a_disk_does_not_give(tmp_path, failing):
    path = parquet(tmp_path / "x.parquet", 40)
    told = "cannot read .*x.parquet: Input/output error"
    with failing(0.0, ERRORS[0]), pytest.raises(UserError, match=told):
        open_source(str(path)).parts()


@pytest.mark.parametrize("kind", range(6))
def test_a_shard_that_vanished_is_no_damage(tmp_path, kind):
    paths = [*small_sources(tmp_path), tf_examples(tmp_path / "a", [{"text": [b"x"]}])]
    source = open_source(str(paths[kind]))
    plan = source.parts()
    paths[kind].unlink()
    with pytest.raises(UserError, match=f"^cannot read {paths[kind]}: No such file or directory$"):
        list(source.read(plan[0]))


def test_an_image_that_a_disk_does_not_give_is_not_a_missing_one(tmp_path, failing):
    places = [
        "0.jpg",
        ".",
        "\ud800.jpg",
        "gone.jpg",
        "0.jpg/x.jpg",
        "x" * 300 + ".jpg",
        "folder",
        "self.jpg",
    ]
    (tmp_path / "folder").mkdir()
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    path = json_folder(tmp_path, [{"image": place, "caption": "c"} for place in places])
    reasons = [getattr(item, "reason", "good") for item in everything(path)]
    assert reasons == ["good", *["no image"] * 7]
    for error in ERRORS:
        told = f"^cannot read {tmp_path}/0.jpg: "
        with failing(0.5, error, ".jpg"), pytest.raises(UserError, match=told):
            everything(path)


def test_an_image_that_is_not_in_the_bucket_is_a_missing_one(tmp_path):
    memory = fsspec.filesystem("memory")
    places = ["0.jpg", "\ud800.jpg", "gone.jpg"]
    json_folder(tmp_path, [{"image": place, "caption": "c"} for place in places])
    memory.put(f"{tmp_path}/", "/images/", recursive=True)
    found = everything("memory://images/metadata.jsonl")
    assert [getattr(item, "reason", "good") for item in found] == ["good", *["no image"] * 2]


@pytest.mark.parametrize("number", [errno.EILSEQ, errno.EINVAL])
def test_a_name_that_no_file_can_have_is_a_missing_image(tmp_path, monkeypatch, number):
    def refusing(path, mode):
        if str(path).endswith(".jpg"):
            raise OSError(number, os.strerror(number))
        return open(path, mode)

    path = json_folder(tmp_path, [{"image": "0.jpg", "caption": "c"}])
    monkeypatch.setattr(files, "open", refusing, raising=False)
    assert [item.reason for item in everything(path)] == ["no image"]


def test_an_array_record_that_a_disk_does_not_give_is_no_damage(tmp_path):
    path = tf_examples(tmp_path, [{"text": [os.urandom(100_000)]} for _ in range(40)])
    source = open_source(str(path))
    (plan,) = source.parts()
    found = source.read(plan)
    next(found)
    (number,) = (
        int(link.name)
        for link in (tmp_path / "/proc/self/fd").iterdir()
        if link.exists() and link.readlink() == path
    )
    folder = os.open(tmp_path, os.O_RDONLY)  # whose read() fails
    os.dup2(folder, number)
    os.close(folder)
    with pytest.raises(UserError, match=f"^cannot read {path}: Is a directory$"):
        list(found)


def lost(found) -> int:
    return sum(item.count for item in found if isinstance(item, Broken))


def whole(found) -> int:
    return sum(isinstance(item, Raw) for item in found)


@pytest.mark.parametrize("share", [0.4, 0.5, 0.9])  # a half of one ends where a member does
@pytest.mark.parametrize("make", [tars, zipped])
def test_a_tar_that_breaks_off_counts_what_is_missing_beside_the_others(tmp_path, share, make):
    names = ["a.tar.gz", "b.tar.gz", "c.tar.gz"]
    if make is tars:
        tars(tmp_path, 3, 60)
    else:
        for name in names:
            zipped(tmp_path, 60, name)
    path = sorted(tmp_path.iterdir())[1]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    found = everything(tmp_path)
    missing = 180 - whole(found)
    assert 0.6 * missing - 2 <= lost(found) <= 1.4 * missing + 2
    assert {item.reason for item in found if isinstance(item, Broken)} == {"corrupt shard"}


def test_a_damaged_stretch_of_a_tar_counts_what_was_in_it(tmp_path):
    path = write_tar(tmp_path / "x.tar", [member for n in range(60) for member in pair(n)])
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"000000020.jpg"), data.index(b"000000040.jpg")
    data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    found = everything(path)
    assert whole(found) == 40
    assert 18 <= lost(found) <= 22
    data[begin:] = b"\xff" * (len(data) - begin)
    path.write_bytes(data)
    found = everything(path)
    assert whole(found) == 20
    assert 35 <= lost(found) <= 50  # a tar is padded at its end


def test_damage_of_the_first_header_of_a_tar_is_told(tmp_path):
    path = write_tar(tmp_path / "x.tar", [member for n in range(3) for member in pair(n)])
    data = bytearray(path.read_bytes())
    data[:100] = b"\xff" * 100
    path.write_bytes(data)
    assert "corrupt shard" in [getattr(item, "reason", "") for item in everything(path)]


def test_parquet_counts_the_rows_that_it_cannot_give(tmp_path):
    path = parquet(tmp_path / "a.parquet", 10)
    data = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[begin : begin + 40] = b"\xff" * 40  # rows 4 to 7
    path.write_bytes(data)
    found = everything(path)
    assert (whole(found), lost(found)) == (6, 4)
    path.write_bytes(data[:-20])  # without its end nothing of it can be read
    parquet(tmp_path / "b.parquet", 7)
    found = everything(tmp_path)
    assert (whole(found), lost(found)) == (7, 7)


def test_array_records_that_cannot_be_opened_count_as_others_or_as_their_index_says(tmp_path):
    cut = tf_examples(tmp_path, [{"text": [b"x"]} for _ in range(5)])
    cut = cut.rename(tmp_path / "a.array_record")
    tf_examples(tmp_path, [{"text": [b"x"]} for _ in range(9)])
    (plan, _) = open_source(str(tmp_path)).parts()
    cut.write_bytes(cut.read_bytes()[:-100])
    found = everything(tmp_path)
    assert (whole(found), lost(found)) == (9, 9)
    assert [item.count for item in open_source(str(tmp_path)).read(plan)] == [5]
    index = {"shards": [{"name": cut.name, "examples": 6}]}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert lost(everything(tmp_path)) == 6
