"""What every check of `lavit parity` is made of: inputs, a loaded model, a result."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.convert.published import Published
from lavit_jax.errors import UserError
from lavit_jax.models import lavit


class Reference:
    """The arrays of a checkpoint's `reference_io.npz`; remembers which were read as inputs."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected inputs and outputs to compare with")
        try:
            with np.load(path, allow_pickle=False) as stored:
                self.arrays = {name: stored[name] for name in stored.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: truncated or not an npz of plain arrays ({error})") from error
        self.path = path
        self.inputs: set[str] = set()

    def has(self, *names: str) -> bool:
        return all(name in self.arrays for name in names)

    def input(self, name: str) -> np.ndarray:
        self.inputs.add(name)
        return self.arrays[name]

    def before(self, name: str, ours: Any) -> jax.Array:
        """The published output of the module before; ours where the file has none that fits."""
        stored = self.arrays.get(name)
        return jnp.asarray(ours if stored is None or stored.shape != np.shape(ours) else stored)

    def image(self, name: str) -> jax.Array:
        """An NCHW image as NHWC."""
        return jnp.asarray(self.input(name).transpose(0, 2, 3, 1))


class Result(NamedTuple):
    """What we computed for an array.

    Attributes:
      name: of the array.
      value: ours.
      where: where the array means anything; None: everywhere.
      relative: the tolerance grows with the array's largest magnitude, where that exceeds 1.
    """

    name: str
    value: Any
    where: np.ndarray | None = None
    relative: bool = False


class Model(NamedTuple):
    """A loaded checkpoint with its modules."""

    loaded: Published
    modules: lavit.Modules
    params: dict[str, Any]

    def has(self, *names: str) -> bool:
        return all(name in self.params for name in names)

    def apply(self, name: str, *args: Any, method: Method = None) -> Any:
        """Runs one of the model's own modules."""
        return run_module(getattr(self.modules, name), self.params[name], *args, method=method)


Method = str | Callable[..., Any] | None


@functools.cache
def _compiled(module: nn.Module, method: Method) -> Callable[..., Any]:
    return jax.jit(functools.partial(module.apply, method=method))


def run_module(module: nn.Module, params: Any, *args: Any, method: Method = None) -> Any:
    """Runs a module compiled, which for so few inputs is mostly a matter of compiling once."""
    return _compiled(module, method)({"params": params}, *args)


Check = Callable[[Model, Reference], Iterator[Result]]
