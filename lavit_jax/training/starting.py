"""Starts a run on the weights of others: work directories, converted or published checkpoints.

`config.start_from` names them, with commas between several: of two that have a module, the first
counts. The run stands on its own feet then: its checkpoints hold every module of its schedule, the
frozen ones too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.models.config import LavitConfig
from lavit_jax.training import weights
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState
from lavit_jax.training.weights import Weights

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

# Objectives that mean nothing without a trained tokenizer.
NEED_START = ("diffusion",)


def check(config: ConfigDict, phases: tuple[Phase, ...]) -> None:
    """What can be told before any work.

    Raises:
      UserError: the first phase needs trained weights and none are named, or they do not exist.
    """
    first = phases[0]
    if not sources(config) and first.config["objective"] in NEED_START:
        raise UserError(
            f"config.start_from is empty, but phase {first.name!r} trains on a trained tokenizer: "
            "name a finished work directory, --config.start_from=DIR"
        )
    for source in sources(config):
        weights.check(source)


def sources(config: ConfigDict) -> list[str]:
    """What `config.start_from` names."""
    return [name.strip() for name in config.get("start_from", "").split(",") if name.strip()]


def copy_text_model(config: ConfigDict, model: Path) -> None:
    """The text tokenizer of what this run starts from: its language model counts on it.

    Of several the last counts, as in TOKENIZER,LLAMA.
    """
    if model.exists():
        return
    found = [text for source in sources(config) if (text := weights.text_model(source)) is not None]
    if found:
        disk.write_bytes(model, found[-1])


def begin(
    run: Run,
    phase: Phase,
    fresh: TrainState,
    tx: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainState:
    """The first state of a run, on the weights `config.start_from` has.

    Modules that the phase trains and the sources lack stay fresh, and so does a codebook that it
    trains.

    Raises:
      UserError: a frozen module is missing there, or a module has other shapes.
    """
    params, found = modules(run, phase.names, fresh.params)
    absent = [n for n in phase.names if n not in found.params and n not in phase.trained]
    codes_frozen = "quantizer" in phase.names and "quantizer" not in phase.trained
    if absent or (codes_frozen and found.codebook is None):
        what = absent[0] if absent else "codebook"
        raise UserError(f"{run.config.start_from}: has no {what}, which phase {phase.name!r} needs")
    if "conditioner" in params and "conditioner" not in found.params:
        copy_merger(params)
    book = fresh.codebook
    if found.codebook is not None:
        book = _placed("codebook", found.codebook, fresh.codebook, run.config.start_from)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(
        {name: params[name] for name in phase.trained}
    )
    return fresh.replace(params=params, codebook=book, opt_state=opt_state)  # type: ignore[attr-defined]


def copy_merger(params: dict[str, Any]) -> None:
    """The language model's merger starts as a copy of the tokenizer's (SPEC 7)."""
    if "merger" in params:
        copied = jax.tree.map(jnp.copy, params["merger"])
        params["conditioner"] = {**params["conditioner"], "merger": copied}


def modules(
    run: Run, names: Collection[str], fresh: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """Modules as `config.start_from` has them, or fresh.

    Args:
      run: what stays the same through a run.
      names: of the modules.
      fresh: their fresh parameters.

    Returns:
      Parameters of all names where the fresh ones lie, and what the sources had.

    Raises:
      UserError: a module has other shapes there.
    """
    found, params = Weights({}, None), dict(fresh)
    for source in sources(run.config):
        wanted = [name for name in names if name not in found.params]
        if not wanted:
            break
        stored = weights.read(source, wanted, run.mesh)
        if "decoder" in wanted and "decoder" in stored.params:
            _check_decoder(run, stored.sizes, source)
        for name in wanted:
            if name in stored.params:
                found.params[name] = None  # what is placed need not be held twice
                params[name] = _placed(name, stored.params.pop(name), fresh[name], source)
        found = Weights(found.params, found.codebook or stored.codebook)
    return params, found


def _check_decoder(run: Run, theirs: LavitConfig | None, source: str) -> None:
    """Refuses a decoder of the other form: what it makes differs, its shapes do not."""
    ours = run.modules.config.decoder.norm_qk
    if theirs is not None and theirs.decoder.norm_qk != ours:
        raise UserError(
            f"{source}: its decoder has norm_qk={theirs.decoder.norm_qk}, but "
            f"config.model.decoder.norm_qk is {ours}"
        )


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
    return jax.tree.map(_as, stored, fresh)


def _as(new: Any, old: Any) -> Any:
    """An array in the dtype and the place of another; what other hosts hold is not fetched."""
    if isinstance(new, jax.Array):
        return jax.jit(lambda x: x.astype(old.dtype), out_shardings=old.sharding)(new)
    return jax.device_put(np.asarray(new, old.dtype), old.sharding)
