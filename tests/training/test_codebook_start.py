import numpy as np
import pytest

from lavit_jax.data import pipeline
from lavit_jax.models import lavit, selector
from lavit_jax.training import codebook_start
from lavit_jax.training.interruption import Interruption


@pytest.fixture(scope="module")
def started(run, state):
    """The state at the start of the first phase that quantizes."""
    return codebook_start.begin(run, phase_named(run, "quantize"), state, Interruption())


def phase_named(run, name):
    return next(phase for phase in run.phases if phase.name == name)


@pytest.mark.parametrize("name", ["encoder", "select", "unified"])
def test_other_phases_leave_the_codebook_alone(run, state, name):
    assert codebook_start.begin(run, phase_named(run, name), state, Interruption()) is state


def test_codes_are_directions_and_counts_start_alike(run, started):
    book = started.codebook
    assert book.codes_KC.shape == (run.modules.config.quantizer.codes, 8)
    np.testing.assert_allclose(np.linalg.norm(book.codes_KC, axis=1), 1.0, atol=1e-5)
    assert len(np.unique(book.count_K)) == 1


def test_codes_lie_among_real_features(run, state, started):
    """Features of pictures are nearer to these codes than to random ones."""
    features = codebook_start._features(run, phase_named(run, "quantize"), state, Interruption())
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-5)
    near, far = (
        (features @ np.asarray(book.codes_KC).T).max(axis=1).mean()
        for book in (started.codebook, state.codebook)
    )
    assert near > far
    assert near > 0.9


def test_the_start_is_the_same_for_a_seed_and_changes_nothing_else(run, state, started):
    again = codebook_start.begin(run, phase_named(run, "quantize"), state, Interruption())
    np.testing.assert_array_equal(again.codebook.codes_KC, started.codebook.codes_KC)
    assert started.params is state.params


def test_only_kept_patches_are_features(run, state):
    """As many features as asked for, each from a patch the frozen selector keeps."""
    m = run.modules
    features = codebook_start._features(run, phase_named(run, "quantize"), state, Interruption())
    assert len(features) == codebook_start.FEATURES_PER_CODE * m.config.quantizer.codes
    batches = pipeline.image_batches(run.config, run.data_dir, 16, run.config.seed * 1000 + 999)
    x = lavit.encode_image(m, state.params, next(batches)["images"])
    keep, _ = lavit.select(m, state.params, x, selector.greedy_keep)
    z = lavit.run(m, state.params, "quantizer", lavit.run(m, state.params, "merger", x, keep))
    kept = np.asarray(z)[np.asarray(keep) > 0.5]
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(features[: len(kept)], kept, atol=2e-5)


def test_a_stop_asked_for_meanwhile_is_heeded(run, state, monkeypatch):
    interruption = Interruption()
    monkeypatch.setattr(Interruption, "requested", lambda self: True)
    with pytest.raises(SystemExit):
        codebook_start.begin(run, phase_named(run, "quantize"), state, interruption)
