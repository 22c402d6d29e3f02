"""`lavit train`: claims the work directory, prepares the data, runs every phase in order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from lavit_jax import config as configs
from lavit_jax import console, disk
from lavit_jax.data import datasets
from lavit_jax.data import text as text_data
from lavit_jax.data.text import TextTokenizer
from lavit_jax.disk import read_json
from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.models.config import lavit_config
from lavit_jax.models.lavit import Modules
from lavit_jax.parallel.mesh import batch_parts, make_mesh
from lavit_jax.parallel.peers import first_alone, first_holds
from lavit_jax.training import starting, state, storage
from lavit_jax.training.checks import check_config
from lavit_jax.training.optimizer import make_optimizer
from lavit_jax.training.saved import any_saved
from lavit_jax.training.schedule import Phase, phase_at
from lavit_jax.training.storage import Storage

LOCK = ".lock"
# What is kept of a work directory's data and depends on the config; `data/` knows by itself.
MADE_BY_CONFIG = ("text.model", "visual_ids.npz")
# Groups and fields of the config that change nothing of what is learned, the mesh but for rounding:
# they may differ between launches.
FREE = ("checkpoint", "evaluation", "log", "health", "mesh")
FREE_FIELDS = ("data.cache", "data.threads", "data.workers", "data.max_bad_share")


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same through a run.

    Attributes:
      config: the experiment.
      storage: where everything is written.
      data_dir: where the prepared data set lies.
      text: text tokenizer.
      modules: the model.
      mesh: devices.
      phases: the schedule.
      started: when the launch began, by `time.monotonic`.
    """

    config: ConfigDict
    storage: Storage
    data_dir: Path
    text: TextTokenizer
    modules: Modules
    mesh: Mesh
    phases: tuple[Phase, ...]
    started: float

    @property
    def workdir(self) -> Path:
        return self.storage.local

    @property
    def total(self) -> int:
        return self.phases[-1].end


@contextlib.contextmanager
def held(place: Storage) -> Iterator[None]:
    """Keeps other launches out of a work directory on a disk, up to the end of this one.

    Not out of a bucket: nothing there ends with its process, and a launch that goes on must not
    wait for one that was killed.

    Raises:
      UserError: another launch is at work there, or it cannot be written.
    """
    with contextlib.ExitStack() as lock:
        if isinstance(place.checkpoints, Path):
            with _writing(place):
                place.local.mkdir(parents=True, exist_ok=True)
                try:
                    lock.enter_context(disk.locked(place.local / LOCK))
                except BlockingIOError as error:
                    raise UserError(
                        f"another launch is training in {place.name}: let it end, or choose "
                        "another --workdir"
                    ) from error
        yield


