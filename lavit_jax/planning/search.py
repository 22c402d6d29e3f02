"""Tries mesh shapes, batch sizes and remat policies, and ranks what fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from lavit_jax.errors import UserError
from lavit_jax.models import lavit
from lavit_jax.parallel import compiled
from lavit_jax.parallel.topology import Topology
from lavit_jax.planning import jobs
from lavit_jax.planning.plan import Plan, looped, plan

REMAT = ("full", "context", "projections", "attention", "most", "none")
ROWS_PER_CHIP = (1, 2, 4, 8)
TENSOR = (1, 2, 4)
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting.

    Attributes:
      rows_per_chip: of the batch.
      tensor: chips that share heads, MLP and vocabulary.
      remat: policy of the language model, or of the tokenizer's blocks.
    """

    rows_per_chip: int
    tensor: int
    remat: str


def candidates() -> Iterator[Candidate]:
    """All settings, the likeliest first."""
    for tensor, rows, remat in itertools.product(TENSOR, reversed(ROWS_PER_CHIP), REMAT):
        yield Candidate(rows, tensor, remat)


def apply(config: ConfigDict, name: str, found: Candidate, topology: Topology) -> ConfigDict:
    """The config with a candidate's settings."""
    changed = config.copy_and_resolve_references()
    changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = 1, -1, found.tensor
    phase = changed.phases[name]
    phase.batch_size = found.rows_per_chip * topology.chips
    if phase.objective == "unified":
        changed.model.llm.remat = found.remat
    elif phase.objective == "diffusion":
        changed.model.pixels.unet.remat = found.remat == "full"
    else:
        changed.model.merger.remat = changed.model.decoder.remat = found.remat
    return changed


def search(
    config: ConfigDict,
    name: str,
    topology: Topology,
    devices: Sequence[Any],
    say: Callable[[str], None],
    tried: Sequence[Candidate] | None = None,
) -> list[Plan]:
    """Plans every candidate's cost, then the memory of the best until `SHOWN` of them fit.

    Args:
      config: the experiment.
      name: of a phase.
      topology: where.
      devices: its devices.
      say: told what is going on.
      tried: candidates; by default all.

    Returns:
      Plans that fit, the most useful tokens (or images) a second first.

    Raises:
      UserError: nothing fits.
    """
    ranked: list[tuple[float, Plan]] = []
    for candidate in candidates() if tried is None else tried:
        try:
            job = jobs.make_job(apply(config, name, candidate, topology), name, topology, devices)
        except UserError as error:
            say(f"{candidate}: {error}")
            continue
        found = plan(job, topology, with_memory=False)
        rate = (job.workload.tokens or job.workload.images) / found.seconds
        say(f"{candidate}: {found.seconds:.3f} s, MFU bound {found.mfu:.1%}")
        ranked.append((rate, found))
    fitting: list[Plan] = []
    for _, found in sorted(ranked, key=lambda item: -item[0]):
        whole = _with_memory(found)
        if whole.fits:
            fitting.append(whole)
        if len(fitting) == SHOWN:
            break
    if not fitting:
        raise UserError(
            f"{name} fits {topology.title} with none of the settings tried: more chips would fit"
        )
    return fitting


def _with_memory(found: Plan) -> Plan:
    job = found.job
    program = job.make(lavit.build_modules(looped(job.modules.config)))
    return dataclasses.replace(found, memory=compiled.memory(program, job.mesh))
