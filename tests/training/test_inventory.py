import json
import shutil

import orbax.checkpoint as ocp
import pytest
from etils import epath

import buckets
from lavit_jax.config import load_config, to_json
from lavit_jax.errors import UserError
from lavit_jax.training import checksums, inventory
from lavit_jax.training.retention import Policy
from lavit_jax.training.saved import MARK, REMOVED, saved_steps

URL = "gs://bucket/run"


@pytest.fixture
def workdir(tmp_path):
    """Steps 10 to 60 of `configs/mini.py`, whose first phase ends at 50."""
    (tmp_path / "config.json").write_text(to_json(load_config("configs/mini.py")))
    for step in range(10, 70, 10):
        folder = tmp_path / "checkpoints" / str(step)
        for part in inventory.PARTS:
            (folder / part).mkdir(parents=True)
        (folder / "state" / "data").write_bytes(bytes(1000 + step))
        position = {"step": step, "metrics": {"loss": abs(step - 20)}}
        (folder / "position" / "metadata").write_text(json.dumps(position))
        checksums.write(folder)
    return tmp_path


def listed(workdir, **how):
    return inventory.take(workdir, **how).entries


def test_a_listing_says_what_each_is(workdir):
    first = listed(workdir)[0]
    assert (first.step, first.phase, first.complete) == (10, "encoder", True)
    assert first.bytes > 1010
    assert first.checksums == inventory.RECORDED
    assert first.metrics == {"loss": 10}
    assert listed(workdir)[-1].phase == "select"


def test_the_folder_of_checkpoints_is_as_good_as_the_work_directory(workdir):
    assert listed(workdir) == listed(workdir / "checkpoints")


def test_what_was_being_saved_or_is_set_aside_is_listed_as_incomplete(workdir):
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "60", checkpoints / "61.orbax-checkpoint-tmp")
    (checkpoints / "50").rename(checkpoints / "50.damaged")
    found = {entry.path.name: entry.complete for entry in listed(workdir)}
    assert not found["61.orbax-checkpoint-tmp"]
    assert not found["50.damaged"]
    assert sum(found.values()) == 5


def test_verifying_finds_the_flipped_bit(workdir):
    path = workdir / "checkpoints" / "30" / "state" / "data"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    (workdir / "checkpoints" / "40" / "checksums-0-of-1.json").unlink()
    found = inventory.take(workdir, verify=True)
    states = [entry.checksums for entry in found.entries]
    sound = checksums.SOUND
    assert states == [sound, sound, checksums.DAMAGED, inventory.MISSING, sound, sound]
    assert [entry.step for entry in found.damaged] == [30]
    assert inventory.take(workdir).damaged == ()


def test_pruning_keeps_what_the_config_asks_for(workdir):
    found = inventory.take(workdir)
    gone = inventory.superfluous(found, found.policy)
    assert [entry.step for entry in gone] == [10, 20, 30, 40]  # 50 ends a phase
    inventory.remove(gone)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["50", "60"]


def test_the_best_of_each_phase_is_told_by_the_metrics_it_was_saved_with(workdir):
    found = inventory.take(workdir)
    gone = inventory.superfluous(found, Policy(0, best="loss"))
    assert [entry.step for entry in gone] == [10, 30, 40, 50]


def test_the_last_checkpoint_is_never_taken_away(workdir):
    with pytest.raises(UserError, match="keep at least one"):
        inventory.superfluous(inventory.take(workdir), Policy(0))


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoints; expected a work directory"):
        inventory.take(tmp_path)


class Killed(BaseException):
    """What a kill does to a test."""


