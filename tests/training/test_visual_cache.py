import jax
import numpy as np
import pytest

from lavit_jax.data import pipeline
from lavit_jax.data.visual_ids import VisualIdCache
from lavit_jax.models import lavit
from lavit_jax.training import visual_cache
from lavit_jax.training.interruption import Interruption


@pytest.fixture(scope="module")
def cache(run, state):
    return visual_cache.load_or_build(run, state, Interruption())


def changed(state, module):
    """The state with one parameter of a module moved by a little."""
    leaves, tree = jax.tree.flatten(state.params[module])
    leaves[0] = leaves[0] + 1e-3
    params = {**state.params, module: jax.tree.unflatten(tree, leaves)}
    return state.replace(params=params)


def test_every_variant_of_every_training_picture_has_ids(run, cache):
    pictures = pipeline.variants(run.config, run.data_dir, "train")
    assert len(cache) == len(pictures)
    assert cache.counts_M.min() >= 1
    assert cache.codes_ML.max() < run.modules.config.quantizer.codes


def test_the_ids_are_the_tokenizers_own(run, state, cache):
    pictures = pipeline.variants(run.config, run.data_dir, "train")
    last = len(pictures) - 1  # in the batch that is padded
    for index in (0, last):
        tokens = lavit.tokenize(run.modules, state.params, state.codebook, pictures[index][None])
        kept = int(np.asarray(tokens.kept.valid_BL).sum())
        np.testing.assert_array_equal(cache.codes(index), np.asarray(tokens.ids_BL)[0, :kept])
        np.testing.assert_array_equal(cache.keep_MN[index], np.asarray(tokens.keep_BN)[0] > 0.5)


def test_a_cache_of_the_same_weights_is_read_not_made_again(run, state, cache, monkeypatch):
    monkeypatch.setattr(visual_cache, "build", None)
    again = visual_cache.load_or_build(run, state, Interruption())
    np.testing.assert_array_equal(again.codes_ML, cache.codes_ML)


def test_a_process_that_finds_the_ids_makes_them_with_the_others_that_did_not(
    run, state, cache, monkeypatch
):
    asked = []
    monkeypatch.setattr(visual_cache.peers, "all_of", asked.append)  # gives None: not all
    monkeypatch.setattr(visual_cache, "build", lambda *_: cache)
    assert visual_cache.load_or_build(run, state, Interruption()) is cache
    assert asked == [True]


def test_ids_without_the_keys_of_their_examples_are_made_anew(run, state, cache, monkeypatch):
    path = run.workdir / "visual_ids.npz"
    VisualIdCache(cache.codes_ML, cache.keep_MN, cache.stamp).save(path)
    monkeypatch.setattr(visual_cache, "build", lambda *_: cache)
    assert visual_cache.load_or_build(run, state, Interruption()) is cache
    assert VisualIdCache.load(path).keys == cache.keys
    assert cache.key(0) == pipeline.variants(run.config, run.data_dir, "train").keyed(0)[0] != ""


@pytest.mark.parametrize("module", visual_cache.TOKENIZER)
def test_a_cache_is_refused_when_a_weight_of_the_tokenizer_differs(
    run, state, cache, monkeypatch, module
):
    built = []

    def build(run, current, wanted, interruption):
        built.append(wanted)
        return VisualIdCache(cache.codes_ML, cache.keep_MN, cache.stamp)

    monkeypatch.setattr(visual_cache, "build", build)
    visual_cache.load_or_build(run, changed(state, module), Interruption())
    assert len(built) == 1
    assert built[0] != cache.stamp


def test_the_codebook_belongs_to_the_stamp_and_the_decoder_does_not(run, state):
    stamp = visual_cache.stamp(state, run.mesh)
    assert visual_cache.stamp(changed(state, "decoder"), run.mesh) == stamp
    book = state.codebook.replace(codes_KC=-state.codebook.codes_KC)
    assert visual_cache.stamp(state.replace(codebook=book), run.mesh) != stamp
