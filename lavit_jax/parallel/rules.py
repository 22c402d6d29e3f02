"""The only table from logical axis names to mesh axes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis -> mesh axis (None: replicated). "embed" is split for fully sharded parameters,
# the wide axes for tensor parallelism.
RULES: tuple[tuple[str, str | None], ...] = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("layers", None),
)

BATCH = PartitionSpec(("data", "fsdp"))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """NamedShardings of a boxed parameter tree (as made by the modules' `init`).

    An axis that its mesh axis does not divide stays replicated.
    """

    def one(leaf: Any, spec: PartitionSpec) -> NamedSharding:
        shape = nn.meta.unbox(leaf).shape
        axes = list(spec) + [None] * (len(shape) - len(spec))
        kept = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        ]
        return NamedSharding(mesh, PartitionSpec(*kept))

    specs = nn.logical_to_mesh(nn.get_partition_spec(boxed), RULES)
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(one, boxed, specs, is_leaf=is_box)


def sharding_by_shape(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of an array without logical axes: its longest axis that "fsdp" divides is split."""
    axes: list[str | None] = [None] * len(shape)
    divisible = [axis for axis, size in enumerate(shape) if size % mesh.shape["fsdp"] == 0]
    if divisible:
        axes[max(divisible, key=lambda axis: shape[axis])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """A value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over data x fsdp."""
    return NamedSharding(mesh, BATCH)
