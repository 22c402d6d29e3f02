import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import lavit
from lavit_jax.parallel.mesh import make_mesh
from lavit_jax.training import state
from lavit_jax.training.objectives import Outcome
from lavit_jax.training.optimizer import make_optimizer
from tiny import mini_config, tiny_modules

M = tiny_modules()
NAMES, TRAINED = ("quantizer", "contrastive", "pixel_head"), ("quantizer", "contrastive")
TX = make_optimizer(mini_config().phases.select.optimizer, 10)


def objective(params, codebook, batch, key):
    """Pulls every parameter, trained or not, to the batch; its noise is the key's."""
    loss = sum(((leaf - batch["x"]) ** 2).mean() for leaf in jax.tree.leaves(params))
    return loss, Outcome({"noise": jax.random.uniform(key)}, codebook)


@functools.cache
def stepped():
    """The state at the start and after each of three steps, and their metrics."""
    step = jax.jit(state.make_step(objective, TX, TRAINED))
    states = [state.init_state(M, NAMES, TX, TRAINED, seed=3)]
    metrics = []
    for _ in range(3):
        new, measured = step(states[-1], {"x": jnp.float32(0.5)})
        states.append(new)
        metrics.append(measured)
    return states, metrics


def test_steps_are_counted_and_the_loss_falls():
    states, metrics = stepped()
    assert [int(each.step) for each in states] == [0, 1, 2, 3]
    assert metrics[2]["loss"] < metrics[0]["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_frozen_modules_stay_bit_identical_and_trained_ones_move(name):
    states, _ = stepped()
    pairs = zip(jax.tree.leaves(states[0].params[name]), jax.tree.leaves(states[3].params[name]))
    same = [bool((old == new).all()) for old, new in pairs]
    assert not any(same) if name in TRAINED else all(same)


def test_every_step_has_noise_of_its_own_that_the_step_number_decides():
    states, metrics = stepped()
    assert len({float(measured["noise"]) for measured in metrics}) == 3
    again = jax.jit(state.make_step(objective, TX, TRAINED))(states[2], {"x": jnp.float32(0.5)})
    assert again[1]["noise"] == metrics[2]["noise"]


def test_metrics_have_loss_gradient_norm_and_the_objectives_own():
    _, metrics = stepped()
    assert set(metrics[0]) == {"loss", "grad_norm", "skipped", "noise"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(value):
    def learning(params, codebook, batch, key):
        loss, outcome = objective(params, codebook, batch, key)
        book = jax.tree.map(lambda leaf: leaf + batch["x"], codebook)
        return loss, Outcome(outcome.metrics, book)

    before = stepped()[0][2]
    step = jax.jit(state.make_step(learning, TX, TRAINED))
    after, metrics = step(before, {"x": jnp.float32(value)})
    assert (int(before.step), int(after.step), metrics["skipped"]) == (2, 3, 1)
    for old, new in zip(
        jax.tree.leaves(before.replace(step=0)), jax.tree.leaves(after.replace(step=0))
    ):
        np.testing.assert_array_equal(old, new)
    healthy, metrics = step(before, {"x": jnp.float32(0.5)})
    assert metrics["skipped"] == 0
    assert bool((healthy.codebook.codes_KC != before.codebook.codes_KC).all())


def test_the_gradient_norm_is_of_trained_modules_before_clipping():
    states, metrics = stepped()
    grads = jax.grad(
        lambda train: objective(train, None, {"x": jnp.float32(0.5)}, jax.random.key(0))[0]
    )({name: states[0].params[name] for name in TRAINED})
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_same_seed_gives_the_same_state_and_another_another():
    one, same, other = (
        jax.jit(lambda seed=seed: state.init_state(M, NAMES, TX, TRAINED, seed))()
        for seed in (3, 3, 4)
    )
    kernel = lambda s: s.params["quantizer"]["in_proj"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(kernel(one), kernel(same))
    assert bool((kernel(one) != kernel(other)).any())


def test_moments_lie_where_their_parameters_lie():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shardings = state.state_shardings(M, NAMES, TX, TRAINED, mesh)
    shapes = jax.eval_shape(lambda: state.init_state(M, NAMES, TX, TRAINED, seed=0))
    jax.tree.map(lambda _, sharding: sharding.mesh, shapes, shardings)  # the trees agree
    kernel = shardings.params["quantizer"]["in_proj"]["kernel"]
    assert not kernel.is_fully_replicated
    moments = [
        sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings.opt_state)
        if "in_proj" in jax.tree_util.keystr(path) and "kernel" in jax.tree_util.keystr(path)
    ]
    assert len(moments) == 2
    assert all(moment == kernel for moment in moments)


def test_a_module_made_later_starts_as_if_made_at_once():
    root = jax.random.fold_in(jax.random.key(3), 1)
    alone = nn.meta.unbox(lavit.init_params(M, ("pixel_head",), root))
    for early, late in zip(
        jax.tree.leaves(stepped()[0][0].params["pixel_head"]), jax.tree.leaves(alone["pixel_head"])
    ):
        np.testing.assert_array_equal(early, late)
