"""Opens a trained work directory: the newest checkpoint's weights, ready for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.models.config import lavit_config
from lavit_jax.models.lavit import Modules
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training.checkpoints import read_json, read_latest
from lavit_jax.training.optimizer import averaged
from lavit_jax.training.run import abstract_state
from lavit_jax.training.schedule import make_schedule


class Restored(NamedTuple):
    """What a work directory holds."""

    config: ConfigDict
    step: int
    modules: Modules
    params: dict[str, Any]
    codebook: Codebook
    text: TextTokenizer


def restore(workdir: Path) -> Restored:
    """Reads config, text tokenizer and newest checkpoint of a work directory; changes nothing.

    Where a phase averages its weights, the averaged ones are given.

    Raises:
      UserError: the directory is missing, was not made by `lavit train`, or has no checkpoint yet.
    """
    stored = workdir / "config.json"
    if not stored.is_file():
        raise UserError(
            f"{workdir} is not a work directory: no config.json in it; "
            "train one first (`lavit quickstart`) or pass --workdir"
        )
    config = ConfigDict(read_json(stored))
    checkpoint_dir, model = workdir / "checkpoints", workdir / "text.model"
    if not checkpoint_dir.is_dir() or not model.is_file():
        raise UserError(f"{workdir} has no checkpoint yet; let the training reach its first save")
    text = TextTokenizer(model)
    modules = lavit.build_modules(lavit_config(config.model.to_dict(), text.vocab_size))
    phases = make_schedule(config)
    mesh = make_mesh(data=len(jax.devices()))
    found = read_latest(
        checkpoint_dir,
        lambda place: abstract_state(modules, phases, mesh, config.seed, place["step"]),
    )
    if found is None:
        raise UserError(f"{checkpoint_dir} has no complete checkpoint yet")
    params = {**found.state.params, **averaged(found.state.opt_state)}
    return Restored(config, found.step, modules, params, found.state.codebook, text)
