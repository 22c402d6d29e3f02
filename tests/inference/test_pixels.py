"""Ids to pictures through both published decoders."""

from pathlib import Path

import numpy as np
import pytest

from lavit_jax.convert import published
from lavit_jax.errors import UserError
from lavit_jax.inference import pixels
from lavit_jax.inference.pixels import ASPECT_RATIOS, Settings

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
QUICK = Settings(steps=3)
IDS = [np.array([5, 9, 100]), np.arange(16), np.array([7])]


@pytest.fixture(scope="module")
def loaded():
    return published.load_published(
        GOLDENS, ["visual_tokenizer", "pixel_decoding", "highres_pixel_decoding"]
    )


@pytest.fixture(scope="module")
def decoders(loaded):
    return pixels.published(loaded)


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_a_batch_equals_one_by_one(decoders, kind):
    # A picture depends on its place through its noise: the first stays the first.
    together = decoders[kind].paint(IDS, seed=3, settings=QUICK)
    assert [p.shape for p in together] == [(16, 16, 3)] * 3 and together[0].dtype == np.uint8
    alone = decoders[kind].paint(IDS[:1], seed=3, settings=QUICK)
    assert np.abs(together[0].astype(int) - alone[0].astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["lowres", "highres"])
def test_ids_and_seed_decide_the_picture(decoders, kind):
    paint = lambda ids, seed: decoders[kind].paint([ids], seed, QUICK)[0].astype(int)  # noqa: E731
    first = paint(IDS[0], 0)
    np.testing.assert_array_equal(first, paint(IDS[0], 0))
    assert np.abs(first - paint(IDS[0], 1)).max() > 20
    assert np.abs(first - paint(IDS[1], 0)).max() > 20


def test_highres_paints_every_published_ratio(decoders):
    shapes = set()
    for height, width in ASPECT_RATIOS:
        # A miniature: the same ratios at a thirty-second of the side, in multiples of the factor.
        small = Settings(height=height // 32, width=width // 32, steps=1)
        shapes.add(decoders["highres"].paint([IDS[0]], settings=small)[0].shape)
    assert shapes == {(h // 32, w // 32, 3) for h, w in ASPECT_RATIOS}


def test_sizes_are_part_of_the_highres_condition(decoders):
    wide = Settings(height=16, width=24, steps=2)
    tall = Settings(height=24, width=16, steps=2)
    one, other = (decoders["highres"].paint([IDS[0]], settings=s)[0] for s in (wide, tall))
    assert one.shape == (16, 24, 3) and other.shape == (24, 16, 3)


def test_guidance_of_one_is_the_conditional_branch_alone(decoders):
    # Nearly one runs both branches, one runs only the conditional one.
    for kind in ("lowres", "highres"):
        one, near = (
            decoders[kind].paint(IDS[:1], settings=Settings(steps=2, guidance=g))[0].astype(int)
            for g in (1.0, 1.0 + 1e-6)
        )
        assert np.abs(one - near).max() <= 1


def test_the_stored_unconditional_embeddings_are_used(loaded):
    import dataclasses

    part = loaded.pixels["lowres"]
    other = loaded._replace(
        pixels={"lowres": dataclasses.replace(part, unconditional_LF=part.unconditional_LF * 0 + 1)}
    )
    paint = lambda l: pixels.published(l)["lowres"].paint(IDS[:1], settings=QUICK)[0]  # noqa: E731,E741
    assert np.abs(paint(loaded).astype(int) - paint(other).astype(int)).max() > 5


def test_tiles_paint_the_same_scene(decoders):
    settings = Settings(height=64, width=48, steps=2, tiled=True)
    tiled = decoders["lowres"].paint(IDS[:1], settings=settings)[0]
    assert tiled.shape == (64, 48, 3)
    whole = decoders["lowres"].paint(IDS[:1], settings=Settings(height=64, width=48, steps=2))[0]
    # Norms see one tile at a time, so that only the scene is the same, not every pixel.
    assert np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.5


def test_one_program_serves_every_call(decoders):
    decoder = decoders["lowres"]
    decoder.paint(IDS, settings=QUICK)
    program = pixels._program(pixels._Painter(decoder.kind, decoder.config, decoder._heads))
    compiled = program._cache_size()
    decoder.paint(IDS[::-1], seed=9, settings=QUICK)
    assert program._cache_size() == compiled


def test_settings_that_cannot_be_followed_are_told(decoders):
    paint = lambda **s: decoders["lowres"].paint(IDS, settings=Settings(**s))  # noqa: E731
    with pytest.raises(UserError, match="height 15 is no multiple of 2"):
        paint(height=15)
    with pytest.raises(UserError, match="solver must be one of"):
        paint(solver="euler")
    with pytest.raises(UserError, match="0 steps do not fit"):
        paint(steps=0)
    with pytest.raises(UserError, match="has 17 ids, more than its 16 patches"):
        decoders["lowres"].paint([np.arange(17)])


def test_a_checkpoint_without_the_rest_is_told():
    alone = published.load_published(GOLDENS, ["pixel_decoding"])
    with pytest.raises(UserError, match="need the codebook"):
        pixels.published(alone)
