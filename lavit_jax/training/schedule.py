"""A run's phases in order, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lavit_jax.errors import UserError
from lavit_jax.training.objectives import MODULES, READS, SELECTIONS, SHARES

FIELDS = ("objective", "steps", "batch_size", "modules", "optimizer")
TINY, HUGE = 1e-12, 1e12
OPTIMIZER = {  # least and most
    "learning_rate": (TINY, HUGE),
    "final_share": (0.0, 1.0),
    "warmup": (0, HUGE),
    "b1": (0.0, 1.0),
    "b2": (0.0, 1.0),
    "weight_decay": (0.0, HUGE),
    "clip": (TINY, HUGE),
}
TOKENIZER = {
    "kept_share": (TINY, 1.0),
    "share_weight": (0.0, HUGE),
    "entropy_weight": (0.0, HUGE),
    "commitment": (0.0, HUGE),
    "pixel_weight": (0.0, HUGE),
}


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
    _require(where, phase, FIELDS)
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
        check_count(f"{where}.{field}", phase[field], 1)
    check_count(f"{where}.accumulate", phase.get("accumulate", 1), 1)
    check_number(f"{where}.z_weight", phase.get("z_weight", 0.0), 0.0, HUGE)
    _require(f"{where}.optimizer", phase["optimizer"], OPTIMIZER)
    check_count(f"{where}.optimizer.warmup", phase["optimizer"]["warmup"], 0)
    for field, (least, most) in OPTIMIZER.items():
        check_number(f"{where}.optimizer.{field}", phase["optimizer"][field], least, most)
    if objective == "tokenizer":
        _check_tokenizer(where, phase)
    if objective == "diffusion":
        _require(where, phase, ("condition_drop",))
        # Some pictures must keep their condition: the head learns from nothing else.
        check_number(f"{where}.condition_drop", phase["condition_drop"], 0.0, 0.99)
    if "ema" in phase["optimizer"]:
        check_number(f"{where}.optimizer.ema", phase["optimizer"]["ema"], 0.0, 1.0)


def _check_tokenizer(where: str, phase: Mapping[str, Any]) -> None:
    _require(where, phase, (*TOKENIZER, "selection", "quantize"))
    for field, (least, most) in TOKENIZER.items():
        check_number(f"{where}.{field}", phase[field], least, most)
    choices = {"selection": SELECTIONS, "share_over": SHARES}
    for field, known in choices.items():
        value = phase.get(field, known[0])
        if value not in known:
            raise UserError(f"{where}.{field} must be one of {known}, got {value!r}")
    if "selector" in phase["modules"] and phase["selection"] != "sample":
        raise UserError(
            f"{where}: a selector that learns needs selection='sample', "
            f"got {phase['selection']!r}; or take it out of modules"
        )


def _require(where: str, group: Mapping[str, Any], fields: Iterable[str]) -> None:
    for field in fields:
        if field not in group:
            raise UserError(f"{where}.{field} is missing; configs/twemoji.py shows all fields")


def check_count(field: str, value: Any, least: int) -> None:
    """Raises a UserError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{field} must be a whole number of at least {least}, got {value!r}")


def check_number(field: str, value: Any, least: float, most: float) -> None:
    """Raises a UserError unless `value` is a number in least..most."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        raise UserError(f"{field} must be a number in {least:g}..{most:g}, got {value!r}")


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase whose state a checkpoint at `step` holds: the one that step belongs to."""
    return next(phase for phase in phases if step <= phase.end)
