"""Every stage gives the same loss and gradients however its arrays lie on devices."""

import functools

import jax
import numpy as np
import pytest

import stages
from lavit_jax.parallel.mesh import make_mesh

MESHES = {
    "fully sharded": {"data": 4, "fsdp": 2},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "sequence": {"data": 2, "fsdp": 2, "sequence": 2},
    "slices": {"slice": 2, "data": 1, "fsdp": 4},
}


@functools.cache
def on_copies(stage):
    return stages.loss_and_gradients(stage, make_mesh(data=8))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("stage", stages.PHASES)
def test_a_stage_is_the_same_on_every_mesh(stage, mesh):
    loss, gradients = stages.loss_and_gradients(stage, make_mesh(**MESHES[mesh]))
    expected_loss, expected = on_copies(stage)
    assert abs(loss - expected_loss) < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3
