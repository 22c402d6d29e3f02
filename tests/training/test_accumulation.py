"""Gradients of a batch's parts, one after the other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lavit_jax.models.quantizer import Codebook
from lavit_jax.training import state
from lavit_jax.training.objectives import Outcome


def mean_squares(params, codebook, batch, key):
    loss = ((batch["x"] @ params["m"]["w"]) ** 2).mean()
    return loss, Outcome({"twice": 2 * loss}, codebook.replace(count_K=codebook.count_K + 1))


def after_a_step(accumulate):
    params = {"m": {"w": jnp.arange(6.0).reshape(3, 2)}}
    tx = optax.sgd(0.1)
    start = state.TrainState(
        jnp.zeros((), jnp.int32),
        nn.meta.unbox(params),
        Codebook(jnp.ones((4, 2)), jnp.zeros(4)),
        tx.init(params),
        jax.random.key_data(jax.random.key(0)),
    )
    batch = {"x": jax.random.normal(jax.random.key(1), (8, 3))}
    return jax.jit(state.make_step(mean_squares, tx, ("m",), accumulate))(start, batch)


def test_four_parts_move_parameters_as_the_whole_batch_does():
    (whole, metrics), (parts, part_metrics) = after_a_step(1), after_a_step(4)
    np.testing.assert_allclose(parts.params["m"]["w"], whole.params["m"]["w"], rtol=1e-6)
    for name in ("loss", "twice", "grad_norm"):
        np.testing.assert_allclose(part_metrics[name], metrics[name], rtol=1e-6)


def test_the_codebook_follows_every_part():
    assert after_a_step(4)[0].codebook.count_K[0] == 4
