"""The only table from logical axis names to mesh axes."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lavit_jax.models import placement

BATCH_AXES = ("slice", "data", "fsdp")

# Logical axis -> mesh axes (None: replicated). Parameters first: "embed" is split for fully
# sharded parameters, the wide axes for tensor parallelism. Slices and "data" hold copies.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
    ("layers", None),
    # Scales and biases of norms stay whole: to sum gradients of split ones over all tokens, XLA
    # sent the tokens around. It does not for biases of matmuls.
    ("norm", None),
    # Activations. A name of an "act" axis differs from the parameters' because one mesh axis
    # (fsdp) splits rows of a batch and columns of a matrix.
    ("batch", BATCH_AXES),
    ("group", ("slice", "data")),  # rows of all devices that share one copy of the parameters
    ("length", "sequence"),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("act_vocab", "tensor"),
)

BATCH = PartitionSpec(BATCH_AXES)


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """NamedShardings of a boxed parameter tree (as made by the modules' `init`).

    An axis that its mesh axis does not divide stays replicated.
    """

    def one(leaf: Any) -> NamedSharding:
        shape = nn.meta.unbox(leaf).shape
        names = leaf.names if isinstance(leaf, nn.Partitioned) else (None,) * len(shape)
        return NamedSharding(mesh, placement.spec(shape, names, mesh, RULES))

    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(one, boxed, is_leaf=is_box)


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
    """The leading axis split over slice x data x fsdp."""
    return NamedSharding(mesh, BATCH)
