"""What a run trained, in place of the same modules of the checkpoint it started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax

from lavit_jax.convert import store
from lavit_jax.convert.store import ArrayInfo, Leaf
from lavit_jax.errors import UserError
from lavit_jax.training import checksums, storage
from lavit_jax.training.optimizer import Averaged, make_optimizer
from lavit_jax.training.restore import open_workdir
from lavit_jax.training.saved import saved_steps
from lavit_jax.training.schedule import Phase, make_schedule, phase_at

CODEBOOK = "codebook"


def open_trained(
    workdir: str | Path, arrays: Mapping[str, ArrayInfo]
) -> tuple[dict[str, Leaf], list[str]]:
    """Opens a run's newest checkpoint; nothing is read yet.

    Where the phase averages its weights, the averaged ones are given.

    Args:
      workdir: of the run, here on disk.
      arrays: of the converted checkpoint, by path.

    Returns:
      Those arrays that the run has, by path, and the names of their modules.

    Raises:
      UserError: no work directory, a damaged checkpoint, other sizes than `arrays`, or a form that
        was never published.
    """
    if storage.is_bucket(workdir):
        raise UserError(f"--weights {workdir}: expected a folder on disk; copy it here first")
    place = storage.on_disk(Path(workdir))
    config = open_workdir(place).config
    steps = saved_steps(place.checkpoints)
    if not steps:
        raise UserError(f"{place.checkpoints} has no complete checkpoint yet")
    folder = place.checkpoints / str(steps[-1])
    if checksums.check(folder, 0, 1) == checksums.DAMAGED:
        raise UserError(f"{folder} is damaged: its files differ from their checksums")
    phase = phase_at(make_schedule(config), steps[-1])
    held = {*phase.names, *([CODEBOOK] if "quantizer" in phase.names else [])}
    wanted = {path: array for path, array in arrays.items() if _module(path) in held}
    found = sorted({_module(path) for path in wanted})
    if not found:
        raise UserError(f"{workdir}: has none of the modules of the converted checkpoint")
    if "decoder" in found and config.model.decoder.get("norm_qk", False):
        raise UserError(
            f"{workdir}: its decoder has norm_qk=True, which the published code cannot compute"
        )
    places = {path: _place(path, phase, arrays) for path in wanted}
    try:
        leaves = store.open_leaves(folder / "state", places)
    except ValueError as error:  # tensorstore's, for an array that is not there
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{folder}: lacks an array of the converted checkpoint ({reason})"
        ) from error
    for path, leaf in leaves.items():
        if leaf.shape != tuple(arrays[path].shape):
            raise UserError(
                f"{workdir}: {path} has shape {leaf.shape}, the converted checkpoint's has "
                f"{tuple(arrays[path].shape)}"
            )
    return leaves, found


def _module(path: str) -> str:
    return path.partition("/")[0]


def _place(path: str, phase: Phase, arrays: Mapping[str, ArrayInfo]) -> str:
    """Where a training state has an array."""
    module = _module(path)
    if module == CODEBOOK:
        return "codebook/codes_KC"
    if module in phase.trained and "ema" in phase.config["optimizer"]:
        return f"opt_state/{_average(phase, arrays)}/params/{path}"
    return f"params/{path}"


def _average(phase: Phase, arrays: Mapping[str, ArrayInfo]) -> int:
    """The place of the averaged weights in the optimizer's chain."""
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    trained = {p: a for p, a in arrays.items() if _module(p) in phase.trained}
    shapes = {p: jax.ShapeDtypeStruct(a.shape, "float32") for p, a in trained.items()}
    chain = jax.eval_shape(tx.init, store.nested(shapes))
    return next(place for place, part in enumerate(chain) if isinstance(part, Averaged))
