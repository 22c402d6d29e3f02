"""AdamW with warm-up, cosine decay, clipping, a weight-decay mask and averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

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


class Averaged(NamedTuple):
    """Running average of the trained parameters, kept with the optimizer's state.

    Attributes:
      steps: so far.
      params: the average.
    """

    steps: Array
    params: Any


def average_params(decay: float) -> optax.GradientTransformation:
    """Leaves updates alone and averages the parameters they lead to; stands last in a chain.

    Over the first steps it averages less, so that the start is soon forgotten.
    """

    def init(params: Any) -> Averaged:
        return Averaged(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Averaged, params: Any = None) -> tuple[Any, Averaged]:
        steps = state.steps + 1
        keep = jnp.minimum(decay, steps / (steps + 10.0))
        average = jax.tree.map(
            lambda old, now, step: keep * old + (1 - keep) * (now + step),
            state.params,
            params,
            updates,
        )
        return updates, Averaged(steps, average)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> dict[str, Any]:
    """The averaged parameters by module in a phase's optimizer state; empty where it has none."""
    found = jax.tree.leaves(opt_state, is_leaf=_is_averaged)
    return next((node.params for node in found if _is_averaged(node)), {})


def only_averaged(opt_state: Any, instead: Any) -> Any:
    """An optimizer state with `instead` for every array but the averaged parameters."""
    return jax.tree.map(
        lambda node: node if _is_averaged(node) else instead, opt_state, is_leaf=_is_averaged
    )


def _is_averaged(node: Any) -> bool:
    return isinstance(node, Averaged)


def make_optimizer(config: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """The transformation of one phase of `steps` steps; fields as in `configs/common.py`.

    A phase whose optimizer has `ema` averages its weights with that decay.
    """
    average = (average_params(config["ema"]),) if "ema" in config else ()
    return optax.chain(
        optax.clip_by_global_norm(config["clip"]),
        optax.adamw(
            learning_rate(config, steps),
            b1=config["b1"],
            b2=config["b2"],
            weight_decay=config["weight_decay"],
            mask=decay_mask,
        ),
        *average,
    )
