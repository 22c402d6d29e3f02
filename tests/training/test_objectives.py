"""What each objective measures, and which parameters it teaches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.data import layout, packing
from lavit_jax.data.layout import Condition, SpecialIds
from lavit_jax.models import lavit, quantizer
from lavit_jax.training import objectives
from lavit_jax.training.objectives import READS, Tokenizer, TokenizerPhase
from random_params import random_params
from small_run import OVERRIDES
from tiny import TEXT_VOCAB, mini_config, tiny_modules

M = tiny_modules()
PHASES = mini_config(*OVERRIDES).phases
KEY = jax.random.key(5)
ROWS, SIDE, PATCHES = 4, 32, 16

TOKENIZER_METRICS = {
    "cosine_loss", "pixel_loss", "share_loss", "kept_mean", "kept_min", "kept_max", "kept_greedy",
    "selector_entropy",
}  # fmt: skip
CODE_METRICS = {"commitment", "codebook_perplexity", "codebook_in_use", "dead_codes"}


@functools.cache
def params():
    kinds = {phase.objective for phase in PHASES.values()}
    names = tuple(dict.fromkeys(name for kind in sorted(kinds) for name in READS[kind]))
    return random_params(lambda key: lavit.init_params(M, names, key))


@functools.cache
def codebook():
    return quantizer.random_codebook(M.config.quantizer, jax.random.key(1))


def images(*leading):
    return np.random.default_rng(0).integers(0, 256, (*leading, SIDE, SIDE, 3), np.uint8)


def row(*examples):
    shape = packing.RowShape(packing.Limits(64, 2), PATCHES, SIDE)
    return packing.lay_row(examples, shape, lambda image: images(2)[image])


def unified_batch():
    special = SpecialIds(TEXT_VOCAB, M.config.quantizer.codes)
    keep = (np.arange(PATCHES) % 3 == 0).astype(np.uint8)
    rows = [
        row(
            layout.image_text(special, Condition(0, keep), [10, 11, 12]),
            layout.text_image(special, [10, 11], [3, 5, 7]),
        ),
        row(layout.question(special, Condition(1, keep), [20, 21], [22])),
    ]
    return {name: np.stack([each[name] for each in rows]) for name in rows[0]}


BATCHES = {
    "contrastive": lambda: {
        "images": images(ROWS),
        "text": np.arange(1, 1 + ROWS * 6, dtype=np.int32).reshape(ROWS, 6),
        "index": np.arange(ROWS, dtype=np.int32),
    },
    "tokenizer": lambda: {"images": images(ROWS)},
    "unified": unified_batch,
}


@functools.cache
def outcome(name):
    """Loss, outcome and gradients by module of a phase of the config."""
    phase = PHASES[name]
    objective = objectives.make_objective(M, phase)

    def loss_of(train, frozen, book, batch):
        return objective({**frozen, **train}, book, batch, KEY)

    read = {module: params()[module] for module in READS[phase.objective]}
    run = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, found), grads = run(read, params(), codebook(), BATCHES[phase.objective]())
    return loss, found, grads


@pytest.mark.parametrize(
    ("phase", "names"),
    [
        ("encoder", {"accuracy", "scale", "pixel_loss", "alikeness"}),
        ("select", TOKENIZER_METRICS),
        ("quantize", TOKENIZER_METRICS | CODE_METRICS),
        ("reconstruct", TOKENIZER_METRICS),
        ("selector_alone", TOKENIZER_METRICS),
        ("quantize_rest", TOKENIZER_METRICS | CODE_METRICS),
        (
            "unified",
            {"text_loss", "visual_loss", "text_accuracy", "visual_accuracy", "useful_tokens"},
        ),
    ],
)
def test_every_phase_reports_what_its_objective_measures(phase, names):
    loss, found, _ = outcome(phase)
    assert set(found.metrics) == names
    assert bool(jnp.isfinite(loss))
    assert all(bool(jnp.isfinite(value)) and value.shape == () for value in found.metrics.values())


@pytest.mark.parametrize("phase", PHASES)
def test_every_trained_module_gets_a_gradient(phase):
    _, _, grads = outcome(phase)
    for module in PHASES[phase].modules:
        assert any(bool((leaf != 0).any()) for leaf in jax.tree.leaves(grads[module])), module


@pytest.mark.parametrize("phase", ["select", "quantize", "reconstruct", "quantize_rest", "unified"])
def test_the_encoder_gets_no_gradient_after_its_own_phase(phase):
    _, _, grads = outcome(phase)
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads["encoder"]))


@pytest.mark.parametrize("phase", ["reconstruct", "quantize_rest"])
def test_decisions_carry_no_gradient_without_a_selector_that_learns(phase):
    _, _, grads = outcome(phase)
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(grads["selector"]))


@pytest.mark.parametrize(
    ("phase", "moves"), [("select", False), ("quantize", True), ("quantize_rest", True)]
)
def test_only_phases_that_quantize_move_the_codebook(phase, moves):
    _, found, _ = outcome(phase)
    assert bool((found.codebook.codes_KC != codebook().codes_KC).any()) == moves


def tokenizer_phase(**fields):
    base = TokenizerPhase(
        quantize=False,
        selection="sample",
        kept_share=1 / 3,
        share_over="image",
        share_weight=2.0,
        entropy_weight=0.1,
        commitment=1.0,
        pixel_weight=1.0,
        pixel_gradient=1.0,
        train_selector=True,
    )
    return dataclasses.replace(base, **fields)


@pytest.mark.parametrize("quantize", [False, True])
def test_gathered_forms_give_the_loss_of_masked_ones(quantize):
    """The same greedy decisions, once over all patches and once on the kept ones alone."""
    found = []
    for train_selector in (True, False):
        phase = tokenizer_phase(
            quantize=quantize,
            selection="greedy",
            share_weight=0.0,
            entropy_weight=0.0,
            train_selector=train_selector,
        )
        loss, outcome = jax.jit(Tokenizer(M, phase))(
            params(), codebook(), BATCHES["tokenizer"](), KEY
        )
        found.append((loss, outcome.metrics["cosine_loss"], outcome.codebook.count_K))
    for masked, gathered in zip(*found):
        np.testing.assert_allclose(masked, gathered, atol=2e-6, rtol=1e-5)


def test_share_of_random_patches_varies_around_the_target():
    _, found, _ = outcome("reconstruct")
    assert found.metrics["kept_min"] < found.metrics["kept_max"]
    assert found.metrics["kept_min"] >= 1 / PATCHES


def test_useful_tokens_are_the_share_that_is_not_padding():
    _, found, _ = outcome("unified")
    segments = unified_batch()["segment_ids"]
    assert found.metrics["useful_tokens"] == pytest.approx((segments > 0).mean())


def test_rows_of_ids_alone_need_no_encoder():
    special = SpecialIds(TEXT_VOCAB, M.config.quantizer.codes)
    examples = [layout.text_image(special, [10, 11], [3, 5, 7])]
    objective = objectives.make_objective(M, PHASES["unified"])

    def loss(slots, names):
        shape = packing.RowShape(packing.Limits(64, slots), PATCHES, SIDE)
        laid = packing.lay_row(examples, shape, lambda image: images(2)[image])
        batch = {name: x[None] for name, x in laid.items()}
        read = {module: params()[module] for module in names}
        return jax.jit(objective)(read, codebook(), batch, KEY)[0]

    np.testing.assert_allclose(loss(0, ["llm"]), loss(2, READS["unified"]), rtol=1e-6)


def test_unknown_objectives_and_selections_are_refused():
    with pytest.raises(ValueError, match="magic"):
        objectives.make_objective(M, {**PHASES.encoder, "objective": "magic"})
    with pytest.raises(ValueError, match="'best'"):
        objectives.make_objective(M, {**PHASES.select, "selection": "best"})
