"""What a config asks of each host of a pod, beside what a core was measured to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# Of a host's cores, and of the one thread that gathers what workers read: the rest is for what
# drives the devices, and two of a cloud's virtual cores are one real one.
USED = 0.5
THREADS = 2  # up to so many cores' work is done by threads; Python's lock holds more of them up


@dataclasses.dataclass(frozen=True)
class Target:
    """What trains.

    Attributes:
      name: of the topology; "" where only hosts were named.
      hosts: that share each batch.
      cores: of each host, virtual ones; 0 is not known.
    """

    name: str
    hosts: int
    cores: int


def needs(
    config: ConfigDict,
    target: Target,
    seconds: Mapping[str, float],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    """What each phase of a config asks of each host.

    Args:
      config: the experiment.
      target: where it trains.
      seconds: of a step by phase, for those of which they are known.
      rates: `rates.measure`'s images per second and core.

    Returns:
      For each phase images of a step and host, at most, and tokens where rows are packed; the
      shortest step that a host's cores keep up with, where they are known; where a step's seconds
      are, images by the second, the cores these take, the fields to set, and whether it is enough.
    """
    return {
        name: _phase(config, name, target, seconds.get(name, 0.0), rates)
        for name in config.schedule
    }


def _phase(
    config: ConfigDict, name: str, target: Target, seconds: float, rates: Mapping[str, float]
) -> dict[str, Any]:
    phase, packed = config.phases[name], config.phases[name].objective == "unified"
    each = config.data.images_per_row if packed else 1
    images, rate = phase.batch_size * each / target.hosts, rates["jpeg_to_packed_batch"]
    found: dict[str, Any] = {"images_per_step_and_host": images}
    if packed:
        found["tokens_per_step_and_host"] = phase.batch_size * config.data.row_length / target.hosts
    most = USED * min(target.cores * rate, rates["gather"])
    if target.cores:
        found["shortest_step_seconds"] = images / most
    if not seconds:
        return found
    found["step_seconds"] = seconds
    found["images_per_second_and_host"] = images / seconds
    found["cores"] = images / seconds / rate
    helpers = math.ceil(found["cores"] / USED)
    found["set"] = f"config.data.{'threads' if helpers <= THREADS else 'workers'}={helpers}"
    if target.cores:
        found["enough"] = images / seconds <= most
    return found


def describe(target: Target, found: Mapping[str, Any]) -> list[str]:
    """The needs for people, in lines."""
    lines = []
    if target.cores:
        lines.append(f"{target.name}: {target.hosts} hosts of {target.cores} vCPUs")
    for name, need in found.items():
        text = f"  phase {name}: {need['images_per_step_and_host']:,g} images"
        if "tokens_per_step_and_host" in need:
            text += f" at most and {need['tokens_per_step_and_host']:,g} tokens"
        lines.append(f"{text} a step and host")
        if verdict := _verdict(target, need):
            lines.append(f"    {verdict}")
    return lines


def _verdict(target: Target, need: Mapping[str, Any]) -> str:
    keeps_up = ""
    if target.cores:
        keeps_up = f"reading keeps up with steps of {need['shortest_step_seconds']:.3g} s or more"
    if "cores" not in need:
        return keeps_up
    second = need["images_per_second_and_host"]
    text = (
        f"in steps of {need['step_seconds']:.3g} s {second:,.0f} images a second: "
        f"{need['cores']:.1f} cores; "
    )
    if not target.cores:
        return text + need["set"]
    return text + (f"enough, with {need['set']}" if need["enough"] else f"not enough: {keeps_up}")
