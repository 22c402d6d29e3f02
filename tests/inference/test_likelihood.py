"""Log-likelihoods, compared with teacher forcing one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_lm as lm
from lavit_jax.inference import likelihood

SEQUENCES = [[3, 5, 2], [5, 6, 7, 4, 9, 10], [1, 8]]
TARGETS = [1, 4, 0]


def of_last(sequences, targets, places, most):
    ids = np.zeros((len(sequences), places), np.int32)
    for row, sequence in enumerate(sequences):
        ids[row, places - len(sequence) :] = sequence
    run = jax.jit(
        lambda prompt: likelihood.of_last(
            lm.LLM, lm.params(), prompt, jnp.asarray(ids[:, -most:]), jnp.asarray(targets)
        )
    )
    return np.asarray(run(lm.prompt(sequences, places)))


@pytest.mark.parametrize(("places", "most"), [(6, 5), (9, 4)])
def test_they_are_summed_teacher_forced_log_probabilities(places, most):
    found = of_last(SEQUENCES, TARGETS, places, most)
    for sequence, count, value in zip(SEQUENCES, TARGETS, found):
        first = len(sequence) - count
        expected = sum(
            lm.log_probs(sequence[:place])[sequence[place]] for place in range(first, len(sequence))
        )
        assert value == pytest.approx(expected, abs=1e-4)


def test_rows_that_are_all_padding_sum_to_nothing():
    assert of_last([[3, 5], []], [1, 0], 6, 4)[1] == 0
