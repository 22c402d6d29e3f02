"""Random parameters without compiling an initialiser."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_params(init: Callable[..., Any], *args: Any, seed: int = 0, gain: float = 1.0) -> Any:
    """Parameters shaped as `init(key, *args)` makes them, drawn by numpy.

    Matrices keep the size of what they map (times `gain`); scales are about one, biases small.
    """
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), *args))
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        noise = rng.normal(size=leaf.shape)
        if name == "scale":
            noise = 1 + 0.1 * noise
        elif name == "kernel":
            stacked = any(getattr(key, "key", "") == "blocks" for key in path)
            shape = leaf.shape[1:] if stacked else leaf.shape
            merged = path[-2].key.endswith("proj") and len(shape) == 3
            fan_in = np.prod(shape[:2]) if merged else shape[0]
            noise = gain * noise / np.sqrt(fan_in)
        elif name != "embedding":
            noise = 0.1 * noise
        return jnp.asarray(noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
