import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from lavit_jax.errors import UserError
from lavit_jax.training import checksums, saved
from lavit_jax.training.checkpoints import Checkpoints
from lavit_jax.training.retention import Policy
from lavit_jax.training.saved import MARK, REMOVED, any_saved, read_latest, read_step
from small_run import nearly_full_disk


def _state(value):
    return {"w": jnp.full((4, 3), value), "step": jnp.array(int(value), jnp.int32)}


def _abstract(position):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _state(0.0))


def _save(directory, steps, **kwargs):
    checkpoints = Checkpoints(directory, Policy(**{"newest": 3} | kwargs))
    for step in steps:
        checkpoints.save(step, _state(float(step)), {"step": step, "data": {"seen": step}})
    checkpoints.close()


def _damage(folder, how):
    if how == "missing_files":
        shutil.rmtree(folder)
        return
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_newest_checkpoint_comes_back_with_its_position(tmp_path):
    _save(tmp_path / "c", [10, 20])
    step, state, position = Checkpoints(tmp_path / "c", Policy(3)).restore_latest(_abstract)
    assert (step, position) == (20, {"step": 20, "data": {"seen": 20}})
    assert float(state["w"][0, 0]) == 20.0


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "c", Policy(3)).restore_latest(_abstract) is None


def test_old_checkpoints_go_but_ends_of_phases_stay(tmp_path):
    _save(tmp_path / "c", [10, 20, 30, 40], newest=2, milestones=(20,))
    assert Checkpoints(tmp_path / "c", Policy(2)).steps() == [20, 30, 40]


