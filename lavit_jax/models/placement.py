"""Where activations lie, by logical names; nothing at all unless a mesh is set around the trace.

The mesh and the table from names to its axes are ambient, both set by `parallel.mesh.placed`, so
that a module only names its axes.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

Rules = tuple[tuple[str, Any], ...]

# Not flax's own ambient table: with that, flax constrains parameters wherever it looks at their
# initialisers, and fails where an axis does not divide.
_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=())


@contextlib.contextmanager
def using(rules: Rules) -> Iterator[None]:
    """Programs traced inside place their activations by this table."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def constrain(x: Array, *names: str | None) -> Array:
    """`x` with its axes laid out as the ambient table says; the same values."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not _rules.get():
        return x
    return jax.lax.with_sharding_constraint(x, spec(x.shape, names, mesh, _rules.get()))


def spec(
    shape: Sequence[int], names: Sequence[str | None], mesh: Any, rules: Rules | None = None
) -> PartitionSpec:
    """Mesh axes of an array's axes, by a table (default: the ambient one).

    An axis that its mesh axes do not divide stays whole.
    """
    found = nn.logical_to_mesh_axes(tuple(names), _rules.get() if rules is None else rules)
    axes = list(found or ()) + [None] * (len(shape) - len(found or ()))
    return PartitionSpec(
        *(
            axis if axis is not None and size % parts(mesh, axis) == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def parts(mesh: Any, axes: str | tuple[str, ...] | None) -> int:
    """Devices along mesh axes together."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def axis_parts(name: str) -> int:
    """How many parts the ambient mesh splits a logical axis into; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = dict(_rules.get()).get(name)
    return 1 if mesh.empty else parts(mesh, axes)


def on_tpu() -> bool:
    """Whether the ambient mesh is one of TPUs, present or described."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "tpu"
