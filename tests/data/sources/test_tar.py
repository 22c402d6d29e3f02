"""Tars, zipped ones too."""

import io
import os
import tarfile

import fsspec
import pytest

from lavit_jax.data.sources import Broken, Raw
from lavit_jax.data.sources.tar import read_tar
from shards import caption, everything, jpeg, keys, lost, pair, tars, whole, write_tar, zipped


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


def test_a_tar_that_breaks_off_within_a_header_says_so(tmp_path):
    data = write_tar(tmp_path / "x.tar", [m for n in range(5) for m in pair(n)]).read_bytes()
    found = list(read_tar(io.BytesIO(data[: data.index(b"000000003.jpg") + 100]), "x.tar"))
    assert [item.key for item in found if isinstance(item, Raw)] == keys(3)
    assert [item.reason for item in found if isinstance(item, Broken)] == ["corrupt shard"]


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
