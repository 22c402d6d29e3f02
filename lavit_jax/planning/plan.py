"""Plans one program on one topology: compiles it, reads the compiler's answers, does the sums.

Memory is that of the real program, whose layers are loops. Its cost is put together from programs
with one and with two layers of each stack in straight lines, because the compiler counts the body
of a loop once: cost = one of each + (depth - 1) times what a second layer added.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from lavit_jax.models import lavit
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.lavit import Modules
from lavit_jax.parallel import collectives, compiled
from lavit_jax.parallel.compiled import Cost, Memory, Program
from lavit_jax.parallel.mesh import AXES
from lavit_jax.parallel.roofline import Roofline, roofline, step_seconds
from lavit_jax.parallel.topology import Topology
from lavit_jax.planning.workload import Workload

SPARE = 0.10  # of HBM, for the runtime and fragmentation: a plan that leaves less does not fit

Make = Callable[[Modules], Program]


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to plan.

    Attributes:
      name: of the phase, or of the part of generation.
      modules: the model at full depth.
      stacks: fields of `LavitConfig` whose layers it runs.
      make: builds the program of modules of any depth.
      mesh: where it runs.
      workload: of one step.
      steps: of the whole run; 0 where there is no such thing.
      settings: what a reader wants to know of it: rows, remat policy.
      light: the model in whose program layers are added one by one; where most of the model is no
        stack, one with less of that, for what a layer adds is the same beside it. By default
        `modules.config`.
      objective: of the phase; "generation" of parts of that.
    """

    name: str
    modules: Modules
    stacks: tuple[str, ...]
    make: Make
    mesh: Mesh
    workload: Workload
    steps: int
    settings: Mapping[str, Any]
    light: LavitConfig | None = None
    objective: str = "unified"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a job takes on a topology; bytes, flops and seconds of one chip and one step.

    Attributes:
      job: what was planned.
      topology: where.
      params: bytes of parameters.
      optimizer: bytes of optimizer state.
      memory: of the whole program.
      cost: of the whole depth.
      bounds: by the chip's rates.
      seconds: step time that throughput is stated for.
      seconds_by: "compiler" or "roofline".
      quick: whether it was compiled with less effort (`compiled.QUICK`).
      compile_seconds: all compilations together.
    """

    job: Job
    topology: Topology
    params: int
    optimizer: int
    memory: Memory
    cost: Cost
    bounds: Roofline
    seconds: float
    seconds_by: str
    quick: bool
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether it leaves `SPARE` of HBM free."""
        return fits(self.memory, self.topology)

    @property
    def mfu(self) -> float:
        """The share of the peak that useful model flops take; see `workload`."""
        peak = self.topology.chip.flops * self.topology.chips
        return self.job.workload.model_flops / (self.seconds * peak)

    @property
    def chip_hours(self) -> float:
        """Of the whole run."""
        return self.job.steps * self.seconds * self.topology.chips / 3600


def plan(
    job: Job, topology: Topology, *, memory: Memory | None = None, quick: bool = False
) -> Plan:
    """Compiles a job and puts its plan together.

    Args:
      job: what is planned.
      topology: where.
      memory: what it takes, where that is known.
      quick: compiles with less effort, see `compiled.QUICK`.
    """
    begun = time.monotonic()
    program = _whole(job)
    one = None
    if memory is None and job.light is not None:
        memory, one = compiled.both(program, job.mesh, quick=quick)
    elif memory is None:
        memory = compiled.memory(program, job.mesh, quick=quick)
    total = cost(job, one, quick=quick)
    kernel = job.workload.kernel_flops / topology.chips
    seconds, by = step_seconds(total, topology.chip, kernel)
    params, optimizer = _held(program)
    return Plan(
        job,
        topology,
        params,
        optimizer,
        memory,
        total,
        roofline(total, topology.chip, kernel),
        seconds,
        by,
        quick,
        time.monotonic() - begun,
    )


def _whole(job: Job) -> Program:
    """The program that runs, its layers as loops."""
    return job.make(lavit.build_modules(job.modules.config.rolled()))


def memory_of(job: Job, *, quick: bool = False) -> Memory:
    """What the whole program takes."""
    return compiled.memory(_whole(job), job.mesh, quick=quick)


def fits(memory: Memory, topology: Topology) -> bool:
    """Whether it leaves `SPARE` of HBM free."""
    return memory.peak <= topology.chip.hbm_bytes * (1 - SPARE)


