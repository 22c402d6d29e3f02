"""Loads a checkpoint in the published folder layout (SPEC 10) into our parameter tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lavit_jax.convert import forms, infer, names, pixel_infer, pixel_parts, read
from lavit_jax.convert.forms import Table
from lavit_jax.convert.infer import Conditions, Sizes
from lavit_jax.convert.pixel_infer import PixelParts
from lavit_jax.convert.read import Named, Tensors
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.quantizer import Codebook

REFERENCE_CONFIG = "reference_config.json"
TEXT_MODEL = "tokenizer.model"
LLM_DIR = "language_model"
PLAIN_LLM_DIR = "."  # of a plain Llama, whose files are in no folder of their own
VISUAL, LANGUAGE = "visual_tokenizer", "language_model"
PARTS = (VISUAL, LANGUAGE)
MOST_TOLD = 20  # faults in one message
# Component to its file, and whether its part needs it.
VISUAL_FILES = {
    "encoder": ("eva_vitg_psz14", True),
    "tokenizer_encoder": ("tokenizer_encoder", True),
    "tokenizer_decoder": ("tokenizer_decoder", False),
    "highres_tokenizer_decoder": ("highres_tokenizer_decoder", False),
}


@dataclasses.dataclass(frozen=True)
class Extra:
    """What a checkpoint holds beside the model's own modules.

    Attributes:
      conditions: sizes of the pixel decoders' condition heads.
      ignored: source tensors that carry no information of their own, as "file: name".
      absent: optional tensors the release leaves out, as "file: name".
    """

    conditions: Conditions
    ignored: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


class Published(NamedTuple):
    """A loaded checkpoint.

    Attributes:
      config: sizes, all inferred.
      params: numpy arrays by module name: encoder, selector, merger, quantizer, decoder,
        lowres_head, highres_decoder, highres_head, conditioner, llm, and unet and autoencoder
        of the pixel decoders, as "lowres_unet" and so on; those present.
      codebook: codes as stored (counts are not published: ones); None without a tokenizer.
      extra: the rest.
      pixels: sizes of the pixel decoders, by "lowres" and "highres".
    """

    config: LavitConfig
    params: dict[str, Any]
    codebook: Codebook | None
    extra: Extra
    pixels: Mapping[str, PixelParts]


def parts_of(
    directory: Path, llm_dir: str = LLM_DIR, known: Sequence[str] = PARTS
) -> tuple[str, ...]:
    """Those of the known parts whose folders exist.

    Raises:
      FileNotFoundError: no such directory, none of its folders is a published one, or it lacks
        the one that was named for the language model.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder")
    if llm_dir not in (LLM_DIR, PLAIN_LLM_DIR) and not (directory / llm_dir).is_dir():
        raise FileNotFoundError(f"{directory}: no {llm_dir}/ in it")
    folders = {part: part for part in known} | {LANGUAGE: llm_dir}
    found = tuple(part for part in known if (directory / folders[part]).is_dir())
    if not found:
        raise FileNotFoundError(
            f"{directory}: no {VISUAL}/ and no {llm_dir}/ in it, expected the published layout"
        )
    return found


def open_sources(
    directory: Path, parts: Sequence[str] | None = None, llm_dir: str = LLM_DIR
) -> dict[str, Tensors]:
    """Opens the files of the wanted parts (default: all there are), by component.

    Raises:
      FileNotFoundError: a file that a part cannot do without.
      UserError: an unknown part, or a broken file.
    """
    parts = parts_of(directory, llm_dir) if parts is None else parts
    known = (*PARTS, *pixel_parts.PARTS)
    unknown = sorted(set(parts) - set(known))
    if unknown:
        raise UserError(f"part {unknown[0]!r} is unknown, expected some of {', '.join(known)}")
    sources: dict[str, Tensors] = {}
    if VISUAL in parts:
        for component, (stem, needed) in VISUAL_FILES.items():
            path = read.weights(directory / VISUAL / stem)
            if needed or path.is_file():
                sources[component] = read.open_file(path)
    if LANGUAGE in parts:
        sources |= open_language_model(directory / llm_dir)
    for part in pixel_parts.PARTS:
        if part in parts:
            sources |= pixel_parts.open_sources(directory, part)
    return sources


def open_language_model(folder: Path) -> dict[str, Tensors]:
    """Opens a language model, and what it conditions on pictures with where that is there."""
    return {"llm": read.open_folder(folder)} | open_conditioner(folder)


def open_conditioner(folder: Path) -> dict[str, Tensors]:
    """Opens what a language model conditions on pictures with, where that is there."""
    path = read.weights(folder / "visual_weight")
    return {"conditioner": read.open_file(path)} if path.is_file() else {}


