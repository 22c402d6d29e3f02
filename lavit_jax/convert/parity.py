"""Compares our modules with a checkpoint's published outputs, array by array.

A folder in the published layout with `reference_io.npz` holds inputs and what the published
modules made of them. A check reads inputs from a `Reference` and yields its own results by name;
further checks are further functions in `CHECKS`.

Every module is fed the published input of its own where the file has it, so that a row judges one
module: rounding before it is not counted twice, and a fault shows where it is. The rows
`tok_tokenize_image_ids` and `prompt_embeds` run the whole way from the image.

Legend: B batch, N patches, L kept, D encoder width, E llm width, S sequence, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.convert import parity_generation, parity_pixels, published
from lavit_jax.convert.parity_base import Check, Model, Reference, Result, run_module
from lavit_jax.convert.plan import ALL_PARTS
from lavit_jax.errors import UserError
from lavit_jax.models import attention, lavit, quantizer, selector
from lavit_jax.models.decoder import FeatureDecoder, HighresHead, LowresHead

FILE = "reference_io.npz"
FLOAT_TOLERANCE = 2e-5
# The published code counts ids with its own vocabulary, whatever the checkpoint's.
PUBLISHED_IMAGE_START, PUBLISHED_IMAGE_END, PUBLISHED_FIRST_CODE = 32000, 32001, 32002
DECISIONS = ("greedy", "random", "all")


@dataclasses.dataclass(frozen=True)
class Row:
    """The verdict on one array.

    Attributes:
      name: of the array.
      shape: of the whole array.
      max_abs_diff: largest difference where the array means anything; nan when not compared.
      tolerance: the most that agrees; 0 for ids, and more for a walk that grows large.
      ok: False when the difference exceeds the tolerance, or nothing could be compared.
      status: "checked", "input" (what checks read) or "not checked" (no check knows the array, or
        the checkpoint lacks what makes it).
    """

    name: str
    shape: tuple[int, ...]
    max_abs_diff: float
    tolerance: float
    ok: bool
    status: str = "checked"


def _project(conditioner: lavit.Conditioner, merged_BND: jax.Array) -> jax.Array:
    return conditioner.vit_proj(merged_BND)


def check_encoder(model: Model, ref: Reference) -> Iterator[Result]:
    """Encoder features, and the contrastive head where the release has it."""
    if not (ref.has("tok_image_nchw") and model.has("encoder")):
        return
    x = model.apply("encoder", ref.image("tok_image_nchw"), method="features_with_cls")
    yield Result("tok_encoder_features_with_cls", x)
    if {"norm", "head_proj"} <= model.params["encoder"].keys():
        cls = ref.before("tok_encoder_features_with_cls", x)[:, 0]
        yield Result("tok_encoder_head", model.apply("encoder", cls, method="head"))


def check_tokenizer(model: Model, ref: Reference) -> Iterator[Result]:
    """Selector, merger and quantizer under each set of decisions."""
    if not (ref.has("tok_image_nchw") and model.has("encoder", "selector", "merger")):
        return
    ours = model.apply("encoder", ref.image("tok_image_nchw"), method="features_with_cls")
    x = ref.before("tok_encoder_features_with_cls", ours)[:, 1:]
    log_probs = model.apply("selector", x)
    yield Result("tok_selector_log_probs", log_probs)
    yield Result(
        "tok_greedy_keep", selector.greedy_keep(ref.before("tok_selector_log_probs", log_probs))
    )
    for name in DECISIONS:
        if ref.has(f"tok_{name}_keep"):
            yield from _tokens(model, ref, name, x)
    if ref.has("tok_random_keep"):
        keep = ref.input("tok_random_keep")
        merged = model.apply("merger", ours[:, 1:], jnp.asarray(keep))
        codes = quantizer.nearest_code(model.apply("quantizer", merged), _codes(model))
        yield Result("tok_tokenize_image_ids", published_ids(np.asarray(codes), keep > 0.5))


def _codes(model: Model) -> jax.Array:
    assert model.loaded.codebook is not None
    return model.loaded.codebook.codes_KC


def _tokens(model: Model, ref: Reference, name: str, x_BND: jax.Array) -> Iterator[Result]:
    keep = ref.input(f"tok_{name}_keep")
    kept = keep > 0.5
    merged = model.apply("merger", x_BND, jnp.asarray(keep))
    yield Result(f"tok_{name}_merged", merged, kept)
    merged = ref.before(f"tok_{name}_merged", merged)
    if model.has("conditioner"):
        # The stage-one file has no vit_proj: the language model's is meant.
        projected = model.apply("conditioner", merged, method=_project)
        yield Result(f"tok_{name}_llm_features", projected, kept)
    z = model.apply("quantizer", merged)
    yield Result(f"tok_{name}_code_features", z, kept)
    codes = quantizer.nearest_code(ref.before(f"tok_{name}_code_features", z), _codes(model))
    yield Result(f"tok_{name}_codes", codes, kept)
    codes = ref.before(f"tok_{name}_codes", codes)
    yield Result(f"tok_{name}_quantized", quantizer.lookup(codes, _codes(model)), kept)


def published_ids(codes_BN: np.ndarray, kept_BN: np.ndarray) -> np.ndarray:
    """[IMG] codes [/IMG] of every picture with the published constants, padded with -1."""
    rows = [
        [PUBLISHED_IMAGE_START, *(codes[kept] + PUBLISHED_FIRST_CODE), PUBLISHED_IMAGE_END]
        for codes, kept in zip(codes_BN, kept_BN)
    ]
    longest = max(map(len, rows))
    return np.array([row + [-1] * (longest - len(row)) for row in rows])


def check_decoder(model: Model, ref: Reference) -> Iterator[Result]:
    """Both feature decoders and their condition heads."""
    if not ref.has("tok_decoder_in", "tok_decoder_token_nums"):
        return
    counts = ref.input("tok_decoder_token_nums").reshape(-1)
    valid_BL = np.arange(counts.max())[None] < counts[:, None]
    flat = ref.input("tok_decoder_in")
    codes_BLC = np.zeros((*valid_BL.shape, flat.shape[-1]), flat.dtype)
    codes_BLC[valid_BL] = flat
    conditions, params = model.loaded.extra.conditions, model.params
    if conditions.lowres is not None:
        x = model.apply("decoder", codes_BLC, valid_BL)
        yield Result("tok_decoder_lowres_reconstruction", x)
        x = ref.before("tok_decoder_lowres_reconstruction", x)
        head = LowresHead(conditions.lowres)
        yield Result("tok_decoder_lowres_cond", run_module(head, params["lowres_head"], x))
    if conditions.highres is not None and conditions.highres_decoder is not None:
        decoder = FeatureDecoder(conditions.highres_decoder)
        x = run_module(decoder, params["highres_decoder"], codes_BLC, valid_BL)
        yield Result("tok_decoder_highres_reconstruction", x)
        x = ref.before("tok_decoder_highres_reconstruction", x)
        highres = HighresHead(conditions.pool_heads, *conditions.highres)
        embeds, pooled = run_module(highres, params["highres_head"], x)
        yield Result("tok_decoder_highres_prompt_embeds", embeds)
        yield Result("tok_decoder_highres_pooled", pooled)


def _run_llm(model: Model, embeds_BSE: jax.Array, mask_BS: np.ndarray) -> jax.Array:
    positions = np.maximum(mask_BS.cumsum(axis=1) - 1, 0)
    readable = attention.causal_segment_mask(jnp.asarray(mask_BS))
    hidden, _ = model.apply("llm", embeds_BSE, jnp.asarray(positions), readable, method="hidden")
    return model.apply("llm", hidden, method="logits")


def check_language_model(model: Model, ref: Reference) -> Iterator[Result]:
    """Logits of a left-padded batch of ids."""
    if not (ref.has("lm_ids", "lm_mask") and model.has("llm")):
        return
    mask = ref.input("lm_mask").astype(np.int32)
    embeds = model.apply("llm", jnp.asarray(ref.input("lm_ids")), method="embed")
    yield Result("lm_logits", _run_llm(model, embeds, mask), mask > 0)


def check_condition(model: Model, ref: Reference) -> Iterator[Result]:
    """Images as condition: their features, the mixed prompt and the scores of its next token."""
    if not (ref.has("image_nchw", "keep") and model.has("encoder", "conditioner")):
        return
    keep = ref.input("keep")
    x = model.apply("encoder", ref.image("image_nchw"))
    features = model.apply("conditioner", x, jnp.asarray(keep), method="masked")
    yield Result("llm_features", features, keep > 0.5)
    if not (ref.has("question_ids") and model.has("llm")):
        return
    embeds, mask = _prompt(model, np.asarray(features), keep > 0.5, ref.input("question_ids"))
    yield Result("prompt_mask", mask)
    yield Result("prompt_embeds", embeds, mask > 0)
    logits = _run_llm(
        model, ref.before("prompt_embeds", embeds), np.asarray(ref.before("prompt_mask", mask))
    )
    yield Result("prompt_last_logits", logits[:, -1])


def _prompt(
    model: Model, features_BNE: np.ndarray, kept_BN: np.ndarray, question_BS: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[IMG] features [/IMG] question, left-padded; a question's -1 is padding."""
    sizes = model.modules.config.llm
    table = np.asarray(model.params["llm"]["embedding"])
    start, end = table[[sizes.image_start]], table[[sizes.image_end]]
    rows = [
        np.concatenate([start, features[kept], end, table[ids[ids >= 0]]])
        for features, kept, ids in zip(features_BNE, kept_BN, question_BS)
    ]
    longest = max(map(len, rows))
    embeds = np.stack([np.pad(row, ((longest - len(row), 0), (0, 0))) for row in rows])
    mask = np.stack([np.arange(longest) >= longest - len(row) for row in rows])
    return embeds, mask.astype(np.int32)


