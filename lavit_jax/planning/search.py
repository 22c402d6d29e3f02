"""Tries mesh shapes, batch sizes and remat policies, and ranks what fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lavit_jax.errors import UserError
from lavit_jax.parallel.mesh import AXES, mesh_sizes
from lavit_jax.parallel.topology import Topology
from lavit_jax.planning import jobs
from lavit_jax.planning.plan import Plan, fits, memory_of, plan

MORE_TENSOR = 2
MORE_OR_FEWER = 4
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
        factor: int = MORE_OR_FEWER,
    ) -> list[Plan]:
        """The best of each remat policy, most rows that fit; then other mesh shapes for the best.

        Few rows use a chip less well than many, so of each policy only the most that fit are
        costed; and a policy that keeps more leaves room for no more rows than the one before. Then
        the best gets more tensor parallelism, more copies and fewer, each for as long as it helps.

        Args:
          rows: a chip, from most to least.
          remat: policies, from least memory to most; by default all that differ.
          factor: so many times as many, or as few, copies of the parameters are tried at a time.

        Returns:
          The best plans that fit, the most useful tokens (or images) a second first.

        Raises:
          UserError: nothing fits.
        """
        if remat is None:
            remat = POLICIES[self.config.phases[self.name].objective]
        made = dict(self._down(rows, remat))
        if not made:
            raise UserError(
                f"{self.name} fits {self.topology.title} with none of the settings tried: more "
                "chips would fit"
            )
        for axis, times, over in (
            ("tensor", MORE_TENSOR, 1),
            ("data", factor, 1),
            ("data", 1, factor),
        ):
            self._climb(made, axis, times, over)
        return sorted(made.values(), key=_rate, reverse=True)[:SHOWN]

    def _climb(self, made: dict[Candidate, Plan], axis: str, times: int, over: int) -> None:
        """Goes on making an axis of the best setting's mesh larger or smaller while that helps."""
        while True:
            best = max(made, key=lambda each: _rate(made[each]))
            size, left = divmod(getattr(best, axis) * times, over)
            changes: dict[str, Any] = {axis: size}
            changed = dataclasses.replace(best, **changes)
            if left or changed in made:
                return
            if (found := self._planned(changed)) is None:
                return
            made[changed] = found
            if _rate(found) <= _rate(made[best]):
                return

    def _down(self, rows: Sequence[int], remat: Sequence[str]) -> Iterator[tuple[Candidate, Plan]]:
        """Of each policy, from least memory to most, the most rows that fit on the same mesh."""
        mesh = {**self.config.mesh, "slice": self.topology.slices}
        sizes = mesh_sizes([mesh.get(axis, 1) for axis in AXES], self.topology.chips)
        tensor, data = (sizes[AXES.index(axis)] for axis in ("tensor", "data"))
        left = list(rows)
        for policy in remat:
            found = None
            while left and found is None:
                candidate = Candidate(left[0], tensor, policy, data)
                found = self._planned(candidate)
                if found is None:
                    del left[0]
            if found is not None:
                yield candidate, found

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
        except jax.errors.JaxRuntimeError as error:  # not to lose hours of others to one
            self.say(f"{candidate}: the compiler fails ({str(error).splitlines()[0][:200]})")
            return None
        self.say(f"{candidate}: {made.seconds:.3f} s, MFU bound {made.mfu:.1%}")
        return made


def _rate(made: Plan) -> float:
    return (made.job.workload.tokens or made.job.workload.images) / made.seconds
