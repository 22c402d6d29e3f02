"""Meshes from settings, and what would fit where they do not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lavit_jax.errors import UserError
from lavit_jax.models import placement
from lavit_jax.parallel import mesh as meshes
from lavit_jax.parallel import rules


def test_minus_one_takes_what_the_others_leave():
    shape = meshes.make_mesh(data=2, fsdp=-1, tensor=2).shape
    assert dict(shape) == {"slice": 1, "data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}


def test_a_batch_is_split_over_slices_copies_and_shards():
    assert meshes.batch_parts(meshes.make_mesh(slice=2, data=2, fsdp=1, tensor=2)) == 4


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((1, 3, 2, 1, 1), r"data=3, fsdp=2 needs 6 devices, there are 8: data=4 would fit"),
        ((1, -1, 3, 1, 1), r"a multiple of 3 devices, there are 8: .* one of 1, 2, 4, 8 would fit"),
        ((1, 0, 1, 1, 1), r"must be positive, one at most -1, got data=0"),
        ((1, -1, -1, 1, 1), r"must be positive, one at most -1, got data=-1, fsdp=-1"),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices_says_what_would_fit(wanted, message):
    with pytest.raises(UserError, match=message):
        meshes.mesh_sizes(wanted, 8)


def test_activations_lie_where_the_table_says():
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    with meshes.placed(mesh):
        x = jax.jit(lambda x: placement.constrain(x * 2, "batch", "length", "act_mlp"))(
            jnp.ones((8, 3, 4))
        )
    spec = PartitionSpec(("slice", "data", "fsdp"), None, "tensor")
    assert x.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3)


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    spec = placement.spec((8, 3, 5), ("batch", None, "act_mlp"), mesh, rules.RULES)
    assert spec == PartitionSpec(("slice", "data", "fsdp"), None, None)


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((3, 2))
    assert placement.constrain(x, "batch", "act_embed") is x
    assert not placement.on_tpu()
