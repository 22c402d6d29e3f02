import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.training import losses


def test_cosine_distance_is_zero_for_scaled_copies_and_two_for_opposites():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    assert losses.cosine_distance(x, 3.0 * x) == pytest.approx(0.0, abs=1e-6)
    assert losses.cosine_distance(x, -x) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(("over", "penalty"), [("image", 0.25), ("batch", 0.0)])
def test_share_penalty_is_taken_per_image_or_over_the_batch(over, penalty):
    keep = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    assert losses.share_penalty(keep, 0.5, over) == pytest.approx(penalty)


def test_next_token_agrees_with_softmax_cross_entropy():
    logits = jax.random.normal(jax.random.key(1), (2, 5, 11)) * 4
    targets = jax.random.randint(jax.random.key(2), (2, 5), 0, 11)
    loss, correct = losses.next_token(logits, targets)
    wanted = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, wanted, atol=1e-5)
    np.testing.assert_array_equal(correct, logits.argmax(-1) == targets)


def test_masked_mean_ignores_unweighted_values_and_survives_no_weight():
    assert losses.masked_mean(jnp.array([1.0, 100.0]), jnp.array([1.0, 0.0])) == 1.0
    assert losses.masked_mean(jnp.array([5.0]), jnp.array([0.0])) == 0.0


def test_sigmoid_contrastive_prefers_matching_pairs():
    embeddings = jnp.eye(4)
    same = jnp.eye(4)
    scale, bias = jnp.array(10.0), jnp.array(-5.0)
    matched, accuracy = losses.sigmoid_contrastive(embeddings, embeddings, same, scale, bias)
    crossed, _ = losses.sigmoid_contrastive(embeddings, embeddings[::-1], same, scale, bias)
    assert matched < crossed
    assert accuracy == 1.0