def given_heads(directory: Path) -> int | None:
    """Heads of the vision modules where `reference_config.json` tells them."""
    path = directory / REFERENCE_CONFIG
    if not path.is_file():
        return None
    heads = read.read_json(path).get("heads")
    if heads is not None and not (isinstance(heads, int) and heads > 0):
        raise UserError(f"{path}: 'heads' is {heads!r}, expected a positive whole number")
    return heads


def infer_config(
    directory: Path,
    sources: dict[str, Tensors] | None = None,
    *,
    heads: int | None = None,
    codes: int | None = None,
    llm_dir: str = LLM_DIR,
) -> Sizes:
    """Sizes of everything in a published folder.

    Args:
      directory: the folder.
      sources: its opened files (default: all there are).
      heads: heads of the vision modules (default: `reference_config.json`, else width / 88).
      codes: K, needed only where neither the visual tokenizer nor the text tokenizer tells it.
      llm_dir: folder of the language model.

    Raises:
      FileNotFoundError: a needed file is missing.
      UserError: a tensor or field the sizes are read off is missing or contradicts another.
    """
    sources = open_sources(directory, llm_dir=llm_dir) if sources is None else sources
    heads = given_heads(directory) if heads is None else heads
    visual, tokenizer = sources.get("encoder"), sources.get("tokenizer_encoder")
    lowres, highres = sources.get("tokenizer_decoder"), sources.get("highres_tokenizer_decoder")
    merging, decoding = tokenizer or sources.get("conditioner"), lowres or highres
    quantizer = infer.quantizer(tokenizer) if tokenizer else None
    prefix = infer.encoder_prefix(visual) if visual else ""
    llm, tied, text_only = None, False, False
    if "llm" in sources:
        folder = directory / llm_dir
        where = folder / "config.json"
        settings = read.read_json(where)
        tied = infer.tied(sources["llm"], settings)
        rows, pieces = infer.vocabulary(sources["llm"]), _pieces(folder)
        codes = _known_codes(directory, quantizer.codes if quantizer else None, codes)
        plain = llm_dir == PLAIN_LLM_DIR and "conditioner" not in sources
        text_only = pieces == rows or (plain and (codes is None or pieces != rows - 2 - codes))
        if codes is None and pieces is not None and not text_only:
            codes = rows - 2 - pieces
        if codes is None:
            raise UserError(
                f"{folder}: the number of codes is not in a language model; give it with --codes"
            )
        with read.reading_values(where):
            llm = infer.llama(sources["llm"], settings, where, codes, text_only)
    config = infer.published_sizes(
        encoder=infer.encoder(visual, heads, prefix) if visual else None,
        merger=infer.merger(merging, heads) if merging else None,
        quantizer=quantizer,
        decoder=infer.decoder(decoding, heads) if decoding else None,
        llm=llm,
    )
    conditions = infer.conditions(lowres, highres, heads)
    pixels = pixel_infer.decoders(directory, sources)
    pixel_infer.check_conditions(pixels, conditions, directory)
    return Sizes(config, conditions, tied, text_only, prefix, pixels)


def _known_codes(directory: Path, stored: int | None, given: int | None) -> int | None:
    """K as the visual tokenizer has it, opened or beside what is, or as given."""
    beside = read.weights(directory / VISUAL / "tokenizer_encoder")
    if stored is None and beside.is_file():
        stored = infer.quantizer(read.open_file(beside)).codes
    if stored is not None and given is not None and stored != given:
        raise UserError(f"{directory}: the codebook has {stored} codes, --codes says {given}")
    return given if stored is None else stored


def _pieces(folder: Path) -> int | None:
    """T as the text tokenizer beside a language model has it."""
    path = folder / TEXT_MODEL
    return TextTokenizer(path).vocab_size if path.is_file() else None


def tables(sources: Mapping[str, Named], sizes: Sizes) -> dict[str, Table]:
    """The table of every component."""
    config, conditions = sizes.config, sizes.conditions
    made: dict[str, Table] = {}
    for component, tensors in sources.items():
        match component:
            case "encoder":
                made[component] = forms.under(
                    names.encoder(config.encoder), sizes.encoder_prefix, "encoder/"
                )
            case "tokenizer_encoder":
                made[component] = names.tokenizer_encoder(config)
            case "tokenizer_decoder":
                assert conditions.lowres is not None
                made[component] = names.lowres_decoder(config.decoder, conditions.lowres)
            case "highres_tokenizer_decoder":
                assert conditions.highres is not None and conditions.highres_decoder is not None
                made[component] = names.highres_decoder(
                    conditions.highres_decoder, *conditions.highres, conditions.pool_heads
                )
            case "conditioner":
                made[component] = names.conditioner(config.merger, config.llm.width)
            case "llm":
                made[component] = names.llama(config.llm, sizes.tied, sizes.text_only)
            case _:
                made[component] = pixel_parts.table(component, tensors.infos, sizes.pixels)
    return made


