"""The device mesh."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from lavit_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over all devices; one axis may be -1 and takes what the others leave.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices()
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size > 0]))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"mesh axes must be positive, one at most -1, got {dict(zip(AXES, sizes))}")
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh {dict(zip(AXES, sizes))} needs {abs(int(np.prod(sizes)))} devices, "
            f"there are {len(devices)}; -1 for one axis takes what the others leave"
        )
    return Mesh(np.array(devices).reshape(sizes), AXES)
