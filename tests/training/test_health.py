import math
import re

import pytest

from lavit_jax.training.health import SETTLE_STEPS, Health

GOOD = {"loss": 1.0, "codebook_in_use": 0.8, "kept_mean": 0.33, "cosine_loss": 0.2}


def test_a_healthy_run_is_silent():
    health = Health()
    assert all(health.check("quantize", step, GOOD) == [] for step in range(1, 300))


@pytest.mark.parametrize(
    ("sign", "says"),
    [
        ({"codebook_in_use": 0.05, "cosine_loss": 0.31}, "codebook looks collapsed: 5% .* 0.31"),
        ({"kept_mean": 0.01}, "selector looks collapsed: it keeps 1%"),
        ({"kept_mean": 0.99}, "selector looks collapsed: it keeps 99%"),
    ],
)
def test_collapse_is_told_once_a_phase_when_it_had_time_to_settle(sign, says):
    health, sick = Health(), GOOD | sign
    assert health.check("quantize", SETTLE_STEPS - 1, sick) == []
    (warning,) = health.check("quantize", SETTLE_STEPS, sick)
    assert warning.startswith("warning: phase 'quantize': ")
    assert re.search(says, warning)
    assert health.check("quantize", SETTLE_STEPS + 1, sick) == []
    assert len(health.check("unified", SETTLE_STEPS + 1, sick)) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_told_at_once(loss):
    (warning,) = Health().check("encoder", 1, {"loss": loss})
    assert "the loss is" in warning


def test_phases_without_codes_or_decisions_have_nothing_to_collapse():
    assert Health().check("encoder", 1000, {"loss": 1.0}) == []
