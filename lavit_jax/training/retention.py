"""Which checkpoints stay, as a pure function of what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

# Metrics of which more is better; of all others less is.
HIGHER = ("accuracy", "codebook_in_use", "codebook_perplexity", "useful_tokens")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What decides whether a checkpoint stays.

    Attributes:
      step: its number.
      phase: of the schedule.
      metrics: means over the steps since the checkpoint before.
    """

    step: int
    phase: str
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What to keep; a checkpoint that any field asks for stays.

    Attributes:
      newest: so many of the last.
      every: those whose step it divides; 0 for none.
      best: a metric's name; the best checkpoint of each phase that has it. "" for none.
      milestones: steps.
    """

    newest: int
    every: int = 0
    best: str = ""
    milestones: tuple[int, ...] = ()


def kept(checkpoints: Sequence[Facts], policy: Policy) -> set[int]:
    """The steps of the checkpoints that stay."""
    steps = sorted(each.step for each in checkpoints)
    stay = set(steps[-policy.newest :]) if policy.newest else set()
    stay |= {step for step in steps if policy.every and step % policy.every == 0}
    stay |= set(steps) & set(policy.milestones)
    return stay | _best(checkpoints, policy.best)


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better, told from its name."""
    return metric.endswith(HIGHER)


def _best(checkpoints: Sequence[Facts], metric: str) -> set[int]:
    """The best step of each phase; of equals the newest."""
    if not metric:
        return set()
    sign = -1.0 if higher_is_better(metric) else 1.0
    found: dict[str, tuple[float, int]] = {}
    for each in checkpoints:
        if metric not in each.metrics:
            continue
        score = (sign * each.metrics[metric], -each.step)
        found[each.phase] = min(found.get(each.phase, score), score)
    return {-step for _, step in found.values()}
