import json
import shutil

import jax
import numpy as np
import pytest

from lavit_jax.errors import UserError
from lavit_jax.training import restore, saved
from small_run import TOTAL


def everything(folder):
    return sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_the_newest_checkpoint_comes_with_config_and_text_tokenizer(whole_run):
    before = everything(whole_run)
    restored = restore.restore(whole_run)
    assert (restored.step, restored.config.name) == (TOTAL, "mini")
    assert restored.text.vocab_size == restored.modules.config.llm.text_vocab
    assert {"encoder", "conditioner", "llm"} <= set(restored.params)
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(restored.params))
    assert everything(whole_run) == before


def test_moments_are_not_read(whole_run, monkeypatch):
    read = []

    def read_latest(directory, wanted):
        read.append(saved.read_latest(directory, wanted))
        return read[-1]

    monkeypatch.setattr(restore, "read_latest", read_latest)
    restore.restore(whole_run)
    (found,) = read
    assert {type(leaf) for leaf in jax.tree.leaves(found.state.opt_state)} == {type(saved.LEFT_OUT)}


def test_a_run_that_goes_on_beside_loses_nothing_to_a_reader(whole_run, tmp_path, capsys):
    """A save in progress stays, and so does a damaged checkpoint: both are the run's business."""
    workdir = shutil.copytree(whole_run, tmp_path / "w", symlinks=True)
    saves = workdir / "checkpoints"
    shutil.copytree(saves / "21", saves / "25.orbax-checkpoint-tmp")
    shutil.rmtree(saves / str(TOTAL) / "state")
    before = everything(saves)
    assert restore.restore(workdir).step == 21
    assert "22 is damaged" in capsys.readouterr().err
    assert everything(saves) == before


def test_a_checkpoint_pruned_while_it_is_looked_for_is_no_error(whole_run, tmp_path, monkeypatch):
    from lavit_jax.training import saved

    workdir = shutil.copytree(whole_run, tmp_path / "w", symlinks=True)
    real = saved.restore

    def pruned_first(manager, step, abstract):
        if step == TOTAL:
            shutil.rmtree(workdir / "checkpoints" / str(TOTAL))
        return real(manager, step, abstract)

    monkeypatch.setattr(saved, "restore", pruned_first)
    assert restore.restore(workdir).step == 21


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "is not a work directory"),
        ("checkpoints", "has no checkpoint yet"),
        ("text.model", "has no checkpoint yet"),
    ],
)
def test_what_is_not_there_yet_is_told(whole_run, tmp_path, missing, says):
    for name in ("config.json", "text.model"):
        shutil.copy(whole_run / name, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    gone = tmp_path / missing
    gone.rmdir() if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=says):
        restore.restore(tmp_path)
    assert missing == "checkpoints" or not any((tmp_path / "checkpoints").iterdir())


def test_a_directory_whose_saves_are_all_half_written_has_none(whole_run, tmp_path):
    for name in ("config.json", "text.model"):
        shutil.copy(whole_run / name, tmp_path)
    half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(whole_run / "checkpoints" / "21", half)
    with pytest.raises(UserError, match="no complete checkpoint yet"):
        restore.restore(tmp_path)
    assert half.is_dir()


def test_a_damaged_config_is_named(whole_run, tmp_path):
    stored = json.loads((whole_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored)[:100])
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        restore.restore(tmp_path)
