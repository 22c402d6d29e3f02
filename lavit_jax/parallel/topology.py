"""TPU topologies by the names they are sold under, and what a chip of each kind can do."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from lavit_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip's limits, per second where not said otherwise.

    Attributes:
      name: of the generation, as libtpu spells it.
      flops: bfloat16 operations at most.
      hbm_bytes: memory.
      hbm_rate: bytes to and from it.
      wire_rate: bytes sent to neighbours, all links together (each way counted once).
      slice_rate: bytes sent to other slices, a chip's share of its host's network.
      axes: dimensions of the torus.
      numbered_by: what the number in a product name counts per chip.
      most: chips of the largest slice.
      hosts: virtual cores of a host by its number of chips.
      fused: whether the compiler has to be told that a chip's two cores are one device.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_rate: float
    wire_rate: float
    slice_rate: float
    axes: int
    numbered_by: int
    most: int
    hosts: Mapping[int, int] = dataclasses.field(hash=False)
    fused: bool = False

    def usable(self, share: float = 1.0) -> float:
        """Bytes of memory, or a share of them."""
        return self.hbm_bytes * share


# Peaks and memory as Google states them; rates of wires from the links of a chip (4.5e10 bytes each
# way on v4 and v5e, 9e10 on v5p and v6e), of the network between slices from 4 or 8 chips a host.
# Hosts are Google's machine types, such as ct5p-hightpu-4t.
CHIPS: dict[str, Chip] = {
    "v4": Chip("v4", 275e12, 32e9, 1.2e12, 2.7e11, 6.25e9, 3, 2, 4096, {4: 240}, fused=True),
    "v5e": Chip("v5e", 197e12, 16e9, 0.82e12, 1.8e11, 3.1e9, 2, 1, 256, {1: 24, 4: 112, 8: 224}),
    "v5p": Chip("v5p", 459e12, 95e9, 2.77e12, 5.4e11, 6.25e9, 3, 2, 6144, {4: 208}),
    "v6e": Chip("v6e", 918e12, 32e9, 1.64e12, 3.6e11, 12.5e9, 2, 1, 256, {1: 44, 4: 180, 8: 180}),
}
# Shapes that are sold, by axes of the torus; of three axes also boxes of whole cubes of `CUBE`^3.
SHAPES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
    3: ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)),
}
CUBE = 4
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "trillium": "v6e"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several alike.

    Attributes:
      name: as the user wrote it.
      chip: its kind.
      shape: chips along each axis of the torus.
      slices: how many.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        total = self.slices
        for size in self.shape:
            total *= size
        return total

    @property
    def host_chips(self) -> int:
        """Chips of a host: all of a slice that fits one, else 4, as in every larger slice."""
        chips = self.chips // self.slices
        return chips if chips in self.chip.hosts else 4

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return -(-self.chips // self.host_chips)

    @property
    def host_cores(self) -> int:
        """Virtual cores of a host."""
        return self.chip.hosts[self.host_chips]

    @property
    def libtpu_name(self) -> str:
        """What the compiler calls one slice."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def title(self) -> str:
        """For people: name and number of slices."""
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    def devices(self) -> list[Any]:
        """The described devices, for a mesh to compile on; no TPU is needed.

        Raises:
          UserError: libtpu is missing or does not know this shape.
        """
        # No TPU is touched: do not look for one, and do not lock it against other processes.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        more: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.chip.fused:
            more["chip_config_name"] = "megacore"
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=self.libtpu_name, **more
            )
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            missing = not (importlib.util.find_spec("libtpu") or "TPU_LIBRARY_PATH" in os.environ)
            raise UserError(
                f"--topology {self.name}: the TPU compiler is not usable here ({reason})"
                + ("; `pip install libtpu` brings it" if missing else "")
            ) from error
        return list(described.devices)


def parse(name: str, slices: int = 1) -> Topology:
    """A topology of a product name ("v5p-128", "v5litepod-256") or a shape ("v5p:4x4x4").

    Raises:
      UserError: an unknown name, or a size that is not sold.
    """
    kinds = ", ".join(CHIPS)
    match = re.fullmatch(r"([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)+))", name.lower())
    kind = ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in CHIPS:
        raise UserError(
            f"--topology {name!r} is not known: expected a product name such as v5p-128 or "
            f"v5e-256, or a shape such as v5p:4x4x4, of {kinds}"
        )
    chip = CHIPS[kind]
    if match[3]:
        shape = tuple(map(int, match[3].split("x")))
        if not _sold(chip, shape):
            shapes = ", ".join("x".join(map(str, shape)) for shape in SHAPES[chip.axes])
            more = f", and multiples of {CUBE} along each axis up to {chip.most} chips"
            raise UserError(
                f"--topology {name}: no such shape; {match[1]} has {shapes}"
                + (more if chip.axes == 3 else "")
            )
        return Topology(name, chip, shape, slices)
    count = int(match[2])
    found = None if count % chip.numbered_by else _shape(chip, count // chip.numbered_by)
    if found is None:
        numbers = [math.prod(shape) * chip.numbered_by for shape in SHAPES[chip.axes]]
        sizes = ", ".join(f"{match[1]}-{number}" for number in numbers)
        cube, most = (chips * chip.numbered_by for chips in (CUBE**3, chip.most))
        more = f", and multiples of {cube} up to {match[1]}-{most}"
        raise UserError(
            f"--topology {name}: no such size; there are {sizes}" + (more if chip.axes == 3 else "")
        )
    return Topology(name, chip, found, slices)


def _sold(chip: Chip, shape: tuple[int, ...]) -> bool:
    """Whether there are slices of this shape."""
    if shape in SHAPES[chip.axes]:
        return True
    cubes = len(shape) == chip.axes == 3 and not any(size % CUBE for size in shape)
    return cubes and 0 < math.prod(shape) <= chip.most


def _shape(chip: Chip, chips: int) -> tuple[int, ...] | None:
    """The shape that so many chips are sold in: of cubes the squarest box."""
    for shape in SHAPES[chip.axes]:
        if math.prod(shape) == chips:
            return shape
    cubes, left = divmod(chips, CUBE**3)
    if left or chip.axes != 3 or not 0 < chips <= chip.most:
        return None
    boxes = (
        (a, b, cubes // (a * b))
        for a in range(1, math.isqrt(cubes) + 1)
        for b in range(a, math.isqrt(cubes // a) + 1)
        if cubes % (a * b) == 0
    )
    best = min(boxes, key=lambda box: (box[2], sum(box)))
    return tuple(CUBE * size for size in best)
