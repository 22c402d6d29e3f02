"""Noise schedules, guidance and the two samplers: DDIM and DPM-Solver++ 2M.

A noisy x at time t is alpha_t x_0 + sigma_t noise, with alpha^2 + sigma^2 = 1. Tables are made
with numpy in float64 when a program is built; sampling is one `lax.scan` over their rows.

Legend: T training steps, S sampling steps, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lavit_jax.models.pixel_config import NoiseConfig

# Noisy x and the time of each to the prediction that the schedule names.
Denoiser = Callable[[Array, Array], Array]
SOLVERS = ("ddim", "dpm++")
MAX_BETA = 0.999


def _betas(config: NoiseConfig) -> np.ndarray:
    if config.beta_schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, config.steps)
    if config.beta_schedule == "scaled_linear":
        return np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps) ** 2
    share = np.arange(config.steps + 1) / config.steps
    kept = np.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], MAX_BETA)


def signal(config: NoiseConfig) -> np.ndarray:
    """alpha_t^2 of every training step, float64 [T]."""
    kept = np.cumprod(1.0 - _betas(config))
    if not config.zero_snr:
        return kept
    # The root is shifted so that it ends at zero, and scaled so that it starts where it did.
    root = np.sqrt(kept)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _spread(config: NoiseConfig, steps: int, points: int) -> np.ndarray:
    """`steps` whole times, descending; "leading" and "linspace" cut T by `points` of them."""
    total = config.steps
    if not 0 < steps <= points <= total:
        raise ValueError(f"{steps} steps do not fit a schedule of {total}")
    if config.spacing == "trailing":
        return np.round(total - np.arange(steps) * (total / steps)).astype(int) - 1
    if config.spacing == "linspace":
        return np.round(np.linspace(0, total - 1, points))[::-1][:steps].astype(int)
    times = (np.arange(points) * (total // points))[::-1][:steps] + config.offset
    if times[0] >= total:
        raise ValueError(f"{steps} steps do not fit a schedule of {total}")
    return times


def ddim_times(config: NoiseConfig, steps: int) -> np.ndarray:
    """Times DDIM visits, descending, [S]."""
    return _spread(config, steps, steps)


def dpm_times(config: NoiseConfig, steps: int) -> np.ndarray:
    """Times DPM-Solver++ visits, descending, [S]; their end, time 0, is not among them."""
    return _spread(config, steps, steps + 1)


class Row(NamedTuple):
    """What one sampling step needs; a plan holds S of each.

    Attributes:
      time: where the denoiser is asked.
      alpha: signal there.
      sigma: noise there.
      next_alpha: signal after the step.
      next_sigma: noise after the step.
      momentum: weight of the change since the last predicted picture; 0 for first order.
    """

    time: Int[Array, "*S"]
    alpha: Float[Array, "*S"]
    sigma: Float[Array, "*S"]
    next_alpha: Float[Array, "*S"]
    next_sigma: Float[Array, "*S"]
    momentum: Float[Array, "*S"]


def _rows(times: np.ndarray, kept: np.ndarray, next_kept: np.ndarray, momentum: np.ndarray) -> Row:
    floats = (kept**0.5, (1 - kept) ** 0.5, next_kept**0.5, (1 - next_kept) ** 0.5, momentum)
    return Row(jnp.asarray(times, jnp.int32), *(jnp.asarray(f, jnp.float32) for f in floats))


def _ddim_plan(config: NoiseConfig, steps: int) -> Row:
    kept, times = signal(config), ddim_times(config, steps)
    final = 1.0 if config.final_alpha_one else kept[0]
    following = times - config.steps // steps
    next_kept = np.where(following >= 0, kept[np.maximum(following, 0)], final)
    return _rows(times, kept[times], next_kept, np.zeros(steps))


def _dpm_plan(config: NoiseConfig, steps: int) -> Row:
    times = dpm_times(config, steps)
    kept = signal(config)[times]
    next_kept = np.append(kept[1:], 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        half_log_snr = 0.5 * (np.log(kept) - np.log(1 - kept))
        stride = np.diff(half_log_snr)
        # From pure noise the first stride is infinite and tells the second nothing.
        momentum = np.nan_to_num(0.5 * stride[1:] / stride[:-1])
    # First order where there is no step before, and at the last, whose stride is infinite.
    ends = [0.0] if steps == 1 else [0.0, 0.0]
    momentum = np.concatenate([ends[:1], momentum, ends[1:]])
    return _rows(times, kept, next_kept, momentum)


def plan(config: NoiseConfig, solver: str, steps: int) -> Row:
    """The S rows of a sampling run.

    Raises:
      ValueError: an unknown solver, or more steps than there are times.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
    return _ddim_plan(config, steps) if solver == "ddim" else _dpm_plan(config, steps)


