"""AdamW with warm-up, cosine decay, clipping and a weight-decay mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

DECAYED = ("kernel", "embedding")


def decay_mask(params: Any) -> Any:
    """True for kernels and embedding tables; norms, biases and positions are not decayed."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        return getattr(path[-1], "key", None) in DECAYED

    return jax.tree_util.tree_map_with_path(decayed, params)


def learning_rate(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, cosine to `final_share` of it at the last step."""
    warmup = min(config["warmup"], max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config["learning_rate"],
        peak_value=config["learning_rate"],
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config["learning_rate"] * config["final_share"],
    )


def make_optimizer(config: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """The transformation of one phase of `steps` steps; fields as in `configs/common.py`."""
    return optax.chain(
        optax.clip_by_global_norm(config["clip"]),
        optax.adamw(
            learning_rate(config, steps),
            b1=config["b1"],
            b2=config["b2"],
            weight_decay=config["weight_decay"],
            mask=decay_mask,
        ),
    )
