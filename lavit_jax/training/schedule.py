"""A run's phases in order, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lavit_jax.errors import UserError
from lavit_jax.training.objectives import MODULES, READS


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of steps with one objective, one set of trained modules and one optimizer.

    Attributes:
      name: key in `config.phases`.
      config: its fields.
      index: place in the schedule.
      start: global step before its first.
      end: global step after its last.
      names: every module that exists by now, in a fixed order.
      trained: modules that get gradients.
    """

    name: str
    config: Mapping[str, Any]
    index: int
    start: int
    end: int
    names: tuple[str, ...]

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(self.config["modules"])

    @property
    def steps(self) -> int:
        return self.end - self.start


def make_schedule(config: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases of `config.schedule`.

    Raises:
      UserError: an unknown phase, objective or module, or a count below one.
    """
    phases: list[Phase] = []
    start, names = 0, []
    if not config["schedule"]:
        raise UserError("config.schedule is empty; name at least one of config.phases")
    for index, name in enumerate(config["schedule"]):
        if name not in config["phases"]:
            raise UserError(
                f"config.schedule names {name!r}; config.phases has {sorted(config['phases'])}"
            )
        phase = config["phases"][name]
        _check(name, phase)
        held = (*READS[phase["objective"]], *phase.get("frozen", ()))
        names += [module for module in held if module not in names]
        end = start + phase["steps"]
        phases.append(Phase(name, phase, index, start, end, tuple(names)))
        start = end
    return tuple(phases)


def _check(name: str, phase: Mapping[str, Any]) -> None:
    where = f"config.phases.{name}"
    objective = phase["objective"]
    if objective not in READS:
        raise UserError(f"{where}.objective must be one of {sorted(READS)}, got {objective!r}")
    unknown = sorted(set(phase["modules"]) - set(READS[objective]))
    if unknown or not phase["modules"]:
        raise UserError(
            f"{where}.modules must be some of {READS[objective]}, got {tuple(phase['modules'])}"
        )
    strange = sorted(set(phase.get("frozen", ())) - MODULES)
    if strange:
        raise UserError(f"{where}.frozen names {strange[0]!r}, expected some of {sorted(MODULES)}")
    for field in ("steps", "batch_size"):
        if phase[field] < 1:
            raise UserError(f"{where}.{field} must be at least 1, got {phase[field]}")
    for field in ("learning_rate", "clip"):
        if phase["optimizer"][field] <= 0:
            raise UserError(
                f"{where}.optimizer.{field} must be positive, got {phase['optimizer'][field]}"
            )


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase whose state a checkpoint at `step` holds: the one that step belongs to."""
    return next(phase for phase in phases if step <= phase.end)
