"""How long a step takes at least, from what it computes, moves and sends."""

from __future__ import annotations

import dataclasses

from lavit_jax.parallel import collectives
from lavit_jax.parallel.compiled import Cost
from lavit_jax.parallel.topology import Chip


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each resource of a chip is busy at its peak rate.

    Attributes:
      compute: matrix units, in bfloat16; the compiler does not say which flops are of int8.
      memory: HBM.
      wires: links within a slice.
      slices: network between slices.
    """

    compute: float
    memory: float
    wires: float
    slices: float

    @property
    def at_least(self) -> float:
        """If everything overlaps with everything."""
        return max(self.compute, self.memory, self.wires, self.slices)

    @property
    def at_most(self) -> float:
        """If nothing overlaps."""
        return self.compute + self.memory + self.wires + self.slices


def roofline(cost: Cost, chip: Chip, kernel_flops: float = 0.0) -> Roofline:
    """The bounds of one step.

    Args:
      cost: of one chip.
      chip: its rates.
      kernel_flops: of Pallas kernels, which the compiler does not count.
    """
    return Roofline(
        (cost.flops + kernel_flops) / chip.flops,
        cost.bytes / chip.hbm_rate,
        collectives.sent(cost.sent, between_slices=False) / chip.wire_rate,
        collectives.sent(cost.sent, between_slices=True) / chip.slice_rate,
    )


def step_seconds(cost: Cost, chip: Chip, kernel_flops: float = 0.0) -> tuple[float, str]:
    """The step time that throughput is stated for, and where it comes from.

    The compiler's estimate where it has one for every operation (v5p); elsewhere the larger of
    compute and memory, plus what is sent between slices, which little overlaps.
    """
    if chip.name == "v5p" and cost.seconds > 0:
        return cost.seconds, "compiler"
    bounds = roofline(cost, chip, kernel_flops)
    return max(bounds.compute, bounds.memory, bounds.wires) + bounds.slices, "roofline"
