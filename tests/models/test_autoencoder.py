"""The KL autoencoder against plain torch, and its decode in tiles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pixel_math
import pixel_weights
from lavit_jax.convert import forms, pixel_infer, pixel_names
from lavit_jax.models import autoencoder
from lavit_jax.models.autoencoder import Autoencoder

SETTINGS = pixel_weights.AUTOENCODER
BARE = SETTINGS | {
    "use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False,
    "block_out_channels": [4, 8], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1,
}  # fmt: skip


def built(settings, **how):
    config = pixel_infer.autoencoder(settings, pixel_weights.NOWHERE)
    table = pixel_names.autoencoder(config, **how)
    state = pixel_weights.autoencoder_state(settings, **how)
    return config, state, forms.assemble(table, forms.pieces(table, state.items()))


def run(config, params, x, method):
    with jax.default_matmul_precision("highest"):
        return Autoencoder(config).apply({"params": params}, x, method=method)


def nchw(x):
    return torch.as_tensor(np.asarray(x).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        (SETTINGS, {}),
        (BARE, {}),
        (SETTINGS, {"attention": pixel_names.OLD_ATTENTION}),
        (SETTINGS, {"attention": pixel_names.OLD_ATTENTION, "form": forms.pointwise}),
    ],
    ids=["whole", "bare", "old names", "old names and shapes"],
)
def test_both_ways_agree_with_plain_torch_and_every_tensor_is_read(settings, how):
    config, state, params = built(settings, **how)
    rng = np.random.default_rng(3)
    image = rng.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 3, 2, 3)).astype(np.float32)
    mean, logvar, read = pixel_math.encode(state, settings, nchw(image))
    pixels, read_too = pixel_math.decode(state, settings, nchw(latents))
    assert read | read_too == state.keys()
    ours = run(config, params, image, "encode")
    np.testing.assert_allclose(nchw(ours.mean_BhwZ), mean, atol=2e-5)
    np.testing.assert_allclose(nchw(ours.logvar_BhwZ), logvar, atol=2e-5)
    np.testing.assert_allclose(nchw(run(config, params, latents, "decode")), pixels, atol=2e-5)
    assert run(config, params, image, "__call__").shape == image.shape


def test_scaling_there_and_back_changes_nothing():
    config, _, _ = built(SETTINGS | {"shift_factor": 0.5})
    x = jnp.linspace(-3, 3, 7)
    scaled = autoencoder.scale(config, x)
    np.testing.assert_allclose(scaled, (x - 0.5) * 0.3, rtol=1e-6)
    np.testing.assert_allclose(autoencoder.unscale(config, scaled), x, atol=1e-6)


def test_samples_lie_around_the_mean():
    latents = autoencoder.Latents(jnp.full((2000, 1, 1, 1), 3.0), jnp.full((2000, 1, 1, 1), -2.0))
    drawn = latents.sample(jax.random.key(0))
    assert float(drawn.mean()) == pytest.approx(3, abs=0.05)
    assert float(drawn.std()) == pytest.approx(np.exp(-1), abs=0.03)


@given(length=st.integers(1, 40), tile=st.integers(1, 40))
def test_tiles_cover_the_side_and_overlap(length, tile):
    starts = autoencoder.tile_starts(length, tile)
    size = min(tile, length)
    assert starts[0] == 0 and starts[-1] + size == length
    assert all(a < b <= a + size for a, b in itertools.pairwise(starts))


def test_one_tile_is_the_whole_decode():
    config, _, params = built(SETTINGS)
    latents = jax.random.normal(jax.random.key(0), (1, 5, 6, 3))
    decode = lambda z: run(config, params, z, "decode")  # noqa: E731
    tiled = autoencoder.decode_tiled(decode, latents, 6, config.factor)
    np.testing.assert_array_equal(tiled, decode(latents))


def test_tiles_of_a_local_decoder_are_the_whole_decode():
    # Without anything that reads beyond a place, every tile tells the same of it.
    decode = lambda z: jnp.repeat(jnp.repeat(jnp.tanh(z), 4, axis=1), 4, axis=2)  # noqa: E731
    latents = jax.random.normal(jax.random.key(0), (2, 13, 9, 3))
    tiled = jax.jit(lambda z: autoencoder.decode_tiled(decode, z, 5, 4))(latents)
    np.testing.assert_allclose(tiled, decode(latents), atol=1e-6)


def test_blended_tiles_have_no_seams():
    # A decoder that paints each tile in its own colour: neighbours must fade into each other.
    decode = lambda z: jnp.broadcast_to(z[:, :1, :1, :1], z.shape)  # noqa: E731
    latents = jnp.broadcast_to(jnp.arange(40.0)[None, None, :, None], (1, 8, 40, 1))
    row = autoencoder.decode_tiled(decode, latents, 16, 1)[0, 0, :, 0]
    assert np.all(np.diff(row) >= -1e-5)
    assert np.abs(np.diff(row)).max() <= 12 / 4
