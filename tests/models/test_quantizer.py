"""Codebook: nearest code, straight-through, EMA, re-seeding, k-means."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lavit_jax.models import quantizer
from lavit_jax.models.config import QuantizerConfig
from lavit_jax.models.quantizer import Codebook

M, K, C = 64, 16, 8
CONFIG = QuantizerConfig(width=32, codes=K, code_dim=C, decay=0.9, reseed_below=0.1)
kmeans = jax.jit(quantizer.kmeans, static_argnums=(1, 3))
update = jax.jit(quantizer.update_codebook, static_argnames="config")


def unit(seed, *shape):
    return quantizer.l2_normalize(jax.random.normal(jax.random.key(seed), shape))


def book(seed=0, count=M / K):
    return Codebook(unit(seed, K, C), jnp.full((K,), count))


def lengths(x):
    return np.linalg.norm(np.asarray(x), axis=-1)


def test_nearest_code_is_the_nearest():
    z, codes = 3 * unit(1, 5, 7, C), 1.5 * unit(2, K, C)
    distances = np.linalg.norm(np.asarray(z / 3)[:, :, None] - np.asarray(codes), axis=-1)
    np.testing.assert_array_equal(quantizer.nearest_code(z, codes), distances.argmin(axis=-1))


def test_a_zero_vector_normalises_to_zero_with_a_finite_gradient():
    gradient = jax.grad(lambda x: quantizer.l2_normalize(x).sum())(jnp.zeros((2, C)))
    assert jnp.isfinite(gradient).all()
    assert (quantizer.l2_normalize(jnp.zeros((2, C))) == 0).all()


def test_straight_through_is_the_code_forward_and_the_identity_backward():
    z, codes = unit(1, M, C), book().codes_KC
    quantized = quantizer.lookup(quantizer.nearest_code(z, codes), codes)
    np.testing.assert_allclose(quantizer.straight_through(z, quantized), quantized, atol=1e-6)
    weight = jax.random.normal(jax.random.key(3), (M, C))

    def loss(z):
        return (weight * quantizer.straight_through(z, quantized)).sum()

    np.testing.assert_array_equal(jax.grad(loss)(z), weight)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), valid=st.integers(1, M))
def test_codes_keep_unit_length_and_counts_stay_positive(seed, valid):
    z = unit(seed, M, C)
    mask = (jnp.arange(M) < valid).astype(jnp.float32)
    now = book(seed + 1)
    for step in range(3):
        ids = quantizer.nearest_code(z, now.codes_KC)
        now = update(now, z, ids, mask, jax.random.key(step), config=CONFIG)
    np.testing.assert_allclose(lengths(now.codes_KC), 1, atol=1e-5)
    assert (now.count_K > 0).all()


def test_a_used_code_moves_to_its_features_and_an_unused_one_stays():
    z, now = unit(1, M, C), book()
    ids = jnp.zeros((M,), jnp.int32)
    after = update(now, z, ids, jnp.ones(M), jax.random.key(0), config=CONFIG)
    mean = quantizer.l2_normalize(z.mean(axis=0))
    expected = quantizer.l2_normalize(0.9 * now.codes_KC[0] + 0.1 * mean)
    np.testing.assert_allclose(after.codes_KC[0], expected, atol=1e-6)
    np.testing.assert_array_equal(after.codes_KC[1:], now.codes_KC[1:])
    np.testing.assert_allclose(after.count_K[0], 0.9 * M / K + 0.1 * M, rtol=1e-6)


def test_dead_codes_restart_on_real_features_of_the_batch():
    z, now = unit(1, M, C), book(count=0.1)
    valid = (jnp.arange(M) < 5).astype(jnp.float32)
    ids = jnp.zeros((M,), jnp.int32)
    config = QuantizerConfig(width=32, codes=K, code_dim=C, decay=0.9, reseed_below=0.5)
    after = update(now, z, ids, valid, jax.random.key(0), config=config)
    restarted = np.asarray(after.codes_KC)[1:]
    assert all(any((code == feature).all() for feature in np.asarray(z[:5])) for code in restarted)
    np.testing.assert_allclose(after.count_K[1:], 5 / K)


def test_padding_changes_nothing():
    z = unit(1, M, C)
    half = jnp.arange(M) < M // 2
    ids = quantizer.nearest_code(z, book().codes_KC)
    padded, other = (
        update(book(), z, jnp.where(half, ids, pad), half.astype(jnp.float32), jax.random.key(0),
               config=CONFIG)
        for pad in (0, 3)
    )  # fmt: skip
    np.testing.assert_array_equal(padded.codes_KC, other.codes_KC)
    np.testing.assert_array_equal(padded.count_K, other.count_K)


def test_statistics_are_summed_over_all_devices():
    z = unit(1, M, C)
    ids = quantizer.nearest_code(z, book().codes_KC)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    args = (book(), z, ids, jnp.ones(M), jax.random.key(0))
    one = update(*args, config=CONFIG)
    placed = (
        jax.device_put(args[0], whole),
        *jax.device_put(args[1:4], split),
        jax.device_put(args[4], whole),
    )
    eight = update(*placed, config=CONFIG)
    np.testing.assert_allclose(eight.codes_KC, one.codes_KC, atol=1e-6)
    np.testing.assert_allclose(eight.count_K, one.count_K, rtol=1e-6)


def test_kmeans_finds_clusters():
    centres = jnp.eye(C)[:4]
    z = jnp.repeat(centres, 50, axis=0) + 0.05 * unit(1, 200, C)
    found = kmeans(z, 8, jax.random.key(2))
    np.testing.assert_allclose(lengths(found.codes_KC), 1, atol=1e-5)
    nearest = (centres @ found.codes_KC.T).max(axis=1)
    assert (nearest > 0.99).all()
    np.testing.assert_allclose(found.count_K, 200 / 8)


def test_kmeans_takes_fewer_features_than_codes():
    found = kmeans(unit(1, 5, C), K, jax.random.key(2))
    assert found.codes_KC.shape == (K, C)
    np.testing.assert_allclose(lengths(found.codes_KC), 1, atol=1e-5)


def test_kmeans_lowers_the_distance():
    z = unit(1, 500, C)
    distances = []
    for iterations in (1, 10):
        codes = kmeans(z, K, jax.random.key(2), iterations).codes_KC
        nearest = quantizer.lookup(quantizer.nearest_code(z, codes), codes)
        distances.append(float(jnp.square(nearest - z).sum(axis=-1).mean()))
    assert distances[1] < distances[0]


def test_usage_and_perplexity():
    ids, valid = jnp.array([0, 0, 1, 3]), jnp.array([1.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(quantizer.usage(ids, valid, 4), [2, 1, 0, 0])
    np.testing.assert_allclose(quantizer.perplexity(jnp.full((K,), 3.0)), K, rtol=1e-5)
    np.testing.assert_allclose(quantizer.perplexity(jnp.eye(K)[2]), 1, rtol=1e-5)
