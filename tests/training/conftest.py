"""One small run through every phase that all tests here look at, and how to make others."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kills
from lavit_jax.data import text, twemoji
from lavit_jax.models import lavit, quantizer
from lavit_jax.training import phase_start, storage
from lavit_jax.training.objectives import READS
from lavit_jax.training.run import Run, start, train
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import Step, TrainState
from random_params import random_params
from small_run import OVERRIDES
from tiny import mini_config

Shared = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session", autouse=True)
def steps_traced_once() -> Iterator[None]:
    """Runs of one config in this process share their steps, which are pure functions."""
    steps: dict[tuple, Step] = {}
    compiled_step = phase_start.compiled_step

    def shared_step(run: Run, phase: Phase) -> Step:
        config = json.dumps(dict(phase.config), default=str, sort_keys=True)
        key = (run.modules.config, run.mesh, phase.names, config)
        if key not in steps:
            steps[key] = compiled_step(run, phase)
        return steps[key]

    phase_start.compiled_step = shared_step
    yield
    phase_start.compiled_step = compiled_step


@pytest.fixture(scope="session")
def fill_workdir(data_dir: Path, shared: Shared) -> Callable[[Path], Path]:
    """Puts the data and the text tokenizer into an empty work directory."""

    def make_text(folder: Path) -> None:
        sentences = twemoji.sentences(twemoji.source("train", data_dir))
        size = mini_config().data.text_vocab_size
        text.train_tokenizer(sentences, folder / "text.model", size)

    model = shared("text", make_text) / "text.model"

    def fill(workdir: Path) -> Path:
        (workdir / "data").symlink_to(data_dir)
        shutil.copy(model, workdir)
        return workdir

    return fill


@pytest.fixture(scope="session")
def new_workdir(
    fill_workdir: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """Makes work directories whose data and text tokenizer are there already."""
    return lambda: fill_workdir(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def whole_run(fill_workdir: Callable[[Path], Path], shared: Shared) -> Path:
    """The work directory of a run that nothing disturbed, on eight devices; to be left as it is.

    Beside what runs leave there it has `batches.log`, what each step read.
    """

    def make(folder: Path) -> None:
        with kills.batches_logged(folder / "batches.log"):
            train(mini_config(*OVERRIDES), fill_workdir(folder))

    return shared("whole_run", make)


@pytest.fixture(scope="session")
def run(new_workdir: Callable[[], Path]) -> Run:
    """A run that has not begun."""
    return start(mini_config(*OVERRIDES), storage.on_disk(new_workdir()))


@pytest.fixture(scope="session")
def state(run: Run) -> TrainState:
    """Random parameters of everything the tokenizer phases read."""
    names = READS["tokenizer"]
    params = random_params(lambda key: lavit.init_params(run.modules, names, key))
    book = quantizer.random_codebook(run.modules.config.quantizer, jax.random.key(1))
    return TrainState(jnp.zeros((), jnp.int32), params, book, None, jax.random.PRNGKey(2))
