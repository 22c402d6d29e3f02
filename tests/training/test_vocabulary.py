"""The loss over parts of the vocabulary equals the one over all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.training import vocabulary

B, S, E, V = 2, 5, 8, 300


def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, S, E))
    kernel = jax.random.normal(keys[1], (E, V))
    targets = jax.random.randint(keys[2], (B, S), 0, V).at[0, 0].set(V - 1)
    return hidden, kernel, targets, jax.random.uniform(keys[3], (B, S))


def objective(chunks, unroll=1):
    _, _, targets, weights = problem()

    def loss(hidden, kernel):
        scored = vocabulary.next_token(hidden, kernel, targets, chunks, unroll)
        return (scored.loss * weights).sum() + 0.1 * (scored.log_z**2 * weights).sum()

    return loss


@pytest.mark.parametrize(("chunks", "unroll"), [(2, 1), (3, 3)])
def test_values_and_gradients_are_the_same_in_parts(chunks, unroll):
    hidden, kernel, _, _ = problem()
    expected = jax.value_and_grad(objective(1), (0, 1))(hidden, kernel)
    found = jax.value_and_grad(objective(chunks, unroll), (0, 1))(hidden, kernel)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )


def test_a_target_with_the_highest_logit_is_correct_in_whatever_part_it_is():
    hidden, kernel, _, _ = problem()
    targets = (hidden @ kernel).argmax(axis=-1)
    targets = targets.at[0, 0].set((targets[0, 0] + 1) % V)
    correct = vocabulary.next_token(hidden, kernel, targets, 3).correct
    assert correct.sum() == B * S - 1
    assert correct[0, 0] == 0


def test_all_logits_never_exist_at_once():
    hidden, kernel, _, _ = problem()
    wide = jnp.tile(kernel, (1, 10))

    def shapes(chunks):
        _, _, targets, _ = problem()
        loss = jax.grad(
            lambda h, k: vocabulary.next_token(h, k, targets, chunks).loss.sum(), (0, 1)
        )
        return str(jax.make_jaxpr(loss)(hidden, wide))

    assert f"f32[{B},{S},{10 * V}]" in shapes(1)
    assert f"f32[{B},{S},{10 * V}]" not in shapes(4)
