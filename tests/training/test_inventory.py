import json
import shutil

import pytest

from lavit_jax.config import load_config, to_json
from lavit_jax.errors import UserError
from lavit_jax.training import checksums, inventory
from lavit_jax.training.retention import Policy


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