def cost(job: Job, one: Cost | None = None, *, quick: bool = False) -> Cost:
    """The cost at full depth.

    Args:
      job: what is planned.
      one: of the whole program, whose loops count as one layer; where layers are little of it, that
        is near enough. By default that of a layer of each stack in straight lines.
      quick: compiles with less effort, see `compiled.QUICK`.
    """

    def measured(config: LavitConfig, depths: Mapping[str, int]) -> Cost:
        modules = lavit.build_modules(straight(config, depths))
        return compiled.cost(job.make(modules), job.mesh, quick=quick)

    whole = job.modules.config
    light = job.light or whole
    ones = dict.fromkeys(job.stacks, 1)
    if one is None:
        one = measured(whole, ones)
    parts = [(1.0, one)]
    deep = {name: getattr(whole, name).depth for name in job.stacks}
    deep = {name: depth for name, depth in deep.items() if depth > 1}
    alone = one if light is whole or not deep else measured(light, ones)
    for stack, depth in deep.items():
        two = measured(light, {**ones, stack: 2})
        parts += [(depth - 1.0, two), (1.0 - depth, alone)]
    return Cost.combine(parts)


def straight(config: LavitConfig, depths: Mapping[str, int]) -> LavitConfig:
    """A model of other depths whose layers stand in the program one after the other."""
    return _with(config, {name: {"depth": n, "unroll": n} for name, n in depths.items()})


def _with(config: LavitConfig, changes: Mapping[str, Mapping[str, Any]]) -> LavitConfig:
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **fields)
            for name, fields in changes.items()
        },
    )


def _held(program: Program) -> tuple[int, int]:
    """Bytes of parameters and of optimizer state among the arguments of a step."""
    state = program.args[0]
    if hasattr(state, "opt_state"):
        return compiled.shard_bytes(state.params), compiled.shard_bytes(state.opt_state)
    return compiled.shard_bytes(state), 0


def to_json(found: Plan) -> dict[str, Any]:
    """Everything, for programs."""
    job, work, memory = found.job, found.job.workload, found.memory
    return {
        "name": job.name,
        "topology": found.topology.name,
        "slices": found.topology.slices,
        "chips": found.topology.chips,
        "mesh": {axis: job.mesh.shape[axis] for axis in AXES},
        "settings": dict(job.settings),
        "params_bytes": found.params,
        "optimizer_bytes": found.optimizer,
        "activation_bytes": memory.peak - memory.arguments,
        "peak_bytes": memory.peak,
        "hbm_bytes": found.topology.chip.hbm_bytes,
        "fits": found.fits,
        "flops": found.cost.flops,
        "kernel_flops": work.kernel_flops / found.topology.chips,
        "bytes": found.cost.bytes,
        "collectives": [
            {**dataclasses.asdict(c), "count": count, "sent": c.sent * count}
            for c, count in sorted(
                found.cost.sent.items(), key=lambda item: -item[0].sent * item[1]
            )
        ],
        "sent_within_slices": collectives.sent(found.cost.sent, between_slices=False),
        "sent_between_slices": collectives.sent(found.cost.sent, between_slices=True),
        "compiler_seconds": found.cost.seconds if found.seconds_by == "compiler" else None,
        "roofline": {**dataclasses.asdict(found.bounds)},
        "seconds": found.seconds,
        "seconds_by": found.seconds_by,
        "useful_share": work.useful,
        "tokens_per_second": work.tokens / found.seconds,
        "images_per_second": work.images / found.seconds,
        "model_flops": work.model_flops,
        "mfu": found.mfu,
        "steps": job.steps,
        "run_hours": job.steps * found.seconds / 3600,
        "chip_hours": found.chip_hours,
        "quick": found.quick,
        "compile_seconds": found.compile_seconds,
    }


def by_kind(found: Plan) -> Iterator[tuple[str, bool, float, float]]:
    """(kind, between slices, how many, bytes sent) of the collectives, kind by kind."""
    for kind in collectives.KINDS:
        for crosses in (False, True):
            these = [
                (c, n)
                for c, n in found.cost.sent.items()
                if c.kind == kind and c.between_slices == crosses
            ]
            if these:
                yield kind, crosses, sum(n for _, n in these), sum(c.sent * n for c, n in these)
