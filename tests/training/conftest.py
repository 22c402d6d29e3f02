"""One small run through every phase that all tests here look at, and how to make others."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lavit_jax.data import text, twemoji
from lavit_jax.training.run import train
from small_run import OVERRIDES
from tiny import mini_config


@pytest.fixture(scope="session")
def new_workdir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes work directories whose data and text tokenizer are there already."""
    model = tmp_path_factory.mktemp("text") / "text.model"
    sentences = twemoji.sentences(twemoji.source("train", data_dir))
    text.train_tokenizer(sentences, model, mini_config().data.text_vocab_size)

    def make() -> Path:
        workdir = tmp_path_factory.mktemp("run")
        (workdir / "data").symlink_to(data_dir)
        shutil.copy(model, workdir)
        return workdir

    return make


@pytest.fixture(scope="session")
def whole_run(new_workdir: Callable[[], Path]) -> Path:
    """The work directory of a run that nothing disturbed, on eight devices."""
    workdir = new_workdir()
    train(mini_config(*OVERRIDES), workdir)
    return workdir
