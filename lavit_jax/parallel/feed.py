"""Host arrays onto the mesh and back, with one process or many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from lavit_jax.parallel import rules


def to_mesh(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Global arrays of which this process gave its own rows."""
    sharding = rules.batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def to_host(tree: Any, mesh: Mesh) -> Any:
    """Whole numpy arrays on every process, of arrays that may lie in parts on all of them."""
    whole = jax.jit(lambda x: x, out_shardings=rules.replicated(mesh))(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)
