"""A phase's step with shapes instead of arrays, to be compiled without data or weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lavit_jax.models.lavit import Modules
from lavit_jax.parallel import rules
from lavit_jax.parallel.compiled import Program
from lavit_jax.training import state
from lavit_jax.training.objectives import make_objective
from lavit_jax.training.optimizer import make_optimizer
from lavit_jax.training.schedule import Phase

# Stacks of blocks (fields of `LavitConfig`) that each objective runs.
STACKS: dict[str, tuple[str, ...]] = {
    "contrastive": ("encoder", "text_tower"),
    "tokenizer": ("encoder", "merger", "decoder", "pixel_head"),
    "unified": ("encoder", "merger", "llm"),
    "diffusion": ("encoder", "merger", "decoder"),  # the U-Net stands in the program as it is
}


def phase_program(config: ConfigDict, phase: Phase, modules: Modules, mesh: Mesh) -> Program:
    """The step that `lavit train` compiles for a phase."""
    tx = make_optimizer(phase.config["optimizer"], phase.steps)
    shardings = state.state_shardings(modules, phase.names, tx, phase.trained, mesh)
    shapes = state.abstract_state(modules, phase.names, tx, phase.trained, config.seed)
    step = state.make_step(
        make_objective(modules, phase.config), tx, phase.trained, phase.config.get("accumulate", 1)
    )
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rules.batch_sharding(mesh))
        for name, (shape, dtype) in batch_shapes(config, phase, modules).items()
    }
    return Program(
        step, (placed_like(shapes, shardings), batch), (shardings, rules.replicated(mesh))
    )


def placed_like(shapes: Any, shardings: Any) -> Any:
    """Shapes with the shardings they will have."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def batch_shapes(
    config: ConfigDict, phase: Phase, modules: Modules
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and dtypes of a phase's batch over all processes, as `data/pipeline.py` makes it."""
    rows, c = phase.config["batch_size"], modules.config
    picture = (c.encoder.image_size, c.encoder.image_size, 3)
    if phase.config["objective"] != "unified":
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "images": ((rows, *picture), jnp.uint8),
            "index": ((rows,), jnp.int32),
        }
        if c.pixels is not None and c.pixels.size != c.encoder.image_size:
            shapes["pixels"] = ((rows, c.pixels.size, c.pixels.size, 3), jnp.uint8)
        if phase.config["objective"] == "contrastive":
            shapes["text"] = ((rows, c.text_tower.length), jnp.int32)
        return shapes
    tokens, slots = (rows, config.data.row_length), (rows, config.data.images_per_row)
    return {
        "ids": (tokens, jnp.int32),
        "positions": (tokens, jnp.int32),
        "segment_ids": (tokens, jnp.int32),
        "loss": (tokens, jnp.float32),
        "feature": (tokens, jnp.int32),
        "images": ((*slots, *picture), jnp.uint8),
        "keep": ((*slots, c.patches), jnp.uint8),
    }
