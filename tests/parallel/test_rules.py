import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from lavit_jax.models import lavit
from lavit_jax.parallel import rules
from lavit_jax.parallel.mesh import make_mesh
from tiny import tiny_modules


def boxed(shape, *axes):
    return nn.LogicallyPartitioned(jnp.zeros(shape), axes)


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((8, 16), ("embed", "mlp"), ("fsdp", "tensor")),
        ((8, 4, 2), ("embed", "heads", "head_dim"), ("fsdp", "tensor", None)),
        ((3, 8, 16), ("layers", "embed", "mlp"), (None, "fsdp", "tensor")),
        ((10, 8), ("vocab", "embed"), ("tensor", "fsdp")),
        ((7, 16), ("embed", "mlp"), (None, "tensor")),  # 7 does not divide over 2
        ((8, 3), ("embed", None), ("fsdp", None)),
        ((8,), ("norm",), (None,)),
    ],
)
def test_logical_axes_lie_where_the_table_says(shape, axes, spec):
    mesh = make_mesh(fsdp=2, tensor=2)
    sharding = rules.param_shardings({"w": boxed(shape, *axes)}, mesh)["w"]
    assert sharding.spec == PartitionSpec(*spec)


def test_parameters_without_axes_lie_whole_everywhere():
    sharding = rules.param_shardings({"b": jnp.zeros(4)}, make_mesh(fsdp=2))["b"]
    assert sharding.is_fully_replicated


def test_parameters_of_real_modules_have_shardings_that_fit():
    mesh = make_mesh(fsdp=2, tensor=2)
    names = ("encoder", "quantizer", "llm")
    params = jax.eval_shape(lambda: lavit.init_params(tiny_modules(), names, jax.random.key(0)))
    shardings = rules.param_shardings(params, mesh)
    shapes = nn.meta.unbox(params)
    jax.tree.map(lambda shape, sharding: sharding.shard_shape(shape.shape), shapes, shardings)
    split = [not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings)]
    assert sum(split) > len(split) / 3


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 5)),
        ({"slice": 2, "data": 2, "fsdp": 2}, (1, 5)),
        ({"data": 2, "sequence": 4}, (4, 5)),
    ],
)
def test_batches_are_split_over_slices_data_and_fsdp_alone(axes, shape):
    assert rules.batch_sharding(make_mesh(**axes)).shard_shape((8, 5)) == shape


def test_replicated_values_lie_whole_on_every_device():
    assert rules.replicated(make_mesh()).is_fully_replicated
