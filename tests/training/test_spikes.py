import math

import numpy as np
import pytest

from lavit_jax.training.spikes import LEAST, SUCCESSIVE, WINDOW, Spikes

FALLING = [3 * math.exp(-step / 40) + 1 for step in range(80)]


def found(losses, deviations=10.0):
    spikes = Spikes(deviations)
    return [place for place, loss in enumerate(losses) if spikes.add(loss)]


def test_losses_that_fall_or_are_noisy_are_no_spike():
    noise = np.random.default_rng(0).normal(0, 0.2, 400)
    assert found(FALLING) == []
    assert found(2 + noise) == []
    assert found([1.0] * 200) == []


def test_a_rise_that_stays_is_told_at_its_third_step_and_once():
    assert found([*FALLING, *[50.0] * 60]) == [len(FALLING) + SUCCESSIVE - 1]


def test_what_is_told_has_both_losses():
    spikes = Spikes(10.0)
    told = [spikes.add(loss) for loss in [2.0] * LEAST + [9.0] * SUCCESSIVE]
    assert told[-1] == "the loss rose from 2 to 9"


def test_one_odd_batch_is_no_spike():
    assert found([*FALLING, 50.0, 50.0, *FALLING[-20:], 50.0]) == []


def test_nothing_is_usual_before_there_are_enough_losses():
    assert found([1.0] * (LEAST - 1) + [99.0] * SUCCESSIVE) == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_not_its_business(loss):
    assert found([*FALLING, loss, loss, loss]) == []


def test_zero_looks_for_none():
    assert found([*FALLING, *[1e9] * 9], deviations=0.0) == []


def test_the_same_window_of_losses_leads_to_the_same_judgement():
    losses = [*FALLING, *FALLING, 50.0, 50.0, 50.0]
    assert found(losses)[-1] - len(losses) == found(losses[-WINDOW:])[-1] - WINDOW
