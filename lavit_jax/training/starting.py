"""Starts a run on the weights of another: a finished work directory, or published ones.

`config.start_from` names either. The run stands on its own feet then: its checkpoints hold every
module of its schedule, the frozen ones too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from lavit_jax.errors import UserError
from lavit_jax.models.quantizer import Codebook
from lavit_jax.training import storage
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

# Objectives that mean nothing without a trained tokenizer.
NEED_START = ("diffusion",)


def check(config: ConfigDict, phases: tuple[Phase, ...]) -> None:
    """What can be told before any work.

    Raises:
      UserError: the first phase needs trained weights and none are named, or they do not exist.
    """
    source = config.get("start_from", "")
    first = phases[0]
    if not source and first.config["objective"] in NEED_START:
        raise UserError(
            f"config.start_from is empty, but phase {first.name!r} trains on a trained tokenizer: "
            "name a finished work directory, --config.start_from=DIR"
        )
    if source and not storage.is_bucket(source) and not Path(source).is_dir():
        raise UserError(f"config.start_from={source!r}: no such folder")


def copy_text_model(config: ConfigDict, model: Path) -> None:
    """The text tokenizer of the run this one starts from: its language model counts on it."""
    source = config.get("start_from", "")
    if not source or model.exists():
        return
    stored = storage.to_read(source).local / model.name
    if stored.is_file():
        aside = model.with_suffix(".tmp")
        shutil.copyfile(stored, aside)
        os.replace(aside, model)


def begin(
    run: Run,
    phase: Phase,
    fresh: TrainState,
    tx: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainState:
    """The first state of a run, on the weights `config.start_from` has.

    Modules that the phase trains and the source lacks stay fresh.

    Raises:
      UserError: a frozen module is missing there, or a module has other shapes.
    """
    source = run.config.start_from
    stored, book = _load(source)
    missing = [n for n in phase.names if n not in stored and n not in phase.trained]
    if missing or book is None:
        what = missing[0] if missing else "codebook"
        raise UserError(f"{source}: has no {what}, which phase {phase.name!r} needs")
    params = {
        name: _placed(name, stored[name], fresh.params[name], source) if name in stored else old
        for name, old in fresh.params.items()
    }
    codes = _placed("codebook", book, fresh.codebook, source)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(
        {name: params[name] for name in phase.trained}
    )
    return fresh.replace(params=params, codebook=codes, opt_state=opt_state)  # type: ignore[attr-defined]


def _load(source: str) -> tuple[Mapping[str, Any], Codebook | None]:
    if storage.is_bucket(source) or (Path(source) / "config.json").is_file():
        from lavit_jax.training.restore import restore

        found = restore(source)
        return found.params, found.codebook
    from lavit_jax.convert import published

    wanted = (published.VISUAL, "pixel_decoding")
    parts = published.parts_of(Path(source), known=wanted)
    loaded = published.load_published(Path(source), parts)
    return loaded.params, loaded.codebook


def _placed(name: str, stored: Any, fresh: Any, source: str) -> Any:
    """Stored arrays where the fresh ones lie."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (fresh, stored)
    )
    for path, leaf in ours.items():
        found = np.shape(theirs[path]) if path in theirs else None
        if found != leaf.shape:
            raise UserError(
                f"{source}: {name}{path} has shape {found}, but this config makes {leaf.shape}"
            )
    if len(theirs) > len(ours):
        extra = next(path for path in theirs if path not in ours)
        raise UserError(f"{source}: {name}{extra} is not part of this config's {name}")
    return jax.tree.map(
        lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding), stored, fresh
    )