def _split(
    config: NoiseConfig, prediction: Array, x: Array, alpha: Array, sigma: Array
) -> tuple[Array, Array]:
    """A prediction as the picture and the noise it stands for."""
    if config.prediction == "epsilon":
        picture, noise = (x - sigma * prediction) / alpha, prediction
    elif config.prediction == "v_prediction":
        picture, noise = alpha * x - sigma * prediction, alpha * prediction + sigma * x
    else:
        picture, noise = prediction, (x - alpha * prediction) / sigma
    if config.clip:
        picture = jnp.clip(picture, -config.clip, config.clip)
    return picture, noise


class _Carry(NamedTuple):
    x: Array
    picture: Array


def _ddim_step(row: Row, carry: _Carry, picture: Array, noise: Array) -> Array:
    return row.next_alpha * picture + row.next_sigma * noise


def _dpm_step(row: Row, carry: _Carry, picture: Array, noise: Array) -> Array:
    shrink = row.next_sigma / row.sigma
    towards = picture + row.momentum * (picture - carry.picture)
    return shrink * carry.x + (row.next_alpha - shrink * row.alpha) * towards


_STEPS = {"ddim": _ddim_step, "dpm++": _dpm_step}


def _walk(
    config: NoiseConfig, denoise: Denoiser, solver: str, steps: int
) -> tuple[Callable[[_Carry, Row], _Carry], Row]:
    rows, move = plan(config, solver, steps), _STEPS[solver]

    def step(carry: _Carry, row: Row) -> _Carry:
        prediction = denoise(carry.x, jnp.broadcast_to(row.time, carry.x.shape[:1]))
        picture, noise = _split(config, prediction, carry.x, row.alpha, row.sigma)
        return _Carry(move(row, carry, picture, noise), picture)

    return step, rows


def sample(
    config: NoiseConfig, denoise: Denoiser, noise: Float[Array, "B *X"], solver: str, steps: int
) -> Float[Array, "B *X"]:
    """From noise to what it becomes, deterministic.

    Args:
      config: the schedule.
      denoise: x and times [B] to the prediction, guidance included.
      noise: standard normal.
      solver: "ddim" (as published) or "dpm++" (as good in fewer steps).
      steps: how often the denoiser is asked.
    """
    step, rows = _walk(config, denoise, solver, steps)
    start = _Carry(noise, jnp.zeros_like(noise))
    return jax.lax.scan(lambda carry, row: (step(carry, row), None), start, rows)[0].x


def trajectory(
    config: NoiseConfig, denoise: Denoiser, noise: Float[Array, "B *X"], solver: str, steps: int
) -> Float[Array, "S B *X"]:
    """As `sample`, all S states of the way."""
    step, rows = _walk(config, denoise, solver, steps)

    def kept(carry: _Carry, row: Row) -> tuple[_Carry, Array]:
        moved = step(carry, row)
        return moved, moved.x

    return jax.lax.scan(kept, _Carry(noise, jnp.zeros_like(noise)), rows)[1]


def guide(unconditional: Array, conditional: Array, scale: float | Array) -> Array:
    """Classifier-free guidance: scale 1 is the conditional prediction.  Paper: Eq. 7."""
    return unconditional + scale * (conditional - unconditional)


def _per_example(table: np.ndarray, time_B: Array, like: Array) -> Array:
    values = jnp.asarray(table, jnp.float32)[time_B]
    return values.reshape(time_B.shape + (1,) * (like.ndim - 1))


def add_noise(
    config: NoiseConfig, x: Float[Array, "B *X"], noise: Float[Array, "B *X"], time_B: Array
) -> tuple[Float[Array, "B *X"], Float[Array, "B *X"]]:
    """Noisy x at each one's time, and what the denoiser should predict there.  Paper: Eq. 5."""
    kept = signal(config)
    alpha = _per_example(kept**0.5, time_B, x)
    sigma = _per_example((1 - kept) ** 0.5, time_B, x)
    noisy = alpha * x + sigma * noise
    if config.prediction == "epsilon":
        return noisy, noise
    if config.prediction == "v_prediction":
        return noisy, alpha * noise - sigma * x
    return noisy, x
