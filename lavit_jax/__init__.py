"""LaVIT in JAX: images as a language for language models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavit_jax.inference.api import Lavit

__all__ = ["load"]


def load(workdir: str | os.PathLike[str], mesh: Mapping[str, int] | None = None) -> Lavit:
    """Loads a training run's newest checkpoint, or a converted one, for inference.

    Args:
      workdir: the run's directory, or one made by `lavit convert`.
      mesh: devices the model is split over, such as `{"tensor": 4}`; by default one does all.

    Returns:
      An object with `tokenize`, `caption`, `answer`, `draw` and more; see `inference.api.Lavit`.

    Raises:
      UserError: no such directory, it has no readable checkpoint, or the devices cannot form
        the mesh.
    """
    from lavit_jax.inference import api  # jax is imported when it is needed

    return api.load(workdir, mesh)
