"""Devices of TPU slices as far as a mesh asks them, without a TPU or its compiler."""

import dataclasses
import itertools

from lavit_jax.parallel.topology import Topology


@dataclasses.dataclass(frozen=True)
class Device:
    """Stands for a chip, at its place in a slice."""

    id: int
    device_kind: str
    coords: tuple[int, ...]
    slice_index: int
    process_index: int
    platform: str = "tpu"
    core_on_chip: int = 0


def devices(topology: Topology) -> list[Device]:
    """Those of all slices of a topology."""
    places = itertools.product(range(topology.slices), *map(range, topology.shape))
    return [
        Device(
            number, f"TPU {topology.chip.name}", (*at, 0)[:3], slice, number // topology.host_chips
        )
        for number, (slice, *at) in enumerate(places)
    ]
