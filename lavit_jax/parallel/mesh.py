"""The device mesh, and making it the one that models are placed on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh

from lavit_jax.errors import UserError
from lavit_jax.models import placement
from lavit_jax.parallel import rules

# Outermost first: slices are joined by the slowest network, tensor neighbours by the fastest.
AXES = ("slice", "data", "fsdp", "sequence", "tensor")


def make_mesh(
    *,
    slice: int = 0,
    data: int = -1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh over devices; one axis may be -1 and takes what the others leave.

    Args:
      slice: TPU slices joined by the data centre network; parameters are copied to each. 0: as many
        as the devices form.
      data: copies of the parameters in a slice.
      fsdp: parts that parameters, optimizer state and EMA are split into.
      sequence: parts that a row's tokens are split into.
      tensor: parts that heads, MLP and vocabulary are split into.
      devices: by default all of them.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    wanted = (slice or len(_slices(devices)), data, fsdp, sequence, tensor)
    sizes = mesh_sizes(wanted, len(devices))
    return Mesh(_arrange(sizes, devices), AXES)


def mesh_sizes(wanted: Sequence[int], devices: int) -> tuple[int, ...]:
    """The size of each of `AXES`, -1 replaced.

    Raises:
      UserError: they do not multiply to the number of devices.
    """
    named = dict(zip(AXES, wanted))
    shown = ", ".join(f"{name}={size}" for name, size in named.items() if size != 1) or "data=1"
    if list(wanted).count(-1) > 1 or any(size == 0 or size < -1 for size in wanted):
        raise UserError(f"config.mesh axes must be positive, one at most -1, got {shown}")
    known = math.prod(size for size in wanted if size > 0)
    sizes = tuple(devices // known if size == -1 else size for size in wanted)
    if math.prod(sizes) == devices:
        return sizes
    free = next((name for name, size in named.items() if size == -1), "data")
    rest = math.prod(size for name, size in named.items() if name != free and size > 0)
    if devices % rest == 0:
        raise UserError(
            f"config.mesh {shown} needs {known} devices, there are {devices}: "
            f"{free}={devices // rest} would fit"
        )
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    raise UserError(
        f"config.mesh {shown}: its axes take a multiple of {rest} devices, there are {devices}: "
        f"axes whose product is one of {', '.join(map(str, divisors))} would fit"
    )


def _arrange(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Devices in mesh order: neighbours on the wire are neighbours on the inner axes."""
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)
    groups = _slices(devices)
    if len(groups) == 1:
        groups = list(np.array(devices, object).reshape(sizes[0], -1))
    if len(groups) != sizes[0]:
        raise UserError(
            f"config.mesh.slice={sizes[0]}, but the devices form {len(groups)} slices: "
            f"slice={len(groups)} would fit"
        )
    inner = sizes[1:]
    return np.stack(
        [
            mesh_utils.create_device_mesh(inner, list(group), allow_split_physical_axes=True)
            for group in groups
        ]
    )


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice; only TPUs form several."""
    if devices[0].platform != "tpu":
        return [list(devices)]
    by_slice: dict[int, list[Any]] = {}
    for device in devices:
        by_slice.setdefault(slice_of(device), []).append(device)
    return [by_slice[index] for index in sorted(by_slice)]


def slice_of(device: Any) -> int:
    """The slice a device belongs to; only multi-slice topologies number them."""
    return getattr(device, "slice_index", None) or 0


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """How many parts a batch's rows are split into."""
    return math.prod(mesh.shape[axis] for axis in rules.BATCH_AXES)


@contextlib.contextmanager
def placed(mesh: Mesh) -> Iterator[None]:
    """Programs traced inside place their activations on this mesh, by the table of rules."""
    with jax.set_mesh(mesh), placement.using(rules.RULES):
        yield
