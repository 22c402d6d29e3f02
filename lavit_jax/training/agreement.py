"""One answer for all processes: stop at the same step, or none of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


class Agreement:
    """Whether any process wants to stop, asked by all of them once a step.

    With one process the answer is its own. With several it is that of the question before: the
    devices answer while they work on the next step, and nobody waits for it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: Array | None = None

    def __call__(self, mine: bool) -> bool:
        """Takes this process's wish and gives what all of them heed."""
        if jax.process_count() == 1:
            return mine
        before = self._asked
        wishes = np.full(self._mesh.local_mesh.size, mine, np.int32)
        self._asked = self._any(jax.make_array_from_process_local_data(self._sharding, wishes))
        return before is not None and bool(jax.device_get(before))
