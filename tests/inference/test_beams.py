"""Beam search, compared with a plain one over whole sequences and with trying everything."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_lm as lm
from lavit_jax.inference import beams
from lavit_jax.inference import generate as generation
from lavit_jax.inference.beams import BeamConfig
from lavit_jax.inference.generate import SamplingConfig

PROMPTS = [[3], [5, 6, 7, 4], [1, 8], [10, 11, 12]]
NEW = 5


@jax.jit
def compiled(prompt, config, banned, stops):
    return beams.search(lm.LLM, lm.params(), prompt, config, banned, stops)


def search(rows, config, banned=(), places=None):
    stops = jnp.full(len(rows), lm.STOP)
    found = compiled(lm.prompt(rows, places), config, lm.banned(*banned), stops)
    return jax.device_get(found)


def plain(row, config, banned=()):
    """The published beam search, as transformers has it: of 2 W candidates, those that end among
    the best W are kept; at the last step all of these end."""
    running, ended = [(0.0, ())], []
    for length in range(1, config.max_new + 1):
        candidates = []
        for total, ids in running:
            scores = lm.log_probs([*row, *ids])
            for token in range(lm.V):
                held = token == lm.STOP and length <= config.min_new
                if token not in banned and not held:
                    score = scores[token]
                    if token in ids and config.repetition_penalty:
                        score *= config.repetition_penalty
                    candidates.append((total + score, (*ids, token)))
        candidates.sort(key=lambda c: -c[0])
        candidates = candidates[: 2 * config.beams]
        for total, ids in candidates[: config.beams]:
            if ids[-1] == lm.STOP or length == config.max_new:
                ended.append((total / length**config.length_penalty, ids))
        ended = sorted(ended, key=lambda c: -c[0])[: config.beams]
        running = [c for c in candidates if c[1][-1] != lm.STOP][: config.beams]
        if len(ended) == config.beams:
            attainable = running[0][0] / length**config.length_penalty
            if config.early_stopping or ended[-1][0] >= attainable:
                break
    return ended


@pytest.mark.parametrize("config", [
    BeamConfig(2, NEW),
    BeamConfig(3, NEW, min_new=2, length_penalty=0.0, early_stopping=True),
    BeamConfig(4, NEW, length_penalty=2.0),
    BeamConfig(2, NEW, early_stopping=True, repetition_penalty=1.5),
])  # fmt: skip
@pytest.mark.parametrize("banned", [(), (4, 5, 13)])
def test_beam_search_equals_a_plain_one_without_a_cache(config, banned):
    found = search(PROMPTS, config, banned)
    for number, row in enumerate(PROMPTS):
        expected = plain(row, config, banned)
        np.testing.assert_allclose(
            found.scores_BW[number], [score for score, _ in expected], atol=1e-4
        )
        for place, (_, ids) in enumerate(expected):
            assert tuple(found.ids_BWM[number, place, : len(ids)].tolist()) == ids
            assert found.lengths_BW[number, place] == len(ids) - (ids[-1] == lm.STOP)


def test_enough_beams_find_the_likeliest_of_all_continuations():
    ids = [token for token in range(lm.V) if token != lm.STOP]
    banned = tuple(ids[6:])
    config = BeamConfig(36, 3, length_penalty=0.0)
    found = search([PROMPTS[1]], config, banned)
    best = (-np.inf, ())
    for length in range(4):
        for words in itertools.product(ids[:6], repeat=length):
            continued = (*words, lm.STOP)[:3]
            total = sum(
                lm.log_probs([*PROMPTS[1], *continued[:place]])[token]
                for place, token in enumerate(continued)
            )
            best = max(best, (total, continued))
    assert found.scores_BW[0, 0] == pytest.approx(best[0], abs=1e-4)
    assert tuple(found.ids_BWM[0, 0].tolist()[: len(best[1])]) == best[1]


def test_beams_are_sorted_and_distinct():
    found = search(PROMPTS, BeamConfig(4, NEW))
    assert (np.diff(found.scores_BW, axis=1) <= 0).all()
    for row in found.ids_BWM:
        assert len({tuple(beam.tolist()) for beam in row}) == 4


def test_one_beam_is_greedy():
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    stops = jnp.full(4, lm.STOP)
    prompt, banned = lm.prompt(PROMPTS), lm.banned()
    greedy = jax.jit(
        lambda: generation.generate(
            lm.LLM, lm.params(), prompt, SamplingConfig(NEW), banned, stops, keys
        )
    )()
    found = search(PROMPTS, BeamConfig(1, NEW))
    np.testing.assert_array_equal(found.ids_BWM[:, 0], greedy.ids_BM)
    np.testing.assert_array_equal(found.lengths_BW[:, 0], greedy.lengths_B)


def test_a_row_does_not_depend_on_its_company_or_place():
    config = BeamConfig(3, NEW)
    together = search(PROMPTS, config, places=6)
    alone = search([PROMPTS[2]], config)
    np.testing.assert_array_equal(alone.ids_BWM[0], together.ids_BWM[2])
    turned = search(PROMPTS[::-1], config, places=6)
    np.testing.assert_array_equal(turned.ids_BWM[::-1], together.ids_BWM)


def test_rows_that_are_all_padding_keep_others_as_they_are():
    config = BeamConfig(2, NEW)
    found = search([PROMPTS[0], []], config)
    np.testing.assert_array_equal(found.ids_BWM[0], search([PROMPTS[0]], config).ids_BWM[0])


def test_banned_ids_never_appear_and_least_lengths_hold():
    found = search(PROMPTS, BeamConfig(3, NEW, min_new=3), banned=(4, 5, 6))
    assert not np.isin(found.ids_BWM, (4, 5, 6)).any()
    assert found.lengths_BW.min() >= 3