def test_old_checkpoints_are_moved_whole_before_their_files_are_deleted(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        _save(tmp_path / "c", [10, 20], newest=1)
    assert [path.name for path in (tmp_path / "c").iterdir() if path.name.isdigit()] == ["20"]
    moved = tmp_path / "c" / REMOVED / "10"
    assert (moved / "state").is_dir() and (moved / "position").is_dir()
    assert any_saved(tmp_path / "c")
    Checkpoints(tmp_path / "c", Policy(1))  # the next launch deletes what that one left
    assert not moved.exists()


@pytest.mark.parametrize("damage", ["truncate", "missing_files"])
def test_a_half_written_checkpoint_falls_back_to_the_one_before(tmp_path, damage, capsys):
    _save(tmp_path / "c", [10, 20])
    _damage(tmp_path / "c" / "20" / "state", damage)
    step, state, _ = Checkpoints(tmp_path / "c", Policy(3)).restore_latest(_abstract)
    assert step == 10
    assert float(state["w"][0, 0]) == 10.0
    told = capsys.readouterr().err
    assert "20 is damaged" in told
    assert "20.damaged" in told


def test_what_is_damaged_is_set_aside_and_its_number_free_again(tmp_path):
    for times in (1, 2):
        _save(tmp_path / "c", [10, 20])
        _damage(tmp_path / "c" / "20" / "state", "truncate")
        checkpoints = Checkpoints(tmp_path / "c", Policy(3))
        checkpoints.restore_latest(_abstract)
        assert checkpoints.steps() == [10]
        assert len(list((tmp_path / "c").glob("20.damaged*"))) == times
        checkpoints.save(20, _state(20.0), {"step": 20})
        checkpoints.close()
        again = Checkpoints(tmp_path / "c", Policy(3))
        assert again.restore_latest(_abstract).step == 20
        again.close()
        shutil.rmtree(tmp_path / "c" / "20")


def test_reading_changes_nothing_however_damaged(tmp_path):
    _save(tmp_path / "c", [10, 20])
    _damage(tmp_path / "c" / "20" / "state", "missing_files")
    (tmp_path / "c" / "30.orbax-checkpoint-tmp-1").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert read_latest(tmp_path / "c", _abstract).step == 10
    assert sorted(tmp_path.rglob("*")) == before


def test_reading_where_nothing_was_saved_finds_nothing(tmp_path):
    assert read_latest(tmp_path / "c", _abstract) is None
    assert not (tmp_path / "c").exists()


def test_only_complete_checkpoints_count_as_saved(tmp_path):
    assert not any_saved(tmp_path / "c")
    (tmp_path / "c" / "20.orbax-checkpoint-tmp-1").mkdir(parents=True)
    assert not any_saved(tmp_path / "c")
    (tmp_path / "c" / "20").mkdir()
    assert any_saved(tmp_path / "c")


def test_a_save_that_was_killed_is_not_a_checkpoint(tmp_path):
    _save(tmp_path / "c", [10])
    shutil.copytree(tmp_path / "c" / "10", tmp_path / "c" / "20.orbax-checkpoint-tmp-1")
    assert Checkpoints(tmp_path / "c", Policy(3)).steps() == [10]


def test_nothing_readable_is_one_clear_error(tmp_path):
    _save(tmp_path / "c", [10])
    shutil.rmtree(tmp_path / "c" / "10" / "state")
    checkpoints = Checkpoints(tmp_path / "c", Policy(3))
    with pytest.raises(UserError, match="none of the checkpoints"):
        checkpoints.restore_latest(_abstract)
    assert checkpoints.steps() == [10]


def test_every_checkpoint_has_checksums_when_it_is_waited_for(tmp_path):
    _save(tmp_path / "c", [10, 20])
    assert [checksums.check(tmp_path / "c" / step) for step in ("10", "20")] == ["sound", "sound"]


def test_a_bit_that_flipped_falls_back_to_the_one_before(tmp_path, capsys):
    _save(tmp_path / "c", [10, 20])
    files = [path for path in (tmp_path / "c" / "20" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert Checkpoints(tmp_path / "c", Policy(3)).restore_latest(_abstract).step == 10
    assert "20 is damaged (its files differ from their checksums)" in capsys.readouterr().err


def test_a_checkpoint_without_checksums_is_trusted(tmp_path):
    _save(tmp_path / "c", [10, 20])
    (tmp_path / "c" / "20" / "checksums-0-of-1.json").unlink()
    assert Checkpoints(tmp_path / "c", Policy(3)).restore_latest(_abstract).step == 20


def test_the_best_and_every_so_manieth_stay(tmp_path):
    policy = Policy(1, every=40, best="loss")
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 5.0, 50: 4.0}
    for steps in ((10, 20), (30, 40, 50)):  # a run that goes on reads what it saved before
        checkpoints = Checkpoints(tmp_path / "c", policy)
        for step in steps:
            position = {"step": step, "metrics": {"loss": losses[step]}}
            checkpoints.save(step, _state(float(step)), position)
        checkpoints.close()
    assert Checkpoints(tmp_path / "c", policy).steps() == [20, 40, 50]


def test_going_back_takes_away_what_came_after(tmp_path):
    _save(tmp_path / "c", [10, 20, 30])
    checkpoints = Checkpoints(tmp_path / "c", Policy(3))
    assert float(checkpoints.go_back(10, _abstract).state["w"][0, 0]) == 10.0
    assert checkpoints.steps() == [10]
    checkpoints.save(20, _state(21.0), {"step": 20})
    checkpoints.close()
    assert float(read_latest(tmp_path / "c", _abstract).state["w"][0, 0]) == 21.0


def test_one_step_is_read_by_number(tmp_path):
    _save(tmp_path / "c", [10, 20])
    assert read_step(tmp_path / "c", 10, _abstract).position["step"] == 10
    with pytest.raises(UserError, match="no checkpoint of step 15"):
        read_step(tmp_path / "c", 15, _abstract)


def test_a_directory_that_vanished_is_one_clear_error_and_not_made_again(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", Policy(3))
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(UserError, match="cannot save: .* has vanished"):
        checkpoints.save(10, _state(10.0), {"step": 10})
    assert not (tmp_path / "c").exists()


def test_a_directory_that_a_whole_save_made_anew_goes(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run" / "c", Policy(3))
    save = ocp.CheckpointManager.save

    def moved(*args, **kwargs):
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        (tmp_path / "run" / "c").mkdir(parents=True)
        save(*args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", moved)
    with pytest.raises(UserError, match=r"cannot save: .*run/c has vanished$"):
        checkpoints.save(10, _state(10.0), {"step": 10})
        checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_directory_moved_away_in_the_middle_of_a_save_is_not_made_again(tmp_path):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run" / "c", Policy(3))
    arrays = {str(n): np.random.default_rng(n).random(20_000) for n in range(20)}
    checkpoints.save(10, arrays, {"step": 10})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot save: .*run/c has vanished$"):
        checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_another_directory_in_its_place_gets_no_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", Policy(3))
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="cannot save: .* has vanished"):
        checkpoints.save(10, _state(10.0), {"step": 10})


def test_a_full_disk_is_one_clear_error_and_the_newest_checkpoint_stays(tmp_path):
    _save(tmp_path / "c", [10])
    checkpoints = Checkpoints(tmp_path / "c", Policy(1))
    says = "cannot save to .*: File too large; step 10 is the"
    with nearly_full_disk(100), pytest.raises(UserError, match=says):
        checkpoints.save(20, _state(20.0), {"step": 20})
        checkpoints.wait()
    assert read_latest(tmp_path / "c", _abstract).step == 10


FULL_DISK = """
import sys
from pathlib import Path

import numpy as np

from lavit_jax.errors import UserError
from lavit_jax.training.checkpoints import Checkpoints
from lavit_jax.training.retention import Policy
from small_run import nearly_full_disk

checkpoints = Checkpoints(Path(sys.argv[1]), Policy(1))
arrays = {str(n): np.random.default_rng(n).random(20_000) for n in range(50)}
with nearly_full_disk(10_000):
    try:
        checkpoints.save(10, arrays, {"step": 10})
        checkpoints.wait()
    except UserError as error:
        print(error)
"""


@pytest.mark.subprocess
def test_a_full_disk_is_told_once_and_nothing_half_written_stays(tmp_path):
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "tests")))}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "c")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot save to {tmp_path / 'c'}: File too large\n"
    assert done.stderr == ""
    assert not list((tmp_path / "c").iterdir())


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that stands for one: orbax marks nothing there, so `put` does; and what is removed,
    with whether it had its mark by then."""
    place, gone = epath.Path(tmp_path / "c"), []
    rmtree = type(place).rmtree

    def noted(folder, *args, **kwargs):
        gone.append((folder.name, (folder / MARK).exists()))
        rmtree(folder, *args, **kwargs)

    monkeypatch.setattr(type(place), "rmtree", noted)
    return place, gone


def put(checkpoints, step):
    checkpoints.save(step, _state(float(step)), {"step": step})
    checkpoints.wait()
    (checkpoints.directory / str(step) / MARK).touch()


def test_in_a_bucket_the_mark_goes_first_and_what_stays_is_complete(bucket):
    place, gone = bucket
    checkpoints = Checkpoints(place, Policy(newest=2))
    for step in range(1, 6):
        put(checkpoints, step)
    assert gone == [("1", False), ("2", False)]  # the third goes when the next save begins
    checkpoints.prune()
    assert gone[2:] == [("3", False)]
    checkpoints.go_back(4, _abstract)
    assert gone[3:] == [("5", False)]
    assert checkpoints.steps() == [4]
    checkpoints.close()


class Killed(BaseException):
    """What a kill does to a test."""


@pytest.mark.parametrize("here", [True, False])
def test_a_run_killed_while_it_goes_back_never_goes_on_from_the_newest(bucket, monkeypatch, here):
    place = Path(bucket[0]) if here else bucket[0]
    checkpoints = Checkpoints(place, Policy(newest=4))
    for step in range(1, 5):
        put(checkpoints, step)
    owner, name = (ocp.CheckpointManager, "delete") if here else (saved, "remove_from_bucket")
    remove, removed = getattr(owner, name), []

    def killed_at_second(*args):
        if removed:
            raise Killed
        removed.append(args[-1])
        remove(*args)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, killed_at_second)
        checkpoints.go_back(1, _abstract)
    assert saved.saved_steps(place) == [1, 2, 3]


def test_a_save_that_fails_takes_nothing_from_a_bucket(bucket, monkeypatch):
    place, gone = bucket
    checkpoints = Checkpoints(place, Policy(newest=1))
    put(checkpoints, 1)

    def fails(*args, **kwargs):
        raise OSError("the store is away")

    monkeypatch.setattr(ocp.CheckpointManager, "save", fails)
    with pytest.raises(UserError, match="the store is away; step 1 is the newest that is whole"):
        checkpoints.save(2, _state(2.0), {"step": 2})
    with monkeypatch.context() as patched:
        patched.setattr(type(place), "iterdir", fails)
        with pytest.raises(UserError, match="the store is away$"):
            checkpoints.save(2, _state(2.0), {"step": 2})
    checkpoints.close()
    assert not gone


def test_a_run_in_a_bucket_goes_back_to_what_the_next_save_would_take_away(bucket):
    place, _ = bucket
    checkpoints = Checkpoints(place, Policy(newest=1))
    put(checkpoints, 1)
    put(checkpoints, 2)
    assert checkpoints.go_back(1, _abstract).step == 1
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_what_cannot_be_judged_or_removed_stays(bucket, monkeypatch, capsys):
    place, gone = bucket
    checkpoints = Checkpoints(place, Policy(newest=1))
    put(checkpoints, 1)
    put(checkpoints, 2)

    def fails(folder):
        raise RuntimeError("429 Too Many Requests")

    with monkeypatch.context() as patched:
        patched.setattr("lavit_jax.training.saved.remove_from_bucket", fails)
        checkpoints.prune()
    assert "step 1 is not removed: 429 Too Many" in capsys.readouterr().err
    checkpoints._preservation.metrics.clear()
    with monkeypatch.context() as patched:
        patched.setattr("lavit_jax.training.saved.read_means", fails)
        checkpoints.prune()
    assert "old checkpoints stay for now: 429 Too Many" in capsys.readouterr().err
    assert not gone
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]
