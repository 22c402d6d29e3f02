"""Pixels as latents, and the conditions of both branches."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lavit_jax.models import pixels
from lavit_jax.models.unet import Condition


@given(patch=st.sampled_from([1, 2, 4]), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_gathered_pixels_spread_back(patch, rows, columns):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, rows * patch, columns * patch, 3)).astype(np.float32)
    latents = pixels.gather_pixels(jnp.asarray(images), patch)
    assert latents.shape == (2, rows, columns, 3 * patch**2)
    np.testing.assert_array_equal(pixels.spread_pixels(latents, patch), images)


def test_a_latent_is_one_patch():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(pixels.gather_pixels(image, 2)[0, 1, 0], [8, 9, 12, 13])


def test_without_stored_embeddings_nothing_but_sizes_is_left():
    condition = Condition(
        jnp.ones((2, 3, 4)), pooled_BP=jnp.ones((2, 5)), sizes_B6=jnp.full((2, 6), 9.0)
    )
    nothing, own = pixels.unconditional(condition, None)
    assert own is condition
    assert not nothing.tokens_BLF.any() and not nothing.pooled_BP.any()
    np.testing.assert_array_equal(nothing.sizes_B6, condition.sizes_B6)


def test_stored_embeddings_have_a_mask_of_their_own():
    condition, stored = Condition(jnp.ones((2, 5, 4))), jnp.full((3, 4), 7.0)
    nothing, own = pixels.unconditional(condition, stored)
    np.testing.assert_array_equal(nothing.mask_BL, [[1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(nothing.tokens_BLF[:, :3], jnp.full((2, 3, 4), 7.0))
    assert own.mask_BL.all()
    longer, padded = pixels.unconditional(condition, jnp.ones((6, 4)))
    assert longer.mask_BL.all()
    np.testing.assert_array_equal(padded.mask_BL.sum(axis=1), [5, 5])


def test_dropped_rows_see_what_the_unconditional_branch_sees():
    condition = Condition(jnp.ones((2, 3, 4)), pooled_BP=jnp.ones((2, 5)))
    dropped = pixels.drop_condition(condition, jnp.array([True, False]))
    assert not dropped.tokens_BLF[0].any() and not dropped.pooled_BP[0].any()
    assert dropped.tokens_BLF[1].all() and dropped.pooled_BP[1].all()
