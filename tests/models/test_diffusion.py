"""Schedules and samplers: known numbers, and what every solver must do with a perfect denoiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lavit_jax.models import diffusion
from lavit_jax.models.pixel_config import BETA_SCHEDULES, PREDICTIONS, SPACINGS, NoiseConfig

SD = NoiseConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", offset=1,
    final_alpha_one=False,
)  # fmt: skip


def test_the_published_schedule_has_its_known_ends():
    kept = diffusion.signal(SD)
    assert kept.shape == (1000,)
    assert kept[0] == pytest.approx(1 - 0.00085)
    assert kept[-1] == pytest.approx(0.0047, abs=1e-4)  # SD's terminal signal
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    np.testing.assert_allclose(kept, torch.cumprod(1 - betas, 0), rtol=1e-10)


@pytest.mark.parametrize("kind", BETA_SCHEDULES)
def test_every_schedule_falls(kind):
    kept = diffusion.signal(dataclasses.replace(SD, beta_schedule=kind))
    assert np.all(np.diff(kept) < 0) and kept[0] < 1 and kept[-1] > 0


def test_zero_terminal_snr_ends_in_pure_noise_and_starts_alike():
    config = dataclasses.replace(SD, zero_snr=True, prediction="v_prediction")
    plain, kept = diffusion.signal(SD), diffusion.signal(config)
    assert kept[-1] == 0 and kept[0] == pytest.approx(plain[0])
    with pytest.raises(ValueError, match="zero_snr needs prediction"):
        dataclasses.replace(SD, zero_snr=True)


def test_times_are_those_of_each_spacing():
    at = lambda spacing, steps: list(  # noqa: E731
        diffusion.ddim_times(dataclasses.replace(SD, spacing=spacing), steps)
    )
    assert at("leading", 5) == [801, 601, 401, 201, 1]
    assert at("trailing", 5) == [999, 799, 599, 399, 199]
    assert at("linspace", 5) == [999, 749, 500, 250, 0]
    assert at("leading", 50)[:2] == [981, 961]
    assert list(diffusion.dpm_times(SD, 4)) == [801, 601, 401, 201]


@given(steps=st.integers(1, 60), spacing=st.sampled_from(SPACINGS), offset=st.integers(0, 1))
def test_times_fall_within_the_schedule(steps, spacing, offset):
    config = dataclasses.replace(SD, spacing=spacing, offset=offset)
    for times in (diffusion.ddim_times(config, steps), diffusion.dpm_times(config, steps)):
        assert len(times) == steps
        assert np.all(np.diff(times) < 0)
        assert times[-1] >= 0 and times[0] < config.steps


def test_steps_out_of_range_are_told():
    for steps in (0, 1000):  # the offset takes the last of a thousand
        with pytest.raises(ValueError, match=f"{steps} steps do not fit a schedule of 1000"):
            diffusion.ddim_times(SD, steps)
    with pytest.raises(ValueError, match="solver must be one of"):
        diffusion.plan(SD, "euler", 4)


def denoiser_of(config, picture):
    """Knows the picture, and answers in the schedule's own terms."""
    kept = jnp.asarray(diffusion.signal(config), jnp.float32)

    def denoise(x, time):
        alpha = (kept[time] ** 0.5)[:, None]
        sigma = ((1 - kept[time]) ** 0.5)[:, None]
        noise = (x - alpha * picture) / sigma
        if config.prediction == "epsilon":
            return noise
        return alpha * noise - sigma * picture if config.prediction == "v_prediction" else picture

    return denoise


@pytest.mark.parametrize("solver", diffusion.SOLVERS)
@pytest.mark.parametrize(("prediction", "spacing"), list(zip(PREDICTIONS, SPACINGS, strict=True)))
def test_a_denoiser_that_knows_the_picture_finds_it(solver, prediction, spacing):
    zero_snr = prediction == "v_prediction" and spacing == "trailing"
    config = NoiseConfig(
        beta_schedule="scaled_linear", prediction=prediction, spacing=spacing, zero_snr=zero_snr
    )
    picture = jnp.array([[0.3, -0.7, 0.9]])
    noise = jax.random.normal(jax.random.key(1), picture.shape)
    denoise = denoiser_of(config, picture)
    for steps in (1, 9):
        found = diffusion.sample(config, denoise, noise, solver, steps)
        # A DDIM walk of leading or linspace times may end a little before noiselessness.
        np.testing.assert_allclose(found, picture, atol=2e-2 if steps == 1 else 5e-3)


def gaussian_denoiser(config, spread):
    """The best guess of the noise in samples of N(0, spread^2): a walk with a known end."""
    kept = jnp.asarray(diffusion.signal(config), jnp.float32)

    def denoise(x, time):
        a2, s2 = kept[time][:, None], (1 - kept[time])[:, None]
        return x * s2**0.5 / (a2 * spread**2 + s2)

    return denoise


def test_the_faster_solver_needs_fewer_steps():
    config, spread = dataclasses.replace(SD, final_alpha_one=True), 0.8
    noise = jnp.array([[1.0]])
    denoise = gaussian_denoiser(config, spread)
    exact = diffusion.sample(config, denoise, noise, "ddim", 500)
    error = {
        solver: abs(float((diffusion.sample(config, denoise, noise, solver, 20) - exact)[0, 0]))
        for solver in diffusion.SOLVERS
    }
    assert float(exact[0, 0]) == pytest.approx(spread, rel=0.02)
    assert error["dpm++"] < 0.5 * error["ddim"]


def test_a_walk_ends_where_sampling_does():
    denoise = gaussian_denoiser(SD, 0.5)
    noise = jax.random.normal(jax.random.key(0), (2, 3))
    for solver in diffusion.SOLVERS:
        walk = diffusion.trajectory(SD, denoise, noise, solver, 7)
        assert walk.shape == (7, 2, 3)
        np.testing.assert_allclose(
            walk[-1], diffusion.sample(SD, denoise, noise, solver, 7), rtol=1e-6
        )


def test_clipping_bounds_the_predicted_picture():
    config = dataclasses.replace(SD, clip=0.5, final_alpha_one=True)
    picture = jnp.array([[0.9, -0.9, 0.1]])
    found = diffusion.sample(config, denoiser_of(config, picture), jnp.ones((1, 3)), "dpm++", 8)
    np.testing.assert_allclose(found, [[0.5, -0.5, 0.1]], atol=1e-5)


def test_guidance_of_one_is_none():
    u, c = jnp.array([1.0, 2.0]), jnp.array([4.0, 0.5])
    np.testing.assert_allclose(diffusion.guide(u, c, 1.0), c)
    np.testing.assert_allclose(diffusion.guide(u, c, 0.0), u)
    np.testing.assert_allclose(diffusion.guide(u, c, 3.0), [10.0, -2.5])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_training_targets_lead_the_sampler_back(prediction):
    config = dataclasses.replace(SD, prediction=prediction)
    x = jax.random.normal(jax.random.key(0), (3, 4))
    noise = jax.random.normal(jax.random.key(1), (3, 4))
    time = jnp.array([0, 400, 999])
    noisy, target = diffusion.add_noise(config, x, noise, time)
    kept = jnp.asarray(diffusion.signal(config), jnp.float32)[time][:, None]
    picture, found = diffusion._split(config, target, noisy, kept**0.5, (1 - kept) ** 0.5)
    np.testing.assert_allclose(picture, x, atol=1e-4)
    np.testing.assert_allclose(found, noise, atol=1e-3)
