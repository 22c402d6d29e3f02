"""What a conversion is going to do, settled before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lavit_jax.convert import infer, pixel_parts, published, read
from lavit_jax.convert.forms import Table
from lavit_jax.convert.infer import Sizes
from lavit_jax.convert.published import LANGUAGE, LLM_DIR, PARTS, PLAIN_LLM_DIR, VISUAL, Checked
from lavit_jax.convert.read import Tensors
from lavit_jax.errors import UserError

ALL = "all"
ALL_PARTS = (*PARTS, *pixel_parts.PARTS)
WEIGHTS = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
# Beside a language model that is given as a file, not as a folder.
LLM_FILES = (
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    published.TEXT_MODEL,
)
_LLM_COMPONENTS = ("llm", "conditioner")


class Source(NamedTuple):
    """An opened checkpoint.

    Attributes:
      root: folder that names of files are relative to.
      llm_dir: folder of the language model in it.
      tensors: by component.
      others: further files of it.
    """

    root: Path
    llm_dir: str
    tensors: dict[str, Tensors]
    others: list[Path]


class Plan(NamedTuple):
    """A source whose every tensor is known to fit.

    Attributes:
      source: the opened checkpoint.
      sizes: inferred.
      tables: by component.
      checked: by component; no problems.
      carried: files to keep as they are, relative to the source.
      unread: files of weights that no part reads, relative to the source.
    """

    source: Source
    sizes: Sizes
    tables: dict[str, Table]
    checked: dict[str, Checked]
    carried: list[Path]
    unread: list[Path]


def make_plan(
    src: Path,
    part: str = ALL,
    *,
    llm_dir: str | None = None,
    heads: int | None = None,
    codes: int | None = None,
) -> Plan:
    """Opens a checkpoint, infers its sizes and compares every tensor with what is expected.

    Args:
      src: folder in the published layout; or a plain EVA-CLIP or Llama, a folder or a file.
      part: one of `ALL_PARTS`, or "all" there are.
      llm_dir: "language_model" or "language_model_sft" (default: the former, where it is there).
      heads: see `published.infer_config`.
      codes: see `published.infer_config`.

    Raises:
      FileNotFoundError: a folder or needed file is missing.
      UserError: a broken file, or missing, extra, misshapen or mistyped tensors (all are named).
    """
    source = _open(src, part, llm_dir)
    sizes = published.infer_config(
        source.root, source.tensors, heads=heads, codes=codes, llm_dir=source.llm_dir
    )
    tables = published.tables(source.tensors, sizes)
    checked = published.check_all(tables, source.tensors, sizes)
    read_files = {info.file for t in source.tensors.values() for info in t.infos.values()}
    carried = [
        path.relative_to(source.root)
        for path in source.others
        if path not in read_files and path.suffix not in WEIGHTS
    ]
    # Everywhere in the folder: what a part was not asked for is told like what none could read.
    inside = sorted(src.rglob("*")) if src.is_dir() else []
    unread = [
        path.relative_to(src)
        for path in inside
        if path.suffix in WEIGHTS and path.is_file() and path not in read_files
    ]
    return Plan(source, sizes, tables, checked, carried, unread)


def _open(src: Path, part: str, given_dir: str | None) -> Source:
    if part not in (ALL, *ALL_PARTS):
        raise UserError(
            f"--part {part!r} is unknown, expected one of {', '.join((ALL, *ALL_PARTS))}"
        )
    if not src.exists():
        raise FileNotFoundError(f"{src}: no such file or folder")
    if given_dir is not None and part in (ALL, LANGUAGE) and not (src / given_dir).is_dir():
        raise FileNotFoundError(f"{src}: no {given_dir}/ in it (--llm-dir)")
    llm_dir = LLM_DIR if given_dir is None else given_dir
    if src.is_file():
        return _open_plain(src, part, read.open_file(src), src.parent)
    folders = {known: known for known in ALL_PARTS} | {LANGUAGE: llm_dir}
    if not any((src / folder).is_dir() for folder in folders.values()):
        if not any(path.suffix in WEIGHTS for path in src.iterdir()):
            published.parts_of(src, llm_dir)  # tells what is missing
        return _open_plain(src, part, read.open_plain_folder(src), src)
    parts: Sequence[str] = [part]
    if part == ALL:
        parts = published.parts_of(src, llm_dir, ALL_PARTS)
    absent = [folders[name] for name in parts if not (src / folders[name]).is_dir()]
    if absent:
        raise FileNotFoundError(f"{src}: no {absent[0]}/ in it")
    tensors = published.open_sources(src, parts, llm_dir)
    inside = [p for name in parts for p in sorted((src / folders[name]).rglob("*"))]
    others = [path for path in (*sorted(src.iterdir()), *inside) if path.is_file()]
    return Source(src, llm_dir, tensors, others)


def _open_plain(src: Path, part: str, tensors: Tensors, root: Path) -> Source:
    """A checkpoint of one module, told by its names."""
    if f"{infer.encoder_prefix(tensors)}patch_embed.proj.weight" in tensors.infos:
        found, opened = VISUAL, {"encoder": tensors}
        files: Sequence[Path] = []
    elif "model.embed_tokens.weight" in tensors.infos:
        found, opened = LANGUAGE, {"llm": tensors}
        files = [path for name in LLM_FILES if (path := root / name).is_file()]
        if src.is_dir():
            opened |= published.open_conditioner(root)
    else:
        raise UserError(
            f"{tensors.path}: neither 'patch_embed.proj.weight' nor 'model.embed_tokens.weight' in "
            "it, expected an EVA-CLIP, a Llama, or a folder in the published layout"
        )
    if part not in (ALL, found):
        raise UserError(f"{src}: holds a {found}, no {part} (--part)")
    if src.is_dir():
        files = [path for path in sorted(src.iterdir()) if path.is_file()]
    return Source(root, PLAIN_LLM_DIR, opened, list(files))


def part_of(component: str) -> str:
    """The part that a component belongs to."""
    if component in published.VISUAL_FILES:
        return VISUAL
    return LANGUAGE if component in _LLM_COMPONENTS else pixel_parts.part_of(component)