class Checked(NamedTuple):
    """Names of a file that are mapped, and what a report should tell."""

    wanted: set[str]
    ignored: list[str]
    absent: list[str]
    problems: list[str]


def check(table: Table, tensors: Tensors, prefix: str = "") -> Checked:
    """Compares a file with its table: every missing, extra, misshapen or mistyped tensor.

    Names without the prefix are another model's.
    """
    expected = forms.places(table)
    infos = tensors.infos
    groups = {e.group for n, (e, _) in expected.items() if e.group and n in infos}
    absent, problems = [], []
    for name, (entry, _) in expected.items():
        shape = entry.form.published
        info = infos.get(name)
        if info is None:
            if entry.group and entry.group not in groups:
                absent.append(f"{tensors.path}: {name}")
            else:
                problems.append(f"{tensors.path}: {name!r} is missing, expected shape {shape}")
        elif info.shape != shape:
            problems.append(f"{info.file}: {name!r} has shape {info.shape}, expected {shape}")
        elif info.dtype not in read.FLOATS:
            problems.append(
                f"{info.file}: {name!r} has dtype {info.dtype}, expected {' or '.join(read.FLOATS)}"
            )
    ignored = []
    for name in infos.keys() - expected.keys():
        if name.endswith(names.IGNORED_SUFFIXES) or not name.startswith(prefix):
            ignored.append(f"{tensors.path}: {name}")
        else:
            problems.append(f"{infos[name].file}: {name!r} is not expected")
    return Checked(set(expected) & set(infos), sorted(ignored), absent, problems)


def check_all(
    by_component: Mapping[str, Table], sources: Mapping[str, Tensors], sizes: Sizes
) -> dict[str, Checked]:
    """Compares every file with its table.

    Raises:
      UserError: missing, extra, misshapen or mistyped tensors; the first `MOST_TOLD` are named.
    """
    checked = {
        component: check(
            table, sources[component], sizes.encoder_prefix if component == "encoder" else ""
        )
        for component, table in by_component.items()
    }
    problems = [problem for found in checked.values() for problem in found.problems]
    if len(problems) > MOST_TOLD:
        problems[MOST_TOLD:] = [f"and {len(problems) - MOST_TOLD} more"]
    if problems:
        raise UserError("; ".join(problems))
    return checked


def load_published(
    directory: str | Path,
    parts: Sequence[str] | None = None,
    *,
    heads: int | None = None,
    codes: int | None = None,
    llm_dir: str = LLM_DIR,
    dtype: Any = np.float32,
) -> Published:
    """Loads a published checkpoint into host memory.

    Args:
      directory: folder in the published layout.
      parts: of "visual_tokenizer", "language_model", "pixel_decoding" and
        "highres_pixel_decoding" (default: the first two, those there).
      heads: see `infer_config`.
      codes: see `infer_config`.
      llm_dir: "language_model" or "language_model_sft".
      dtype: of the parameters.

    Raises:
      FileNotFoundError: a folder or needed file is missing.
      UserError: a broken file, or missing, extra, misshapen or mistyped tensors (all are named).
    """
    directory = Path(directory)
    sources = open_sources(directory, parts, llm_dir)
    sizes = infer_config(directory, sources, heads=heads, codes=codes, llm_dir=llm_dir)
    by_component = tables(sources, sizes)
    checked = check_all(by_component, sources, sizes)
    params: dict[str, Any] = {}
    for component, table in by_component.items():
        tensors = read.items(sources[component], checked[component].wanted)
        params |= forms.assemble(table, forms.pieces(table, tensors), dtype)
        sources[component].close()
    extra = Extra(
        sizes.conditions,
        ignored=tuple(name for found in checked.values() for name in found.ignored),
        absent=tuple(name for found in checked.values() for name in found.absent),
    )
    return Published(sizes.config, params, _codebook(params), extra, sizes.pixels)


def _codebook(params: dict[str, Any]) -> Codebook | None:
    stored = params.pop("codebook", None)
    if stored is None:
        return None
    codes = jnp.asarray(stored["codes"], jnp.float32)
    return Codebook(codes, jnp.ones((codes.shape[0],)))