def killed_at(call, work):
    """Does work until it is called for the nth time."""
    left = [call]

    def counted(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise Killed
        return work(*args, **kwargs)

    return counted


def complete(found):
    return [entry.step for entry in found.entries if entry.complete]


def test_a_pruning_killed_on_a_disk_is_finished_by_the_next(workdir, monkeypatch):
    found = inventory.take(workdir)
    gone = inventory.superfluous(found, Policy(1))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(inventory.shutil, "rmtree", killed_at(2, shutil.rmtree))
        inventory.remove(gone)
    (workdir / "checkpoints" / "40" / "state").mkdir(parents=True)  # trained anew
    (workdir / "checkpoints" / "40" / "position").mkdir()
    found = inventory.take(workdir)
    assert "40.pruned" in [entry.path.name for entry in found.entries]
    inventory.remove(inventory.superfluous(found, Policy(1)))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["60"]


def test_what_a_killed_run_was_removing_is_listed_and_goes_with_the_next_pruning(workdir):
    checkpoints = workdir / "checkpoints"
    (checkpoints / REMOVED).mkdir()
    (checkpoints / "10").rename(checkpoints / REMOVED / "10")
    (checkpoints / REMOVED / "10" / "state" / "data").unlink()  # as far as it got
    found = inventory.take(workdir, verify=True)
    assert found.entries[0].name == "removed/10"
    assert not found.entries[0].complete
    assert not found.damaged
    inventory.remove(inventory.superfluous(found, Policy(5)))
    assert not list((checkpoints / REMOVED).iterdir())
    assert complete(inventory.take(workdir)) == [20, 30, 40, 50, 60]


def test_a_run_that_removes_checkpoints_meanwhile_is_no_error(workdir, monkeypatch):
    found = inventory.take(workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    inventory.remove(inventory.superfluous(found, Policy(1)))
    assert complete(inventory.take(workdir)) == [60]

    def gone_meanwhile(folder):
        shutil.rmtree(folder)
        return iter(sorted(folder.iterdir()))

    monkeypatch.setattr(inventory.storage, "files", gone_meanwhile)
    assert inventory.take(workdir).entries == ()


def test_one_that_a_run_moves_away_while_it_is_verified_is_not_damaged(workdir, monkeypatch):
    checkpoints = workdir / "checkpoints"
    (checkpoints / REMOVED).mkdir()
    read = checksums.disk.sha256

    def moved_after(path):
        found = read(path)
        if path.is_relative_to(checkpoints / "10"):
            (checkpoints / "10").rename(checkpoints / REMOVED / "10")
        return found

    monkeypatch.setattr(checksums.disk, "sha256", moved_after)
    found = inventory.take(workdir, verify=True)
    assert complete(found) == [20, 30, 40, 50, 60]
    assert not found.damaged


@pytest.mark.parametrize("name", [f"{REMOVED}/10", "10.pruned", "70.orbax-checkpoint-tmp"])
@pytest.mark.parametrize("gone", ["state/data", "state"])
def test_files_that_go_while_they_are_listed_are_left_out(workdir, monkeypatch, name, gone):
    folder = workdir / "checkpoints" / name
    folder.parent.mkdir(exist_ok=True)
    (workdir / "checkpoints" / "10").rename(folder)
    iterdir = type(workdir).iterdir

    def gone_after(path):
        found = list(iterdir(path))
        if folder / gone in found:
            shutil.rmtree(folder / "state")
        return iter(found)

    monkeypatch.setattr(type(workdir), "iterdir", gone_after)
    entry = next(each for each in listed(workdir) if each.path == folder)
    assert not entry.complete
    assert 0 < entry.bytes < 1000


@pytest.fixture
def bucket(workdir, monkeypatch):
    """The work directory in a bucket, with the marks of orbax, and a save under way."""
    for folder in (workdir / "checkpoints").iterdir():
        (folder / MARK).touch()
    found = buckets.in_memory(monkeypatch)
    found.upload(workdir, URL)
    found.upload(workdir / "checkpoints" / "60" / "state", f"{URL}/checkpoints/70/state")
    return found


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_checkpoint_half_removed_from_a_bucket_is_none_and_removed_by_the_next_pruning(
    bucket, monkeypatch, call
):
    place = epath.Path(URL)
    found = inventory.take(place)
    assert complete(found) == saved_steps(place / "checkpoints") == [10, 20, 30, 40, 50, 60]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(bucket, "rm_file", killed_at(call, bucket.rm_file))
        inventory.remove(inventory.superfluous(found, found.policy))
    assert bucket.find(f"{URL}/checkpoints/40")  # it was being removed
    found = inventory.take(place)
    left = [10, 20, 30, 40, 50, 60] if call == 1 else [10, 20, 30, 50, 60]
    assert complete(found) == saved_steps(place / "checkpoints") == left
    folders = [place / "checkpoints" / str(step) for step in range(10, 70, 10)]
    assert [int(f.name) for f in folders if ocp.utils.is_checkpoint_finalized(f)] == left
    inventory.remove(inventory.superfluous(found, found.policy))
    names = {path.split("/")[5] for path in bucket.find(f"{URL}/checkpoints")}
    assert names == {"50", "60", "70"}


def test_a_run_that_removes_checkpoints_from_a_bucket_meanwhile_is_no_error(bucket):
    found = inventory.take(epath.Path(URL))
    bucket.rm(f"{URL}/checkpoints/20", recursive=True)
    inventory.remove(inventory.superfluous(found, Policy(1)))
    assert complete(inventory.take(epath.Path(URL))) == [60]
