"""Opens a trained work directory: the newest checkpoint's weights, ready for inference."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from lavit_jax.data.text import TextTokenizer
from lavit_jax.disk import read_json
from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.models.config import lavit_config
from lavit_jax.models.lavit import Modules
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training import storage
from lavit_jax.training.optimizer import averaged, only_averaged
from lavit_jax.training.run import abstract_state
from lavit_jax.training.saved import LEFT_OUT, Position, read_latest
from lavit_jax.training.schedule import make_schedule
from lavit_jax.training.storage import Storage


class Restored(NamedTuple):
    """What a work directory holds."""

    config: ConfigDict
    step: int
    modules: Modules
    params: dict[str, Any]
    codebook: Codebook
    text: TextTokenizer


class Opened(NamedTuple):
    """What a work directory holds beside its checkpoints."""

    config: ConfigDict
    modules: Modules
    text: TextTokenizer


def open_workdir(place: Storage) -> Opened:
    """Reads config and text tokenizer of a work directory; changes nothing.

    Raises:
      UserError: the directory is missing, was not made by `lavit train`, or has no checkpoint yet.
    """
    stored = place.local / "config.json"
    if not stored.is_file():
        raise UserError(
            f"{place.name} is not a work directory: no config.json in it; "
            "train one first (`lavit quickstart`) or pass --workdir"
        )
    config = ConfigDict(read_json(stored))
    model = place.local / "text.model"
    if not place.checkpoints.is_dir() or not model.is_file():
        raise UserError(f"{place.name} has no checkpoint yet; let training reach its first save")
    text = TextTokenizer(model)
    return Opened(
        config, lavit.build_modules(lavit_config(config.model.to_dict(), text.vocab_size)), text
    )


def restore(workdir: str | os.PathLike[str], mesh: Mesh | None = None) -> Restored:
    """Reads config, text tokenizer and newest checkpoint of a work directory; changes nothing.

    Where a phase averages its weights, the averaged ones are given.

    Args:
      workdir: of a training run; also `gs://BUCKET/FOLDER`.
      mesh: where the parameters go; by default every device holds all of them.

    Raises:
      UserError: as `open_workdir`, or no checkpoint is complete.
    """
    place = storage.to_read(workdir)
    config, modules, text = open_workdir(place)
    phases = make_schedule(config)
    mesh = make_mesh() if mesh is None else mesh

    def wanted(at: Position) -> Any:
        state: Any = abstract_state(modules, phases, mesh, config.seed, at["step"])
        # Moments take twice the memory of the parameters.
        return state.replace(opt_state=only_averaged(state.opt_state, LEFT_OUT))

    found = read_latest(place.checkpoints, wanted)
    if found is None:
        raise UserError(f"{place.checkpoints} has no complete checkpoint yet")
    params = {**found.state.params, **averaged(found.state.opt_state)}
    return Restored(config, found.step, modules, params, found.state.codebook, text)
