"""A published checkpoint to ours, tensor by tensor.

DST/model.json          sizes, and what the source was like
DST/params/             the parameters, an orbax checkpoint
DST/source/             other files of the source, as they were
DST/left.safetensors    tensors of the source that are no parameters of ours
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lavit_jax import disk
from lavit_jax.convert import forms, read, record, store, write
from lavit_jax.convert.infer import Sizes
from lavit_jax.convert.plan import ALL, Plan, make_plan, part_of
from lavit_jax.convert.read import Info, Tensors
from lavit_jax.convert.record import Record, Recorded
from lavit_jax.convert.store import ArrayInfo
from lavit_jax.errors import UserError

SOURCE, LEFT = "source", "left.safetensors"
DTYPES = ("float32", "bfloat16")
# They compute in float32 whatever the rest does, and are small.
FLOAT32 = ("selector", "quantizer", "codebook")


class Converted(NamedTuple):
    """One component in the report.

    Attributes:
      name: of the component.
      path: of its file, or of its folder of shards.
      tensors: mapped ones.
      parameters: numbers in them.
    """

    name: str
    path: str
    tensors: int
    parameters: int


class Report(NamedTuple):
    """What a conversion did.

    Attributes:
      components: converted.
      created: rows of the vocabulary that a plain Llama had not.
      left: tensors that are no parameters of ours, as "file: name"; kept for writing back.
      absent: optional tensors that the release leaves out, as "file: name".
      carried: files kept as they are.
      unread: files of weights that no part reads; not kept.
      replaced: modules taken from a run, when writing back.
    """

    components: list[Converted]
    created: int
    left: list[str]
    absent: list[str]
    carried: list[str]
    unread: list[str]
    replaced: list[str]


def convert(
    src: str | Path,
    dst: str | Path,
    part: str = ALL,
    *,
    llm_dir: str | None = None,
    dtype: str = "float32",
    heads: int | None = None,
    codes: int | None = None,
) -> Report:
    """Converts a published checkpoint, or a plain EVA-CLIP or Llama.

    Args:
      src: folder in the published layout; or a plain EVA-CLIP or Llama, a folder or a file.
      dst: folder to be made; is complete or absent.
      part: "visual_tokenizer", "language_model", "pixel_decoding", "highres_pixel_decoding", or
        "all" there are.
      llm_dir: "language_model" or "language_model_sft" (default: the former, where it is there).
      dtype: "float32" or "bfloat16", of the parameters; selector and codebook stay float32.
      heads: of the vision modules (default: `reference_config.json`, else width / 88).
      codes: K, where the files do not tell it.

    Raises:
      FileNotFoundError: a folder or needed file is missing.
      UserError: `dst` exists; a broken file; missing, extra, misshapen or mistyped tensors.
    """
    src, dst = Path(src), Path(dst)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown, expected {' or '.join(DTYPES)}")
    check_free(dst)
    plan = make_plan(src, part, llm_dir=llm_dir, heads=heads, codes=codes)
    arrays = _arrays(plan, dtype)
    with aside(dst) as made:
        _write_arrays(plan, made / store.DIRECTORY, arrays)
        left = _write_left(plan, made / LEFT)
        copy_files(plan.source.root, made / SOURCE, plan.carried)
        record.save(made, _record(plan, arrays, left, dtype))
    return _report(plan, left)


def check_free(dst: Path) -> None:
    """Makes sure that nothing is overwritten.

    Raises:
      UserError: there is something already.
    """
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise UserError(f"{dst}: exists already, expected a folder yet to be made")


@contextlib.contextmanager
def aside(dst: Path) -> Iterator[Path]:
    """A folder beside `dst` that takes its place at the end, or leaves nothing behind."""
    made = dst.absolute().with_name(f".{dst.absolute().name}.{os.getpid()}")
    try:
        made.mkdir(parents=True)
        yield made
        if dst.is_dir():
            dst.rmdir()
        os.replace(made, dst)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if (words := disk.reason(error)) is None:
            raise
        disk.remove_unfinished(lambda: [made] if made.exists() else [])
        raise UserError(f"cannot write {dst}: {words}") from error


def copy_files(source: Path, target: Path, files: list[Path]) -> None:
    """Copies files from one folder to another."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)


