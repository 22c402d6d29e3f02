"""Our checkpoint back to the published layout: the same files, tensors and bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lavit_jax.convert import forms, published, read, record, store, write
from lavit_jax.convert.convert import (
    LEFT,
    SOURCE,
    Converted,
    Report,
    aside,
    check_free,
    copy_files,
    left_key,
)
from lavit_jax.convert.forms import Place
from lavit_jax.convert.plan import ALL, ALL_PARTS, part_of
from lavit_jax.convert.read import Info, Tensors
from lavit_jax.convert.record import Record
from lavit_jax.convert.store import Leaf
from lavit_jax.errors import UserError

SAFETENSORS = ".safetensors"


def reverse(
    src: str | Path,
    dst: str | Path,
    part: str = ALL,
    *,
    dtype: str | None = None,
    weights: str | Path | None = None,
) -> Report:
    """Writes a converted checkpoint back as it was published, or with what a run made of it.

    Args:
      src: folder made by `convert`.
      dst: folder to be made; is complete or absent.
      part: see `convert.convert`.
      dtype: of the tensors (default: each its own, as in the source).
      weights: work directory of a run whose modules take the place of the same ones of `src`.

    Raises:
      UserError: `src` is not a converted checkpoint or lacks the part; `dst` exists; `weights` do
        not fit.
    """
    src, dst = Path(src), Path(dst)
    check_free(dst)
    stored = record.load(src)
    components = [c for c in stored.sources if part in (ALL, part_of(c))]
    if not components:
        raise UserError(f"{src}: no {part} in it (--part), only {', '.join(stored.parts)}")
    leaves = store.open_leaves(src / store.DIRECTORY, {path: path for path in stored.arrays})
    replaced: list[str] = []
    if weights is not None:
        from lavit_jax.convert.trained import open_trained

        trained, replaced = open_trained(weights, stored.arrays)
        leaves |= trained
    with aside(dst) as made:
        done = _write_components(src, stored, components, made, leaves, dtype)
        carried = _carried(stored, part)
        copy_files(src / SOURCE, made, carried)
    return Report(done, 0, [], [], list(map(str, carried)), [], replaced)


def _write_components(
    src: Path,
    stored: Record,
    components: list[str],
    made: Path,
    leaves: dict[str, Leaf],
    dtype: str | None,
) -> list[Converted]:
    tree = store.nested(leaves)
    tables = published.tables(stored.sources, stored.sizes)
    left = read.open_file(src / LEFT) if stored.left else None
    done = []
    for component in components:
        places = forms.places(tables[component])
        read_one = functools.partial(_tensor, component, places, tree, left)
        for file, infos in stored.sources[component].files().items():
            _write(made / file, _as(dtype, infos), read_one)
            count = sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos.values())
            done.append(Converted(component, file.as_posix(), len(infos), count))
    return done


def _tensor(
    component: str, places: dict[str, Place], tree: Any, left: Tensors | None, name: str
) -> np.ndarray:
    """A tensor made of our parameters, or one of those that are none."""
    if name in places:
        return forms.tensor(name, places[name], tree)
    assert left is not None
    return left.read(left_key(component, name))


def _as(dtype: str | None, infos: dict[str, Info]) -> dict[str, Info]:
    """What is to be written; whole numbers keep their dtype."""
    if dtype is None:
        return infos
    return {
        name: info._replace(dtype=dtype) if info.dtype in read.FLOATS else info
        for name, info in infos.items()
    }


def _write(path: Path, infos: dict[str, Info], read_one: Callable[[str], np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SAFETENSORS:
        write.write_safetensors(path, infos, read_one)
    else:
        write.write_torch(path, infos, read_one)


def _carried(stored: Record, part: str) -> list[Path]:
    """Files of the wanted part, and those of no part."""
    folders = {known: known for known in ALL_PARTS} | {published.LANGUAGE: stored.llm_dir}
    others = {folder for name, folder in folders.items() if part not in (ALL, name)}
    return [path for file in stored.carried if (path := Path(file)).parts[0] not in others]
