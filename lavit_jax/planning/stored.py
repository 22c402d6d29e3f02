"""Reads what `lavit plan --json` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lavit_jax.errors import UserError
from lavit_jax.parallel import topology
from lavit_jax.parallel.topology import Topology


def step_seconds(
    path: Path, place: Topology | None, phases: Sequence[str]
) -> tuple[Topology, dict[str, float]]:
    """Seconds of a step of those phases that were planned; the first plan of each counts.

    Args:
      path: the file.
      place: the topology meant; None where the file has plans of one alone.
      phases: of the config.

    Returns:
      The topology and seconds by phase.

    Raises:
      UserError: no such file, none of `lavit plan`, or no plan of these phases on this topology.
    """
    try:
        plans = json.loads(path.read_bytes())
        known = [(str(p["topology"]), int(p["slices"]), str(p["name"])) for p in plans]
        times = [float(p["seconds"]) for p in plans]
    except OSError as error:
        raise UserError(f"--plan {path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--plan {path}: expected what `lavit plan --json FILE` writes") from error
    places = {(name, slices) for name, slices, _ in known}
    if place is None and len(places) == 1:
        place = topology.parse(*places.pop())
    if place is None:
        raise UserError(f"--plan {path} has plans of {len(places)} topologies: give --topology")
    found: dict[str, float] = {}
    for (name, slices, phase), seconds in zip(known, times, strict=True):
        if (name, slices) == (place.name, place.slices) and phase in phases:
            found.setdefault(phase, seconds)
    if not found:
        raise UserError(
            f"--plan {path} has no plan of {', '.join(phases)} on {place.title}; it has "
            + ", ".join(sorted({f"{phase} on {name}" for name, _, phase in known}))
        )
    return place, found
