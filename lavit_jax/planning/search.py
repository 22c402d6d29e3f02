"""Tries mesh shapes, batch sizes and remat policies, and ranks what fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from lavit_jax.errors import UserError
from lavit_jax.parallel.mesh import AXES, mesh_sizes
from lavit_jax.parallel.topology import Topology
from lavit_jax.planning import jobs
from lavit_jax.planning.plan import Plan, fits, memory_of, plan

TENSOR = (1, 2, 4)
MORE_OR_FEWER = 8
# From least memory to most.
REMAT = ("full", "context", "projections", "attention", "most", "dots", "none")
# Those worth trying: vision blocks are small beside the rest of their step.
POLICIES = {
    "unified": REMAT,
    "tokenizer": ("full", "context", "dots", "none"),
    "contrastive": ("full", "none"),
    "diffusion": ("full", "none"),
}
ROWS_PER_CHIP = (8, 4, 2, 1)
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting.

    Attributes:
      rows_per_chip: of the batch.
      tensor: chips that share heads, MLP and vocabulary.
      remat: policy of the blocks that the phase trains.
      data: copies of the parameters in a slice; each is split over the chips that are left.
    """

    rows_per_chip: int
    tensor: int
    remat: str
    data: int


def apply(config: ConfigDict, name: str, found: Candidate, topology: Topology) -> ConfigDict:
    """The config with a candidate's settings."""
    changed = config.copy_and_resolve_references()
    changed.mesh.update({"data": found.data, "fsdp": -1, "tensor": found.tensor})
    phase = changed.phases[name]
    phase.batch_size = found.rows_per_chip * topology.chips
    if phase.objective == "unified":
        changed.model.llm.remat = changed.model.merger.remat = found.remat
    elif phase.objective == "diffusion":
        changed.model.pixels.unet.remat = found.remat == "full"
    elif phase.objective == "contrastive":
        changed.model.encoder.remat = changed.model.text_tower.remat = found.remat
    else:
        changed.model.merger.remat = changed.model.decoder.remat = found.remat
    return changed


@dataclasses.dataclass(frozen=True)
class Search:
    """Plans of one phase in many settings, compiled with less effort (`compiled.QUICK`).

    Attributes:
      config: the experiment.
      name: of the phase.
      topology: where.
      devices: its devices.
      say: told what is going on.
    """

    config: ConfigDict
    name: str
    topology: Topology
    devices: Sequence[Any]
    say: Callable[[str], None]

    def run(
        self,
        rows: Sequence[int] = ROWS_PER_CHIP,
        remat: Sequence[str] | None = None,
        tensor: Sequence[int] = TENSOR,
        factor: int = MORE_OR_FEWER,
    ) -> list[Plan]:
        """The best of each remat policy, most rows that fit; then other mesh shapes for the best.

        Few rows use a chip less well than many, so of each policy only the most that fit are
        costed; and a policy that keeps more leaves room for no more rows than the one before.

        Args:
          rows: a chip, from most to least.
          remat: policies, from least memory to most; by default all that differ.
          tensor: chips that share heads, MLP and vocabulary.
          factor: so many times as many, or as few, copies of the parameters are tried.

        Returns:
          The best plans that fit, the most useful tokens (or images) a second first.

        Raises:
          UserError: nothing fits.
        """
        if remat is None:
            remat = POLICIES[self.config.phases[self.name].objective]
        copies = self._copies()
        made = list(self._down(rows, remat, tensor[0], copies))
        shapes = [(parts, copies) for parts in tensor[1:]] + [(tensor[0], copies * factor)]
        if copies % factor == 0:
            shapes.append((tensor[0], copies // factor))
        for parts, data in shapes if made else ():
            best = max(made, key=_rate).job.settings
            changed = Candidate(int(best["rows_per_chip"]), parts, best["remat"], data)
            if (other := self._planned(changed)) is not None:
                made.append(other)
        if not made:
            raise UserError(
                f"{self.name} fits {self.topology.title} with none of the settings tried: more "
                "chips would fit"
            )
        return sorted(made, key=_rate, reverse=True)[:SHOWN]

    def _copies(self) -> int:
        """What the config's mesh has along `data` on this topology."""
        mesh = {**self.config.mesh, "slice": self.topology.slices}
        sizes = mesh_sizes([mesh.get(axis, 1) for axis in AXES], self.topology.chips)
        return sizes[AXES.index("data")]

    def _down(
        self, rows: Sequence[int], remat: Sequence[str], tensor: int, data: int
    ) -> Iterator[Plan]:
        """Of each policy, from least memory to most, the plan with the most rows that fit."""
        left = list(rows)
        for policy in remat:
            found = None
            while left and found is None:
                found = self._planned(Candidate(left[0], tensor, policy, data))
                if found is None:
                    del left[0]
            if found is not None:
                yield found

    def _planned(self, candidate: Candidate) -> Plan | None:
        """The plan of a setting; None where it is impossible or does not fit."""
        try:
            changed = apply(self.config, self.name, candidate, self.topology)
            job = jobs.make_job(changed, self.name, self.topology, self.devices)
            memory = memory_of(job, quick=True)
            if not fits(memory, self.topology):
                self.say(f"{candidate}: {memory.peak / 1e9:.1f} GB do not fit")
                return None
            made = plan(job, self.topology, memory=memory, quick=True)
        except UserError as error:
            self.say(f"{candidate}: {error}")
            return None
        self.say(f"{candidate}: {made.seconds:.3f} s, MFU bound {made.mfu:.1%}")
        return made


def _rate(made: Plan) -> float:
    return (made.job.workload.tokens or made.job.workload.images) / made.seconds
