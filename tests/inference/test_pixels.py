"""Ids to pictures through both published decoders."""

from pathlib import Path

import jax
import numpy as np
import pytest

from lavit_jax.convert import published
from lavit_jax.convert.pixel_infer import FOLDERS
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference import pixels
from lavit_jax.inference.api import Lavit
from lavit_jax.inference.pixels import ASPECT_RATIOS, Settings
from lavit_jax.models.lavit import build_modules

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
QUICK = Settings(steps=3)
IDS = [np.array([5, 9, 100]), np.arange(16), np.array([7])]


@pytest.fixture(scope="module")
def loaded():
    return published.load_published(GOLDENS, published.PARTS + tuple(FOLDERS.values()))


@pytest.fixture(scope="module")
def decoders(loaded):
    return pixels.published(loaded)


@pytest.fixture(scope="module")
def model(loaded, decoders):
    text = TextTokenizer(GOLDENS / "language_model" / "tokenizer.model")
    readers = {kind: lambda kind=kind: decoders[kind] for kind in decoders}
    modules = build_modules(loaded.config)
    return Lavit(modules, loaded.params, loaded.codebook, text, "published", readers)


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


def painter_of(decoder):
    return pixels._Painter(decoder.kind, decoder.config, decoder._heads)


@pytest.mark.parametrize("size", ASPECT_RATIOS)
def test_highres_paints_every_published_ratio_and_is_told_its_size(decoders, size):
    decoder, seen = decoders["highres"], []
    painter = painter_of(decoder)
    factor = decoder.config.factor
    full = decoder._full(Settings(height=size[0], width=size[1]))

    def paint(params, codes, ids, valid, keys):
        embedded = codes[ids]
        seen.append(painter._condition(params, embedded, valid, full).sizes_B6)
        return painter.paint(params, codes, None, ids, valid, keys, None, full)

    ids, keys = np.zeros((2, 16), np.int32), jax.random.split(jax.random.key(0), 2)
    shape = jax.eval_shape(paint, decoder._params, decoder._codes, ids, ids == 0, keys)
    assert shape.shape == (2, *size, 3)
    assert size[0] % factor == size[1] % factor == 0
    assert seen[0].shape == (2, 6)


def test_sizes_of_the_condition_are_those_asked_for(decoders):
    decoder = decoders["highres"]
    full = decoder._full(Settings(height=768, width=1344))
    codes = np.zeros((1, 16, decoder._codes.shape[1]), np.float32)
    condition = painter_of(decoder)._condition(decoder._params, codes, np.ones((1, 16), bool), full)
    np.testing.assert_array_equal(condition.sizes_B6, [[768, 1344, 0, 0, 768, 1344]])


def test_guidance_of_one_is_the_conditional_branch_alone(decoders):
    # Nearly one runs both branches, one runs only the conditional one.
    one, near = (
        decoders["lowres"].paint(IDS[:1], settings=Settings(steps=2, guidance=g))[0].astype(int)
        for g in (1.0, 1.0 + 1e-6)
    )
    assert np.abs(one - near).max() <= 1


def test_the_stored_unconditional_embeddings_are_used(loaded):
    ((name, stored),) = loaded.params["lowres_uncond"].items()
    other = loaded._replace(params=loaded.params | {"lowres_uncond": {name: stored * 0 + 1}})
    one, two = (
        pixels.published(found)["lowres"].paint(IDS[:1], settings=QUICK)[0].astype(int)
        for found in (loaded, other)
    )
    assert np.abs(one - two).max() > 5


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
    program = pixels._program(painter_of(decoder), None)
    compiled = program._cache_size()
    decoder.paint(IDS[::-1], seed=9, settings=QUICK)
    first, second = (
        decoder.paint(IDS, settings=Settings(steps=3, guidance=scale)) for scale in (2.0, 9.0)
    )
    assert program._cache_size() == compiled
    assert not np.array_equal(first, second)


def test_settings_that_cannot_be_followed_are_told(decoders):
    paint = lambda **s: decoders["lowres"].paint(IDS, settings=Settings(**s))  # noqa: E731
    with pytest.raises(UserError, match="height 15 is no multiple of 2"):
        paint(height=15)
    with pytest.raises(UserError, match="solver is 'euler', expected one of ddim, dpm"):
        paint(solver="euler")
    with pytest.raises(UserError, match="0 steps do not fit"):
        paint(steps=0)
    with pytest.raises(UserError, match="has 17 ids, more than its 16 patches"):
        decoders["lowres"].paint([np.arange(17)])


def test_a_checkpoint_without_the_rest_is_told():
    alone = published.load_published(GOLDENS, ["pixel_decoding"])
    with pytest.raises(UserError, match="need the codebook"):
        pixels.published(alone)


WIDE = {"decoder_size": (8, 12), "decoder_solver": "dpm++", "decoder_tile": True}


def test_a_reconstruction_has_the_size_and_solver_asked_for(model):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    (again,) = model.reconstruct([picture], "highres", decoder_steps=3, seed=4, **WIDE)
    (tokens,) = model.tokenize([picture])
    settings = Settings(height=8, width=12, steps=3, solver="dpm++", tiled=True)
    np.testing.assert_array_equal(again, model.paint([tokens.ids], "highres", 4, settings)[0])
    assert again.shape == (8, 12, 3)


def test_every_setting_of_a_drawing_reaches_its_decoder(model, decoders, monkeypatch):
    seen = []

    def paint(ids, seed, settings):
        seen.append(settings)
        return [np.zeros((8, 12, 3), np.uint8) for _ in ids]

    monkeypatch.setattr(decoders["lowres"], "paint", paint)
    how = {"decoder": "lowres", "decoder_guidance": 3.0, "decoder_steps": 9, **WIDE}
    ((drawn,),) = model.draw(["a cat"], **how)
    assert drawn.shape == (8, 12, 3)
    assert seen == [Settings(8, 12, 3.0, 9, "dpm++", True)]


@pytest.mark.parametrize(("changes", "says"), [
    ({"decoder_size": (8, 15)}, "width 15 is no multiple of 2"),
    ({"decoder_size": (8, 0)}, "width 0 is no multiple of 2"),
    ({"decoder_size": (8, 8.5)}, r"decoder_size is \(8, 8.5\), expected \(height, width\)"),
    ({"decoder_size": 64}, r"decoder_size is 64, expected \(height, width\)"),
    ({"decoder_solver": "euler"}, "solver is 'euler', expected one of ddim, dpm"),
    ({"decoder_steps": 2000}, "2000 steps do not fit"),
])  # fmt: skip
def test_what_a_decoder_cannot_follow_is_told_before_anything_is_sampled(
    changes, says, model, monkeypatch
):
    monkeypatch.setattr(Lavit, "tokens", None)
    monkeypatch.setattr(Lavit, "lay", None)
    with pytest.raises(UserError, match=says):
        model.draw(["a cat"], decoder="lowres", **changes)
    with pytest.raises(UserError, match=says):
        model.reconstruct([np.zeros((8, 8, 3), np.uint8)], "lowres", **changes)
