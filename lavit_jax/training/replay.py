"""Batches that broke a step: stored when a run gives up on them, looked into by `lavit replay`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.parallel import feed
from lavit_jax.parallel.mesh import make_mesh, placed
from lavit_jax.training import restore, storage
from lavit_jax.training.objectives import Batch, make_objective
from lavit_jax.training.run import abstract_state
from lavit_jax.training.saved import read_step
from lavit_jax.training.schedule import make_schedule, phase_at
from lavit_jax.training.state import make_gradients

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

FOLDER = "bad_batches"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is not finite in a step.

    Attributes:
      step: which.
      phase: its phase.
      fields: of the batch.
      metrics: the loss and its parts.
      gradients: leaves by path.
      values: every metric of the step.
    """

    step: int
    phase: str
    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    gradients: tuple[str, ...]
    values: dict[str, float]


def save(run: Run, step: int, batch: Batch) -> str:
    """Stores a step's batch, whole and in one move; what `replay` finds it by."""
    whole = feed.to_host(batch, run.mesh)
    path = run.workdir / FOLDER / f"{step:07d}.npz"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        with disk.replacing(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **whole)
    return f"{run.storage.name}/{FOLDER}/{path.name}"


def replay(file: str | Path) -> Finding:
    """Computes loss and gradients of a stored step again, with the parameters it had.

    Args:
      file: `WORKDIR/bad_batches/STEP.npz`; the checkpoint of that step is in the work directory,
        which may be in a bucket.

    Raises:
      UserError: the file or its checkpoint is missing or damaged.
    """
    path = Path(file)
    if storage.is_bucket(file):
        place = storage.to_read(str(file).rsplit("/", 2)[0])
        path = place.local / FOLDER / path.name
    else:
        place = storage.on_disk(path.absolute().parent.parent)
    batch, step = _read(path, file), _step(path)
    opened = restore.open_workdir(place)
    config, modules = opened.config, opened.modules
    phases = make_schedule(config)
    phase = phase_at(phases, step)
    accumulate = phase.config.get("accumulate", 1)
    rows = len(next(iter(batch.values())))
    devices = jax.devices()[: math.gcd(rows // accumulate, len(jax.devices()))]
    mesh = make_mesh(data=1, fsdp=len(devices), devices=devices)
    found = read_step(
        place.checkpoints,
        step,
        lambda place: abstract_state(modules, phases, mesh, config.seed, place["step"]),
    )
    # The step was skipped: but for its number the state is the one it began with.
    state = found.state.replace(step=found.state.step - 1)
    gradients = jax.jit(
        make_gradients(make_objective(modules, phase.config), phase.trained, accumulate)
    )
    with placed(mesh):
        metrics, _, grads = gradients(state, feed.to_mesh(batch, mesh))
        broken = jax.device_get(jax.jit(lambda tree: jax.tree.map(_broken, tree))(grads))
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    return Finding(
        step,
        phase.name,
        tuple(name for name, value in batch.items() if not np.isfinite(value).all()),
        tuple(name for name, value in values.items() if not np.isfinite(value)),
        tuple(
            "/".join(str(getattr(key, "key", key)) for key in place)
            for place, bad in jax.tree_util.tree_leaves_with_path(broken)
            if bad
        ),
        values,
    )


def _broken(leaf: Array) -> Array:
    return ~jax.numpy.isfinite(leaf).all()


def _read(path: Path, named: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise UserError(f"{named}: no such file") from error
    except Exception as error:  # zip, zlib and numpy have errors of their own
        raise UserError(f"{named}: not a batch that `lavit train` stored ({error})") from error


def _step(path: Path) -> int:
    if not path.stem.isdigit():
        raise UserError(f"{path}: expected WORKDIR/{FOLDER}/STEP.npz")
    return int(path.stem)


def describe(finding: Finding, most: int = 20) -> str:
    """The finding for people."""
    lines = [f"step {finding.step} of phase {finding.phase!r}"]
    for what, names in (
        ("batch", finding.fields),
        ("loss", finding.metrics),
        ("gradients", finding.gradients),
    ):
        shown = ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
        lines.append(f"  {what:10} {'not finite: ' + shown if names else 'all finite'}")
    return "\n".join(lines)
