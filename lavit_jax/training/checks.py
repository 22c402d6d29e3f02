"""A config checked as a whole before anything is written, so that mistakes cost seconds."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from lavit_jax.data import copies, datasets, mixture, several
from lavit_jax.data.images import AugmentConfig
from lavit_jax.errors import UserError
from lavit_jax.models.config import lavit_config
from lavit_jax.training.schedule import HUGE, Phase, check_count, check_number, make_schedule

GROUPS = ("model", "data", "phases", "checkpoint", "health", "log", "evaluation", "mesh")
COUNTS = (  # field, least
    ("seed", 0),
    ("data.text_vocab_size", 1),
    ("data.row_length", 2),
    ("data.images_per_row", 0),
    ("data.variants", 1),
    ("data.held_out", 0),
    ("data.threads", 0),
    ("data.workers", 0),
    ("checkpoint.every", 1),
    ("checkpoint.keep", 1),
    ("checkpoint.keep_every", 0),
    # The step after a broken one is under way when it is found; replay needs what both met.
    ("health.max_skipped", 2),
    ("health.rewinds", 0),
    ("log.every", 1),
    ("log.sample_every", 0),
    ("evaluation.most", 0),
    ("evaluation.train_captions", 1),
    ("evaluation.best_of", 1),
)
SHARES = ("data.canonical_share", "data.text_drop", "data.max_bad_share")


def check_config(config: ConfigDict) -> tuple[Phase, ...]:
    """The phases of a config that can work on some number of devices.

    Raises:
      UserError: a field that is missing or cannot work; the message names it.
    """
    for name in (*GROUPS, "schedule"):
        if name not in config:
            raise UserError(f"config.{name} is missing; configs/common.py shows all fields")
    for field, least in COUNTS:
        check_count(f"config.{field}", _get(config, field), least)
    for field in SHARES:
        check_number(f"config.{field}", _get(config, field), 0.0, 1.0)
    for field in ("health.spike", "health.hang_seconds", "evaluation.minutes"):
        check_number(f"config.{field}", _get(config, field), 0.0, HUGE)
    _get(config, "checkpoint.keep_best")
    _check_cache(config)
    datasets.check(config)
    mixture.check_shares(config.data.mixture)
    several.check(config)
    AugmentConfig.of(config.data.augment)
    phases = make_schedule(config)
    _check_sizes(config, phases)
    return phases


def _check_cache(config: ConfigDict) -> None:
    """`data.cache` is a place on this machine; configs from before there was one have none."""
    cache = config.data.get("cache", "")
    if not isinstance(cache, str) or copies.is_remote(cache):
        raise UserError(f"config.data.cache must be a folder of this machine, got {cache!r}")


def _get(config: ConfigDict, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        if part not in value:
            raise UserError(f"config.{field} is missing; configs/common.py shows all fields")
        value = value[part]
    return value


def _check_sizes(config: ConfigDict, phases: tuple[Phase, ...]) -> None:
    """Builds the typed sizes once, so that wrong ones fail at start."""
    try:
        sizes = lavit_config(config.model.to_dict(), config.data.text_vocab_size)
    except KeyError as error:
        raise UserError(f"config.model.{error.args[0]} is missing") from error
    except ValueError as error:
        raise UserError(f"config.{error}") from error
    if sizes.pixels is None and any(p.config["objective"] == "diffusion" for p in phases):
        raise UserError("config.model.pixels is missing; configs/twemoji_pixels.py has it")
    if config.data.row_length > sizes.llm.max_length:
        raise UserError(
            f"config.data.row_length={config.data.row_length} is longer than "
            f"config.model.llm.max_length={sizes.llm.max_length}"
        )