@contextlib.contextmanager
def _writing(place: Storage) -> Iterator[None]:
    """Around what writes to a work directory for the first time."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to the work directory {place.name}: {reason}") from error


def claim_workdir(config: ConfigDict, place: Storage) -> None:
    """Makes the work directory of this config, or checks that it already is.

    Before the first checkpoint another config may take its place: nothing is lost by that.

    Args:
      config: the experiment.
      place: the work directory.

    Raises:
      UserError: a config that cannot work, a directory with checkpoints of another config, or one
        that cannot be written.
    """
    check_config(config)
    workdir = place.local
    stored, text = workdir / "config.json", configs.to_json(config)
    with _writing(place):
        workdir.mkdir(parents=True, exist_ok=True)
        changed = _differences(stored, text)
        if changed == []:
            return
        if changed:
            if any_saved(place.checkpoints):
                shown = "; ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
                raise UserError(
                    f"{place.name} belongs to another config: {shown} (stored -> now); "
                    "choose another --workdir"
                )
            for made in MADE_BY_CONFIG:
                (workdir / made).unlink(missing_ok=True)
        disk.write_text(stored, text)


def _differences(stored: Path, text: str) -> list[str] | None:
    """How the stored config differs; None if there is none, or only in what is free."""
    if not stored.exists():
        return None
    changed = configs.differences(read_json(stored), json.loads(text))
    bound = [line for line in changed if not _is_free(line.partition(":")[0])]
    return None if changed and not bound else bound


def _is_free(field: str) -> bool:
    return field.partition(".")[0] in FREE or field in FREE_FIELDS


def prepare(config: ConfigDict, workdir: Path) -> tuple[Path, TextTokenizer]:
    """Prepares the data set and trains the text tokenizer, where that is not done yet."""
    data_dir = workdir / "data"
    datasets.prepare(config, data_dir)
    model = workdir / "text.model"
    starting.copy_text_model(config, model)
    if not model.exists():
        text_data.train_tokenizer(
            datasets.sentences(config, data_dir), model, vocab_size=config.data.text_vocab_size
        )
    return data_dir, TextTokenizer(model)


def start(config: ConfigDict, place: Storage, started: float | None = None) -> Run:
    """Everything up to the first step.

    Args:
      config: the experiment.
      place: where everything is written.
      started: when the launch began, by `time.monotonic`; by default now.

    Raises:
      UserError: a config or work directory that cannot work.
    """
    started = time.monotonic() if started is None else started
    phases, mesh = check(config)
    first_alone(lambda: claim_workdir(config, place))
    # Every machine for itself and all at once; of processes of one machine the first.
    datasets.bring(config, console.say if jax.process_index() == 0 else lambda _: None)
    data_dir, text = first_alone(lambda: prepare(config, place.local))
    modules = lavit.build_modules(lavit_config(config.model.to_dict(), text.vocab_size))
    return Run(config, place, data_dir, text, modules, mesh, phases, started)


def check(config: ConfigDict) -> tuple[tuple[Phase, ...], Mesh]:
    """The schedule and the mesh of a config that can work; writes nothing.

    Raises:
      UserError: it cannot.
    """
    phases = check_config(config)
    mesh = make_mesh(**config.mesh)
    for phase in phases:
        check_batch(phase, mesh)
    starting.check(config, phases)
    return phases, mesh


def check_batch(phase: Phase, mesh: Mesh | AbstractMesh) -> None:
    """Raises a `UserError` for a batch whose parts do not divide over the mesh."""
    size, parts = phase.config["batch_size"], batch_parts(mesh)
    accumulate = phase.config.get("accumulate", 1)
    each = parts * accumulate
    if size % each:
        nearest = max(each, round(size / each) * each)
        raise UserError(
            f"config.phases.{phase.name}.batch_size={size} does not divide over {parts} devices "
            f"(slice x data x fsdp) and accumulate={accumulate}: batch_size={nearest} would fit"
        )


def abstract_state(
    modules: Modules, phases: tuple[Phase, ...], mesh: Mesh, seed: int, step: int
) -> state.TrainState:
    """Shapes and shardings of the state that a checkpoint at `step` holds."""
    phase = phase_at(phases, step)
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shapes = state.abstract_state(modules, phase.names, tx, phase.trained, seed)
    shardings = state.state_shardings(modules, phase.names, tx, phase.trained, mesh)
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def keep_compiled(place: Storage) -> None:
    """Compiled programs are kept in the work directory, so that going on does not compile again.

    Where JAX was told of another place (JAX_COMPILATION_CACHE_DIR) they go there.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = place.checkpoints.parent / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        # XLA's own, for GPUs alone: their path would be in the programs' keys, and a work directory
        # that is moved or copied would compile everything again.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], started: float | None = None
) -> None:
    """Trains every phase of the schedule; goes on from the newest checkpoint if there is one.

    Args:
      config: the experiment.
      workdir: where everything is written.
      started: see `start`.

    Raises:
      UserError: a config or work directory that cannot work, or another launch at work there.
    """
    from lavit_jax.training.loop import fit

    jax.config.update("jax_threefry_partitionable", True)
    place = storage.to_write(workdir)
    keep_compiled(place)
    check(config)  # before anything is written
    with first_holds(held(place)):
        try:
            fit(start(config, place, started))
        finally:
            place.publish()