def _arrays(plan: Plan, dtype: str) -> dict[str, ArrayInfo]:
    """Every array to be written."""
    found = {}
    for component, table in plan.tables.items():
        wanted = plan.checked[component].wanted
        there = tuple(entry for entry in table if entry.names[0] in wanted)
        for path, shape in forms.arrays_of(there).items():
            exact = path.partition("/")[0] in FLOAT32
            found[path] = ArrayInfo(shape, "float32" if exact else dtype)
    return found


def _write_arrays(plan: Plan, directory: Path, arrays: dict[str, ArrayInfo]) -> None:
    with contextlib.closing(store.Writer(directory, arrays)) as writer:
        for component, table in plan.tables.items():
            wanted = plan.checked[component].wanted
            tensors = read.items(plan.source.tensors[component], wanted)
            for piece in forms.pieces(table, tensors):
                writer.write(piece)
            plan.source.tensors[component].close()


def _left(plan: Plan) -> dict[str, list[str]]:
    """Names that no table has, by component."""
    found = {}
    for component, tensors in plan.source.tensors.items():
        wanted = plan.checked[component].wanted
        names = [name for name in tensors.infos if name not in wanted]
        if names:
            found[component] = names
    return found


def left_key(component: str, name: str) -> str:
    """What a tensor is called in `left.safetensors`."""
    return f"{component}:{name}"


def _write_left(plan: Plan, path: Path) -> dict[str, list[str]]:
    left = _left(plan)
    if not left:
        return left
    where = {
        left_key(component, name): (plan.source.tensors[component], name)
        for component, names in left.items()
        for name in names
    }
    infos = {key: tensors.infos[name] for key, (tensors, name) in where.items()}

    def read_one(key: str) -> np.ndarray:
        tensors, name = where[key]
        for other in plan.source.tensors.values():
            if other is not tensors:
                other.close()
        return tensors.read(name)

    write.write_safetensors(path, infos, read_one)
    return left


def _record(
    plan: Plan, arrays: dict[str, ArrayInfo], left: dict[str, list[str]], dtype: str
) -> Record:
    source, sizes = plan.source, plan.sizes
    parts: dict[str, list[str]] = {}
    for component, table in plan.tables.items():
        modules = parts.setdefault(part_of(component), [])
        for entry in table:
            for path in entry.paths:
                if path in arrays and (module := path.partition("/")[0]) not in modules:
                    modules.append(module)

    def recorded(tensors: Tensors) -> Recorded:
        items = tensors.infos.items()
        return Recorded(
            {n: Info(i.shape, i.dtype, i.file.relative_to(source.root)) for n, i in items}
        )

    return Record(
        _computing_in(sizes, dtype),
        dtype,
        source.llm_dir,
        parts,
        arrays,
        {component: recorded(tensors) for component, tensors in source.tensors.items()},
        left,
        [name for checked in plan.checked.values() for name in checked.absent],
        [file.as_posix() for file in plan.carried],
    )


def _computing_in(sizes: Sizes, dtype: str) -> Sizes:
    """The same sizes with another compute dtype for all that is converted."""
    conditions, pixels = sizes.conditions, {}
    if conditions.highres_decoder is not None:
        decoder = dataclasses.replace(conditions.highres_decoder, dtype=dtype)
        conditions = dataclasses.replace(conditions, highres_decoder=decoder)
    for kind, part in sizes.pixels.items():
        pixels[kind] = dataclasses.replace(part, config=part.config.computing_in(dtype))
    config = sizes.config.computing_in(dtype)
    return sizes._replace(config=config, conditions=conditions, pixels=pixels)


def _report(plan: Plan, left: dict[str, list[str]]) -> Report:
    tensors = plan.source.tensors
    components = []
    for component, checked in plan.checked.items():
        infos = [tensors[component].infos[name] for name in checked.wanted]
        count = sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos)
        path = tensors[component].path.relative_to(plan.source.root).as_posix()
        components.append(Converted(component, path, len(infos), count))
    llm = plan.sizes.config.llm
    return Report(
        components,
        llm.vocab - llm.text_vocab if plan.sizes.text_only else 0,
        [f"{tensors[c].infos[name].file}: {name}" for c, names in left.items() for name in names],
        [name for checked in plan.checked.values() for name in checked.absent],
        [str(file) for file in plan.carried],
        [str(file) for file in plan.unread],
        [],
    )
