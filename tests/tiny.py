"""The smallest model and config the tests share."""

import functools

from ml_collections import ConfigDict

from lavit_jax import config as configs
from lavit_jax.models import lavit
from lavit_jax.models.config import lavit_config
from lavit_jax.models.lavit import Modules

TEXT_VOCAB = 300


def mini_config(*overrides: str, config: str = "configs/mini.py") -> ConfigDict:
    """`configs/mini.py` with overrides."""
    return configs.load_config(config, overrides)


@functools.cache
def tiny_modules() -> Modules:
    """The modules of `configs/mini.py` with a text vocabulary of 300."""
    return lavit.build_modules(lavit_config(mini_config().model.to_dict(), TEXT_VOCAB))
