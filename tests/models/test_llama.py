"""The language model: cache, packing, padding, grouped heads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import llama
from lavit_jax.models.attention import causal_segment_mask
from lavit_jax.models.config import LlamaConfig
from lavit_jax.models.llama import Llama
from random_params import random_params

CONFIG = LlamaConfig(
    width=32, depth=2, heads=4, kv_heads=2, hidden=48, text_vocab=40, codes=10, head_dim=8
)
B, S = 2, 8


@functools.cache
def params():
    ids = jnp.zeros((1, 2), jnp.int32)
    args = ids, ids, jnp.ones((1, 2, 2), bool)
    return random_params(Llama(CONFIG).init, *args, gain=1.5)["params"]


@functools.partial(jax.jit, static_argnames="config")
def logits(params, ids, positions, segments, config=CONFIG):
    mask = causal_segment_mask(segments)
    return Llama(config).apply({"params": params}, ids, positions, mask)


def tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab)


def count(length, batch=B):
    return jnp.broadcast_to(jnp.arange(length), (batch, length))


def whole(ids, config=CONFIG, weights=None):
    ones = jnp.ones_like(ids)
    return logits(weights or params(), ids, count(ids.shape[1], len(ids)), ones, config=config)


@functools.partial(jax.jit, static_argnames=("parts", "config"))
def _cached(params, ids, positions, real, parts, config=CONFIG):
    """Logits computed a few tokens at a time through a cache longer than needed."""
    model, length = Llama(config), ids.shape[1] + 3
    cache = llama.empty_cache(config, len(ids), length)
    keys = jnp.pad(real, ((0, 0), (0, 3)))
    out, start = [], 0
    for size in parts:
        here = slice(start, start + size)
        queries = jnp.arange(start, start + size)[None, :, None]
        mask = (jnp.arange(length)[None, None] <= queries) & (keys[:, None] > 0)
        embeds = model.apply({"params": params}, ids[:, here], method="embed")
        hidden, cache = model.apply(
            {"params": params}, embeds, positions[:, here], mask, cache, start, method="hidden"
        )
        out.append(model.apply({"params": params}, hidden, method="logits"))
        start += size
    return jnp.concatenate(out, axis=1)


@pytest.mark.parametrize("parts", [(1,) * S, (S,), (3, 1, 1, 3)])
def test_decoding_with_a_cache_equals_the_full_forward(parts):
    ids = tokens(1, B, S)
    out = _cached(params(), ids, count(S), jnp.ones((B, S), jnp.int32), parts)
    np.testing.assert_allclose(out, whole(ids), atol=2e-5)


@pytest.mark.parametrize("parts", [(1,) * S, (S,), (3, 1, 1, 3)])
@pytest.mark.parametrize("rows", [1, B])
def test_the_flat_form_computes_the_same(parts, rows):
    ids, flat = tokens(1, rows, S), dataclasses.replace(CONFIG, stacked=False)
    weights = llama.flattened(params())
    expected = whole(ids)
    np.testing.assert_allclose(whole(ids, flat, weights), expected, atol=2e-5)
    real = jnp.ones((rows, S), jnp.int32)
    out = _cached(weights, ids, count(S, rows), real, parts, config=flat)
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_left_padding_changes_nothing():
    ids, pad = tokens(1, B, S), 4
    padded = jnp.pad(ids, ((0, 0), (pad, 0)))
    real = jnp.pad(jnp.ones_like(ids), ((0, 0), (pad, 0)))
    positions = jnp.maximum(real.cumsum(axis=1) - 1, 0)
    out = logits(params(), padded, positions, real)
    np.testing.assert_allclose(out[:, pad:], whole(ids), atol=2e-5)
    cached = _cached(params(), padded, positions, real, (pad + 2, S - 2))
    np.testing.assert_allclose(cached[:, pad:], whole(ids), atol=2e-5)


@pytest.mark.parametrize("lengths", [(5, 3, 2), (1, 8, 1)])
def test_packed_segments_equal_separate_sequences(lengths):
    row = sum(lengths) + 2

    def padded(parts):
        return jnp.pad(jnp.concatenate(parts), (0, row - sum(map(len, parts))))

    sequences = [tokens(seed, length) for seed, length in enumerate(lengths)]
    counts = [jnp.arange(length) for length in lengths]
    numbers = [jnp.full(length, index + 1) for index, length in enumerate(lengths)]
    # Row 0 holds all of them, every further row one alone.
    rows = [list(range(len(lengths))), *([index] for index in range(len(lengths)))]
    ids, positions, segments = (
        jnp.stack([padded([source[index] for index in row]) for row in rows])
        for source in (sequences, counts, numbers)
    )
    packed, *separate = logits(params(), ids, positions, segments)
    start = 0
    for alone, length in zip(separate, lengths):
        np.testing.assert_allclose(packed[start : start + length], alone[:length], atol=2e-5)
        start += length


def test_grouped_heads_equal_repeated_ones():
    repeats = CONFIG.heads // CONFIG.kv_heads
    full = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            jnp.repeat(x, repeats, axis=-2)
            if {"key", "value"} & {getattr(k, "key", "") for k in path}
            else x
        ),
        params(),
    )
    config = dataclasses.replace(CONFIG, kv_heads=CONFIG.heads)
    ids = tokens(1, B, S)
    np.testing.assert_allclose(whole(ids, config, full), whole(ids), atol=2e-5)


def test_a_token_sees_nothing_after_it():
    ids = tokens(1, B, S)
    changed = ids.at[:, 6].set((ids[:, 6] + 1) % CONFIG.vocab)
    np.testing.assert_array_equal(whole(changed)[:, :6], whole(ids)[:, :6])
    assert jnp.abs(whole(changed)[:, 6:] - whole(ids)[:, 6:]).max() > 1e-2


def test_positions_are_relative():
    ids = tokens(1, B, S)
    ones = jnp.ones_like(ids)
    moved = logits(params(), ids, count(S) + 17, ones)
    np.testing.assert_allclose(moved, whole(ids), atol=1e-4)
    stretched = logits(params(), ids, 2 * count(S), ones)
    assert jnp.abs(stretched - whole(ids)).max() > 1e-2


def test_rotation_keeps_lengths_and_turns_by_halves():
    x = jax.random.normal(jax.random.key(0), (1, 3, 1, 4))
    turned = llama.rotate(x, jnp.array([[0, 1, 5]]), 100.0)
    np.testing.assert_allclose(turned[:, 0], x[:, 0], atol=1e-6)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    # Channel 1 turns with channel 3, at 100 ** (-1 / 2) radians a position.
    angle, (a, b) = 5 * 0.1, np.asarray(x)[0, 2, 0, [1, 3]]
    np.testing.assert_allclose(turned[0, 2, 0, 1], a * np.cos(angle) - b * np.sin(angle), atol=1e-6)
    np.testing.assert_allclose(turned[0, 2, 0, 3], b * np.cos(angle) + a * np.sin(angle), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_matmul_swaps_halves_to_the_bit(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 128)).astype(dtype)
    expected, pull = jax.vjp(llama.swapped_halves, x)
    swapped, pull_matmul = jax.vjp(llama.swapped_by_matmul, x)
    assert swapped.dtype == dtype
    np.testing.assert_array_equal(swapped, expected)
    np.testing.assert_array_equal(pull_matmul(x)[0], pull(x)[0])
    np.testing.assert_array_equal(expected[..., :64], x[..., 64:])


def test_logits_are_float32_in_every_compute_dtype():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    ids = tokens(1, B, S)
    out = whole(ids, config)
    assert out.dtype == jnp.float32
    assert out.shape == (B, S, CONFIG.vocab)
    assert jnp.abs(out - whole(ids)).max() < 0.5 * jnp.abs(whole(ids)).max()