CHECKS: tuple[Check, ...] = (
    check_encoder,
    check_tokenizer,
    check_decoder,
    check_language_model,
    check_condition,
    parity_generation.check_text,
    parity_generation.check_drawing,
    parity_pixels.check_unets,
    parity_pixels.check_autoencoder,
    parity_pixels.check_sampling,
)


def compare(result: Result, expected: np.ndarray) -> Row:
    """Ours against theirs; a different shape or a nan of ours never agrees."""
    ours = np.asarray(result.value)
    exact = expected.dtype.kind in "iub"
    tolerance = 0.0 if exact else FLOAT_TOLERANCE
    if result.relative:
        tolerance *= max(1.0, float(np.abs(expected).max(initial=0.0)))
    if ours.shape != expected.shape:
        return Row(result.name, expected.shape, float("inf"), tolerance, ok=False)
    # Impossible ids score -inf on both sides: equal, though their difference is nan.
    alike = ours == expected
    difference = np.where(alike, 0.0, np.abs(_minus(ours, expected)))
    if result.where is not None:
        difference = difference[result.where]
    largest = float(difference.max(initial=0.0))
    return Row(result.name, expected.shape, largest, tolerance, ok=largest <= tolerance)


def _minus(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return ours.astype(np.float64) - expected.astype(np.float64)


def _load(directory: Path) -> Model:
    parts = published.parts_of(directory, known=ALL_PARTS)
    loaded = published.load_published(directory, parts)
    params = jax.tree.map(jnp.asarray, loaded.params)
    return Model(loaded, lavit.build_modules(loaded.config), params)


def _results(check: Check, model: Model, ref: Reference) -> list[Result]:
    try:
        with jax.default_matmul_precision("highest"):
            return list(check(model, ref))
    except (TypeError, ValueError, IndexError) as error:
        what = str(error).strip().splitlines()[0]
        raise UserError(
            f"{ref.path}: its arrays do not fit the checkpoint ({check.__name__}: {what})"
        ) from error


def run(directory: str | Path, checks: tuple[Check, ...] = CHECKS) -> list[Row]:
    """Compares every array of a checkpoint that some check covers.

    Args:
      directory: folder in the published layout with `reference_io.npz`.
      checks: what to compute.

    Returns:
      One row for every array of the file, in its order: compared ones, inputs, and those that
      could not be computed (status "not checked").

    Raises:
      FileNotFoundError: no such folder, or no published layout.
      UserError: no `reference_io.npz`, or a broken checkpoint.
    """
    directory = Path(directory)
    published.parts_of(directory, known=ALL_PARTS)
    ref = Reference(directory / FILE)
    model = _load(directory)
    rows: dict[str, Row] = {}
    for check in checks:
        for result in _results(check, model, ref):
            if ref.has(result.name):
                rows[result.name] = compare(result, ref.arrays[result.name])
    other = functools.partial(Row, max_abs_diff=float("nan"), tolerance=float("nan"))
    for name, array in ref.arrays.items():
        read = name in ref.inputs
        status = "input" if read else "not checked"
        rows.setdefault(name, other(name, array.shape, ok=read, status=status))
    return [rows[name] for name in ref.arrays]
