"""Which patches become tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.errors import UserError
from lavit_jax.inference import selection
from lavit_jax.inference.selection import GREEDY, Selection

ROWS, PATCHES = 3, 10


def log_probs(seed: int = 0, scale: float = 2.0) -> jax.Array:
    logits = np.random.default_rng(seed).normal(size=(ROWS, PATCHES, 2)) * scale
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)


def decide(how: str, scores: jax.Array, seed: int = 0) -> np.ndarray:
    keys = selection.keys(seed, 0, len(scores))
    return np.asarray(selection.parse(how).decide(scores, keys))


def test_a_threshold_of_a_half_is_greedy():
    np.testing.assert_array_equal(
        decide("threshold=0.5", log_probs()), decide("greedy", log_probs())
    )


def test_a_higher_threshold_keeps_some_of_the_same_and_at_least_one():
    low, high = (decide(f"threshold={t}", log_probs()) for t in (0.2, 0.9))
    assert (high <= low).all()
    assert low.sum() > high.sum()
    np.testing.assert_array_equal(decide("threshold=1", log_probs()).sum(axis=1), 1)


@pytest.mark.parametrize("budget", [1, 4, PATCHES])
def test_a_budget_keeps_exactly_as_many_and_the_likeliest(budget):
    keep = decide(f"top={budget}", log_probs())
    np.testing.assert_array_equal(keep.sum(axis=1), budget)
    scores = np.asarray(log_probs())[..., 0]
    for kept, row in zip(keep > 0.5, scores):
        assert kept.all() or row[kept].min() >= row[~kept].max()


def test_equal_scores_keep_to_the_budget():
    keep = decide("top=3", jnp.full((1, PATCHES, 2), jnp.log(0.5)))
    np.testing.assert_array_equal(keep[0], np.arange(PATCHES) < 3)


def test_samples_follow_the_probabilities_and_the_seed():
    scores = jnp.broadcast_to(log_probs()[:1], (2000, PATCHES, 2))
    keep = decide("sample", scores)
    chance = np.exp(np.asarray(scores)[0, :, 0])
    assert np.abs(keep.mean(axis=0) - chance).max() < 0.05
    np.testing.assert_array_equal(keep, decide("sample", scores))
    assert (keep != decide("sample", scores, seed=1)).any()


def test_a_sampled_row_depends_on_its_place_alone():
    keys = selection.keys(3, 0, ROWS)
    together = Selection("sample").decide(log_probs(), keys)
    alone = Selection("sample").decide(log_probs()[2:], selection.keys(3, 2, 1))
    np.testing.assert_array_equal(alone[0], together[2])


def test_numbers_may_change_without_compiling_again():
    run = jax.jit(lambda how, scores, keys: how.decide(scores, keys))
    for how in ("top=2", "top=7", "threshold=0.1", "threshold=0.7"):
        run(selection.parse(how), log_probs(), selection.keys(0, 0, ROWS))
    assert run._cache_size() == 2


@pytest.mark.parametrize(
    "text",
    ["best", "top", "top=0", "top=x", "threshold=2", "threshold=", "greedy=1", "sample=3", ""],
)
def test_what_is_no_selection_is_told(text):
    with pytest.raises(UserError, match="expected greedy, threshold=0.5, sample or top=K"):
        selection.parse(text)


def test_a_budget_above_what_the_model_keeps_is_told():
    with pytest.raises(UserError, match="top=9, but this model keeps at most 8"):
        selection.within(selection.parse("top=9"), 8)
    assert selection.within(GREEDY, 8) is GREEDY
