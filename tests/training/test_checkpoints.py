import shutil

import jax
import jax.numpy as jnp
import pytest

from lavit_jax.errors import UserError
from lavit_jax.training.checkpoints import Checkpoints, any_saved, read_latest


def _state(value):
    return {"w": jnp.full((4, 3), value), "step": jnp.array(int(value), jnp.int32)}


def _abstract(position):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _state(0.0))


def _save(directory, steps, **kwargs):
    checkpoints = Checkpoints(directory, keep=kwargs.pop("keep", 3), **kwargs)
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
    step, state, position = Checkpoints(tmp_path / "c", keep=3).restore_latest(_abstract)
    assert (step, position) == (20, {"step": 20, "data": {"seen": 20}})
    assert float(state["w"][0, 0]) == 20.0


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "c", keep=3).restore_latest(_abstract) is None


def test_old_checkpoints_go_but_ends_of_phases_stay(tmp_path):
    _save(tmp_path / "c", [10, 20, 30, 40], keep=2, milestones=(20,))
    assert Checkpoints(tmp_path / "c", keep=2).steps() == [20, 30, 40]


@pytest.mark.parametrize("damage", ["truncate", "missing_files"])
def test_a_half_written_checkpoint_falls_back_to_the_one_before(tmp_path, damage, capsys):
    _save(tmp_path / "c", [10, 20])
    _damage(tmp_path / "c" / "20" / "state", damage)
    step, state, _ = Checkpoints(tmp_path / "c", keep=3).restore_latest(_abstract)
    assert step == 10
    assert float(state["w"][0, 0]) == 10.0
    told = capsys.readouterr().err
    assert "20 is damaged" in told
    assert "20.damaged" in told


def test_what_is_damaged_is_set_aside_and_its_number_free_again(tmp_path):
    for times in (1, 2):
        _save(tmp_path / "c", [10, 20])
        _damage(tmp_path / "c" / "20" / "state", "truncate")
        checkpoints = Checkpoints(tmp_path / "c", keep=3)
        checkpoints.restore_latest(_abstract)
        assert checkpoints.steps() == [10]
        assert len(list((tmp_path / "c").glob("20.damaged*"))) == times
        checkpoints.save(20, _state(20.0), {"step": 20})
        checkpoints.close()
        again = Checkpoints(tmp_path / "c", keep=3)
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
    assert Checkpoints(tmp_path / "c", keep=3).steps() == [10]


def test_nothing_readable_is_one_clear_error(tmp_path):
    _save(tmp_path / "c", [10])
    shutil.rmtree(tmp_path / "c" / "10" / "state")
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    with pytest.raises(UserError, match="none of the checkpoints"):
        checkpoints.restore_latest(_abstract)
    assert checkpoints.steps() == [10]
