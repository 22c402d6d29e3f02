import pytest

from lavit_jax.training import checksums


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        path = tmp_path / "state" / f"{number}" / "data"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes([number]) * 100)
    return tmp_path


def test_files_as_they_were_written_are_sound(folder):
    checksums.write(folder)
    assert checksums.recorded(folder)
    assert checksums.check(folder) == checksums.SOUND


def flipped(path):
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
    ],
)
def test_one_bit_or_file_less_is_damage(folder, damage):
    checksums.write(folder)
    damage(folder / "state" / "3" / "data")
    assert checksums.check(folder) == checksums.DAMAGED


def test_a_file_without_a_checksum_is_unknown_not_damaged(folder):
    assert checksums.check(folder) == checksums.UNKNOWN
    checksums.write(folder)
    (folder / "state" / "new").touch()
    assert checksums.check(folder) == checksums.UNKNOWN
    assert not checksums.recorded(folder)


def test_processes_share_the_files_and_need_all_parts(folder):
    checksums.write(folder, 0, 2)
    assert not checksums.recorded(folder)
    checksums.write(folder, 1, 2)
    assert checksums.recorded(folder)
    flipped(folder / "state" / "0" / "data")
    found = [checksums.check(folder, part, 2) for part in range(2)]
    assert sorted(found) == [checksums.DAMAGED, checksums.SOUND]


def test_a_damaged_list_of_checksums_says_nothing_of_the_files(folder):
    checksums.write(folder)
    (folder / "checksums-0-of-1.json").write_text('{"par')
    assert checksums.check(folder) == checksums.UNKNOWN
