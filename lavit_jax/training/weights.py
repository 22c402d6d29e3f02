"""Trained weights by where they are: a work directory, a converted checkpoint, a published one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from lavit_jax.convert import load, published, record
from lavit_jax.errors import UserError
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.quantizer import Codebook
from lavit_jax.training import storage

KNOWN = (published.VISUAL, published.LANGUAGE, "pixel_decoding")


class Weights(NamedTuple):
    """Parameters by module, the codebook where there is one, and the sizes they are of."""

    params: dict[str, Any]
    codebook: Codebook | None
    sizes: LavitConfig | None = None


def check(source: str) -> None:
    """Raises a `UserError` for a folder that does not exist."""
    if not storage.is_bucket(source) and not storage.folder(source).is_dir():
        raise UserError(f"config.start_from={source!r}: no such folder")


def read(source: str, names: Collection[str], mesh: Mesh) -> Weights:
    """What a source has of some modules.

    Args:
      source: a work directory or a folder of `lavit convert`, here or in a bucket, or a folder in
        the published layout.
      names: of modules; others may come with them.
      mesh: where converted weights and those of work directories go; published ones stay on the
        host.

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    from lavit_jax.training.restore import restore  # which needs to know what a run is

    folder = storage.folder(source)
    if (folder / record.FILE).exists():
        stored = record.load(folder).parts
        parts = [part for part, modules in stored.items() if set(names) & set(modules)]
        return _of(load.load_converted(folder, mesh, parts)) if parts else Weights({}, None)
    if storage.is_bucket(source) or (folder / "checkpoints").is_dir():
        found = restore(source, mesh)
        return Weights(dict(found.params), found.codebook, found.modules.config)
    try:
        parts = list(published.parts_of(Path(source), known=KNOWN))
    except FileNotFoundError as error:
        raise UserError(
            f"config.start_from={source!r}: expected a work directory, a folder of `lavit convert` "
            f"or one in the published layout ({error})"
        ) from error
    if "llm" not in names:
        parts = [part for part in parts if part != published.LANGUAGE]
    return _of(published.load_published(Path(source), parts))


def _of(found: published.Published) -> Weights:
    return Weights(dict(found.params), found.codebook, found.config)


def text_model(source: str) -> bytes | None:
    """The text tokenizer of a source; None where it has none."""
    folder = storage.folder(source)
    if (folder / record.FILE).exists():
        place = folder / load.SOURCE / record.load(folder).llm_dir / published.TEXT_MODEL
    elif storage.is_bucket(source) or (folder / "checkpoints").is_dir():
        place = folder / "text.model"
    else:
        place = folder / published.LLM_DIR / published.TEXT_MODEL
    return place.read_bytes() if place.exists() else None
