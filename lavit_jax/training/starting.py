"""Starts a run on the weights of others: work directories, converted or published checkpoints.

`config.start_from` names them, with commas between several: of two that have a module, the first
counts. The run stands on its own feet then: its checkpoints hold every module of its schedule, the
frozen ones too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lavit_jax import disk
from lavit_jax.errors import UserError
from lavit_jax.models.config import LavitConfig
from lavit_jax.parallel import rules
from lavit_jax.training import state, weights
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


def check_complete(run: Run, phase: Phase, found: Weights) -> None:
    """Checks that the sources have all that the first phase of a run does not train.

    Modules that it trains and the sources lack start fresh, and so does a codebook.

    Raises:
      UserError: a frozen module is missing there, or a frozen codebook.
    """
    absent = [n for n in phase.names if n not in found.params and n not in phase.trained]
    codes_frozen = "quantizer" in phase.names and "quantizer" not in phase.trained
    if absent or (codes_frozen and found.codebook is None):
        what = absent[0] if absent else "codebook"
        raise UserError(f"{run.config.start_from}: has no {what}, which phase {phase.name!r} needs")


def bare_state(run: Run, found: Weights) -> TrainState:
    """The first state of a run without parameters, on the codebook of the sources or a fresh one.

    Raises:
      UserError: the codebook has another shape there.
    """
    bare = jax.jit(
        lambda: state.init_state(run.modules, (), optax.identity(), (), run.config.seed),
        out_shardings=rules.replicated(run.mesh),
    )()
    if found.codebook is None:
        return bare
    book = _placed("codebook", found.codebook, _shapes(bare.codebook), run.config.start_from)
    return bare.replace(codebook=book)  # type: ignore[attr-defined]


def copy_merger(params: dict[str, Any], held: Mapping[str, Any]) -> None:
    """The language model's merger starts as a copy of the tokenizer's (SPEC 7).

    Args:
      params: new modules, the language model's among them; it gets the copy.
      held: other modules.
    """
    merger = params.get("merger", held.get("merger"))
    if merger is not None:
        where = jax.tree.map(lambda x: x.sharding, merger)
        copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=where)(merger)
        params["conditioner"] = {**params["conditioner"], "merger": copied}


def modules(
    run: Run, names: Collection[str], shardings: Mapping[str, Any]
) -> tuple[dict[str, Any], Weights]:
    """Modules as `config.start_from` has them.

    Args:
      run: what stays the same through a run.
      names: of the modules.
      shardings: where they go.

    Returns:
      Parameters of those that there are, and what the sources had.

    Raises:
      UserError: a module has other shapes there.
    """
    found, params = Weights({}, None), dict[str, Any]()
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
                shapes = nn.meta.unbox(state.abstract_params(run.modules, (name,))[name])
                ours = jax.tree.map(_shape, shapes, shardings[name])
                params[name] = _placed(name, stored.params.pop(name), ours, source)
        found = Weights(found.params, found.codebook or stored.codebook)
    return params, found


def _shape(like: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: _shape(x, x.sharding), tree)


def _check_decoder(run: Run, theirs: LavitConfig | None, source: str) -> None:
    """Refuses a decoder of the other form: what it makes differs, its shapes do not."""
    ours = run.modules.config.decoder.norm_qk
    if theirs is not None and theirs.decoder.norm_qk != ours:
        raise UserError(
            f"{source}: its decoder has norm_qk={theirs.decoder.norm_qk}, but "
            f"config.model.decoder.norm_qk is {ours}"
        )


def _placed(name: str, stored: Any, ours: Any, source: str) -> Any:
    """Stored arrays as ours are to be, which has shapes, dtypes and places."""
    wanted, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (ours, stored)
    )
    for path, leaf in wanted.items():
        found = np.shape(theirs[path]) if path in theirs else None
        if found != leaf.shape:
            raise UserError(
                f"{source}: {name}{path} has shape {found}, but this config makes {leaf.shape}"
            )
    if len(theirs) > len(wanted):
        extra = next(path for path in theirs if path not in wanted)
        raise UserError(f"{source}: {name}{extra} is not part of this config's {name}")
    stored = jax.tree.map(_on_host, stored, ours)
    # What other hosts hold is not fetched; all of a module moves at once.
    return jax.jit(
        lambda tree: jax.tree.map(lambda x, to: x.astype(to.dtype), tree, ours),
        out_shardings=jax.tree.map(lambda to: to.sharding, ours),
    )(stored)


def _on_host(stored: Any, to: jax.ShapeDtypeStruct) -> Any:
    """Arrays of the host go where they belong, and nowhere else on the way."""
    if isinstance(stored, jax.Array):
        return stored
    return jax.device_put(np.asarray(stored, to.dtype), to.sharding)
