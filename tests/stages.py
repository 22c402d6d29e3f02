"""Every training stage as a small problem: parameters, a batch, and its loss and gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lavit_jax.models import lavit, quantizer
from lavit_jax.models.config import lavit_config
from lavit_jax.parallel import feed, rules
from lavit_jax.parallel.mesh import placed
from lavit_jax.training import state
from lavit_jax.training.objectives import READS, make_objective
from random_params import random_params
from tiny import TEXT_VOCAB, mini_config

ROWS, LENGTH, SLOTS = 8, 32, 2
PHASES = {
    "contrastive": "encoder",
    "tokenizer": "quantize",
    "unified": "unified",
    "diffusion": "pixels",
}


def config(stage: str) -> ConfigDict:
    """The small config that has a stage."""
    name = "twemoji_pixels.py:mini" if stage == "diffusion" else "mini.py"
    return mini_config(config=f"configs/{name}")


@functools.cache
def modules(stage: str) -> lavit.Modules:
    """A stage's with single layers and a vocabulary looked at in two parts."""
    model = config(stage).model.to_dict()
    for part in ("encoder", "merger", "decoder", "pixel_head", "text_tower", "llm"):
        model[part] |= {"depth": 1}
    model["llm"] |= {"vocab_chunks": 2}
    return lavit.build_modules(lavit_config(model, TEXT_VOCAB))


def phase(stage: str) -> dict[str, Any]:
    """A phase of each objective that trains all it may."""
    found: dict[str, Any] = config(stage).phases[PHASES[stage]].to_dict()
    return found | {"condition_drop": 0.3} if stage == "diffusion" else found


def params(stage: str) -> dict[str, Any]:
    """The same on every mesh."""
    return random_params(lambda key: lavit.init_params(modules(stage), READS[stage], key))


def batch(stage: str) -> dict[str, np.ndarray]:
    """The same on every mesh: all rows of all processes."""
    rng, c = np.random.default_rng(1), modules(stage).config
    side = c.encoder.image_size
    if stage != "unified":
        return {
            "images": rng.integers(0, 256, (ROWS, side, side, 3), np.uint8),
            "text": rng.integers(1, TEXT_VOCAB, (ROWS, c.text_tower.length), np.int32),
            "index": np.arange(ROWS, dtype=np.int32),
        }
    keep = (rng.random((ROWS, SLOTS, c.patches)) < 0.4).astype(np.uint8)
    keep[..., 0] = 1
    feature = np.full((ROWS, LENGTH), -1, np.int32)
    for row in range(ROWS):
        kept = min(int(keep[row, 1].sum()), 8)
        feature[row, 17 : 17 + kept] = c.patches + np.arange(kept)
    return {
        "ids": rng.integers(1, c.llm.vocab, (ROWS, LENGTH), np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (ROWS, 2)),
        "segment_ids": np.repeat(np.tile(np.array([1, 2], np.int32), (ROWS, 1)), 16, axis=1),
        "loss": (rng.random((ROWS, LENGTH)) < 0.7).astype(np.float32),
        "feature": feature,
        "images": rng.integers(0, 256, (ROWS, SLOTS, side, side, 3), np.uint8),
        "keep": keep,
    }


def loss_and_gradients(stage: str, mesh: Mesh, mine: slice = slice(None)) -> tuple[float, Any]:
    """On a mesh; this process gives its rows `mine` of the batch.

    Returns:
      The loss, and gradients of all trained parameters on the host.
    """
    found, of_stage = phase(stage), modules(stage)
    objective, trained = make_objective(of_stage, found), tuple(found["modules"])
    shardings = state.param_shardings(of_stage, READS[stage], mesh)
    book = quantizer.random_codebook(of_stage.config.quantizer, jax.random.key(3))

    def loss_of(train: Any, rest: Any, batch: Any) -> Any:
        key = jax.random.key(5)
        return objective({**rest, **train}, jax.tree.map(jnp.asarray, book), batch, key)[0]

    with placed(mesh):
        everything = jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(
                x.shape, sharding, lambda index, x=x: np.asarray(x)[index]
            ),
            params(stage),
            shardings,
        )
        train = {name: everything.pop(name) for name in trained}
        rows = feed.to_mesh({name: x[mine] for name, x in batch(stage).items()}, mesh)
        whole = rules.replicated(mesh)
        step = jax.jit(jax.value_and_grad(loss_of), out_shardings=(whole, whole))
        loss, gradients = jax.tree.map(
            lambda x: np.asarray(x.addressable_data(0)), step(train, everything, rows)
        )
    return float(loss), gradients
