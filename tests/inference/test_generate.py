"""Greedy decoding, sampling and guidance, compared with a plain loop over whole sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_lm as lm
from lavit_jax.inference import generate as generation
from lavit_jax.inference import logits
from lavit_jax.inference.generate import SamplingConfig

PROMPTS = [[3], [5, 6, 7, 4], [1, 8], [10, 11, 12]]
NEW = 7


@functools.partial(jax.jit, static_argnames="first")
def compiled(prompt, config, banned, stops, keys, unconditional=None, first=0):
    return generation.generate(
        lm.LLM,
        lm.params(),
        prompt,
        config,
        banned,
        stops,
        keys,
        unconditional=unconditional,
        first=first,
    )


def generate(rows, config, banned=(), seeds=None, unconditional=None, places=None, first=0):
    found = compiled(
        lm.prompt(rows, places),
        config,
        lm.banned(*banned),
        jnp.full(len(rows), lm.STOP),
        jax.vmap(jax.random.key)(jnp.arange(len(rows)) if seeds is None else jnp.array(seeds)),
        None if unconditional is None else lm.prompt(unconditional),
        first=first,
    )
    ids, lengths = np.asarray(found.ids_BM), np.asarray(found.lengths_B)
    return [ids[row, : lengths[row]].tolist() for row in range(len(rows))], ids


def plain_greedy(row, new, banned=(), least=0, score=lm.log_probs):
    """The likeliest token again and again."""
    chosen: list[int] = []
    while len(chosen) < new:
        scores = score([*row, *chosen]).copy()
        scores[list(banned)] = -np.inf
        if len(chosen) < least:
            scores[lm.STOP] = -np.inf
        best = int(scores.argmax())
        if best == lm.STOP:
            break
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("least", [0, 3])
@pytest.mark.parametrize("banned", [(), (4, 5, 6, 13)])
def test_greedy_decoding_equals_a_plain_loop_without_a_cache(banned, least):
    found, _ = generate(PROMPTS, SamplingConfig(NEW, min_new=least), banned)
    assert found == [plain_greedy(row, NEW, banned, least) for row in PROMPTS]


def test_guided_greedy_decoding_equals_two_plain_models_side_by_side():
    start, scale = [9], 3.0
    config = SamplingConfig(NEW, guidance=scale)
    found, _ = generate(PROMPTS, config, unconditional=[start] * len(PROMPTS))
    for row, chosen in zip(PROMPTS, found):

        def guided(ids, row=row):
            u = lm.log_probs([*start, *ids[len(row) :]])
            return u + scale * (lm.log_probs(ids) - u)

        assert chosen == plain_greedy(row, NEW, score=guided)


def test_guidance_of_one_is_no_guidance():
    guided, _ = generate(PROMPTS, SamplingConfig(NEW, guidance=1.0), unconditional=[[9]] * 4)
    assert guided == generate(PROMPTS, SamplingConfig(NEW))[0]


@pytest.mark.parametrize("config", [
    SamplingConfig(NEW),
    SamplingConfig(NEW, guidance=3.0),
    SamplingConfig(NEW, temperature=1.5, top_k=4, top_p=0.9, guidance=2.0),
])  # fmt: skip
def test_ids_before_the_first_need_no_scores(config):
    first, others = lm.STOP, None if config.guidance is None else [[9]] * 4
    banned = range(first)
    narrow = generate(PROMPTS, config, unconditional=others, first=first)
    assert narrow[0] == generate(PROMPTS, config, banned, unconditional=others)[0]


def test_a_repetition_penalty_needs_all_scores():
    with pytest.raises(ValueError, match="needs the scores of all ids"):
        generate(PROMPTS, SamplingConfig(NEW, repetition_penalty=2.0), first=2)


def test_guidance_needs_its_other_branch():
    with pytest.raises(ValueError, match="unconditional"):
        generate(PROMPTS, SamplingConfig(NEW, guidance=2.0))


@pytest.mark.parametrize("config", [
    SamplingConfig(NEW, temperature=1.0),
    SamplingConfig(NEW, temperature=0.7, top_k=3, top_p=0.9),
    SamplingConfig(NEW, temperature=1.0, repetition_penalty=1.5, guidance=2.0),
])  # fmt: skip
def test_a_row_does_not_depend_on_its_company_or_place(config):
    others = None if config.guidance is None else [[9]] * 4
    together, _ = generate(PROMPTS, config, seeds=[5, 6, 7, 8], unconditional=others, places=6)
    turned, _ = generate(PROMPTS[::-1], config, seeds=[8, 7, 6, 5], unconditional=others, places=6)
    assert turned[::-1] == together
    alone, _ = generate(PROMPTS[1:2], config, seeds=[6], unconditional=others and others[:1])
    assert alone == together[1:2]


def test_other_seeds_give_other_samples():
    config = SamplingConfig(NEW, temperature=2.0)
    assert generate(PROMPTS, config)[0] != generate(PROMPTS, config, seeds=[9, 8, 7, 6])[0]


@pytest.mark.parametrize("guidance", [None, 2.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("how", [
    {"temperature": 3.0},
    {"temperature": 3.0, "top_k": 4, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.5, "repetition_penalty": 3.0},
    {"repetition_penalty": 3.0},
], ids=["free", "top_k", "top_p", "greedy"])  # fmt: skip
@settings(max_examples=15, deadline=None)
@given(banned=st.sets(st.integers(3, lm.V - 1), max_size=lm.V - 4), seed=st.integers(0, 2**16))
def test_banned_ids_never_appear(how, guidance, banned, seed):
    config = SamplingConfig(NEW, guidance=guidance, **how)
    others = None if guidance is None else [[9]] * 4
    found, _ = generate(PROMPTS, config, banned, [seed, 1, 2, 3], unconditional=others)
    assert not banned & {token for row in found for token in row}


def test_samples_of_top_k_and_top_p_come_from_the_likeliest():
    first = lm.log_probs(PROMPTS[1])
    best = np.argsort(-first)
    rows = [PROMPTS[1]] * 64
    for config, allowed in (
        (SamplingConfig(1, temperature=5.0, top_k=2), best[:2]),
        (SamplingConfig(1, temperature=1.0, top_p=1e-6), best[:1]),
    ):
        _, ids = generate(rows, config, seeds=list(range(64)))
        assert set(ids[:, 0].tolist()) == set(allowed.tolist())


def test_samples_follow_the_models_probabilities():
    rows = [PROMPTS[0]] * 2000
    _, ids = generate(rows, SamplingConfig(1, temperature=1.0), seeds=list(range(2000)))
    share = np.bincount(ids[:, 0], minlength=lm.V) / 2000
    assert np.abs(share - np.exp(lm.log_probs(PROMPTS[0]))).max() < 0.05


def test_rows_that_are_all_padding_end_at_once():
    found, ids = generate([PROMPTS[0], []], SamplingConfig(NEW))
    assert found[1] == []
    assert not ids[1].any()
    assert found[0] == plain_greedy(PROMPTS[0], NEW)


def test_a_strong_repetition_penalty_forbids_repeating():
    free, _ = generate(PROMPTS, SamplingConfig(NEW, min_new=NEW))
    assert any(len(set(row)) < len(row) for row in free)
    penalized = SamplingConfig(NEW, min_new=NEW, repetition_penalty=1e6)
    scores = jnp.array([[2.0, -1.0, 0.5]])
    lowered = logits.penalize_repetition(scores, jnp.array([[True, True, False]]), 2.0)
    assert lowered.tolist() == [[1.0, -2.0, 0.5]]
    rows, _ = generate(PROMPTS, penalized)
    assert all(len(set(row)) == len(row) for row in rows)


def test_numbers_may_change_without_compiling_again():
    generate(PROMPTS, SamplingConfig(NEW, temperature=1.0, min_new=0))
    before = compiled._cache_size()
    generate(PROMPTS, SamplingConfig(NEW, temperature=0.3, min_new=2))
    assert compiled._cache_size() == before
