"""Sizes of a published checkpoint, read off its tensors and configs; nothing is assumed.

The one thing no tensor tells is the number of heads of the vision modules (`vision_heads`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lavit_jax.convert.names import CLIP_PREFIX
from lavit_jax.convert.read import Tensors
from lavit_jax.errors import UserError
from lavit_jax.models.config import (
    DecoderConfig,
    EncoderConfig,
    LavitConfig,
    LlamaConfig,
    MergerConfig,
    PixelHeadConfig,
    QuantizerConfig,
    SelectorConfig,
    TextTowerConfig,
)

if TYPE_CHECKING:
    from lavit_jax.convert.pixel_infer import PixelParts

PUBLISHED_HEAD_DIM = 88
PUBLISHED_MLP_RATIO = 4.3637
BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Sizes of the pixel decoders' condition heads; None where the checkpoint lacks one.

    Attributes:
      lowres: condition width of the SD 1.5-style U-Net.
      highres: the two widths concatenated for the SDXL-style U-Net; the second is the pooled one.
      pool_heads: heads of the attention pool.
      highres_decoder: sizes of the feature decoder trained with the SDXL-style U-Net.
    """

    lowres: int | None = None
    highres: tuple[int, int] | None = None
    pool_heads: int = 16
    highres_decoder: DecoderConfig | None = None


class Sizes(NamedTuple):
    """All sizes of a checkpoint.

    Attributes:
      config: of the model.
      conditions: of the pixel decoders' condition heads.
      tied: the language model's head is its embedding and not stored again.
      text_only: the language model is a plain Llama, without rows for anything visual.
      encoder_prefix: before the encoder's names; not empty in a plain EVA-CLIP.
      pixels: sizes of the pixel decoders, by "lowres" and "highres".
    """

    config: LavitConfig
    conditions: Conditions
    tied: bool = False
    text_only: bool = False
    encoder_prefix: str = ""
    pixels: Mapping[str, PixelParts] = types.MappingProxyType({})


def shape_of(tensors: Tensors, name: str, *axes: str) -> tuple[int, ...]:
    """Shape of a tensor the sizes are read off.

    Raises:
      UserError: it is missing (the closest names are told), or its rank is not that of `axes`.
    """
    info = tensors.infos.get(name)
    if info is None:
        close = difflib.get_close_matches(name, tensors.infos, n=2)
        hint = f"; the closest there: {', '.join(map(repr, close))}" if close else ""
        raise UserError(f"{tensors.path}: tensor {name!r} is missing{hint}")
    if len(info.shape) != len(axes):
        raise UserError(
            f"{info.file}: tensor {name!r} has shape {info.shape}, expected [{', '.join(axes)}]"
        )
    return info.shape


def depth_of(tensors: Tensors, prefix: str = "") -> int:
    """Number of blocks under a prefix: the highest index, and one."""
    found = [
        int(match.group(1))
        for name in tensors.infos
        if name.startswith(prefix) and (match := BLOCK.search(name[len(prefix) :]))
    ]
    if not found:
        raise UserError(f"{tensors.path}: no blocks, expected names like '{prefix}blocks.0.'")
    return max(found) + 1


def mlp_ratio(width: int, hidden: int) -> float:
    """A ratio with int(width * ratio) == hidden; the published one where it fits."""
    if int(width * PUBLISHED_MLP_RATIO) == hidden:
        return PUBLISHED_MLP_RATIO
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def vision_heads(width: int, given: int | None, where: object) -> int:
    """Heads of the vision modules: as given, else heads of 88 as published.

    Raises:
      UserError: not given and the width is no multiple of 88, or not a divisor of the width.
    """
    if given is None:
        if width % PUBLISHED_HEAD_DIM:
            raise UserError(
                f"{where}: the number of heads is not in the weights; for width {width} "
                f"(no multiple of {PUBLISHED_HEAD_DIM}) give it with --heads or as 'heads' in "
                "reference_config.json"
            )
        return width // PUBLISHED_HEAD_DIM
    if given < 1 or width % given:
        raise UserError(f"{where}: {given} heads do not divide the width {width}")
    return given


def encoder(tensors: Tensors, heads: int | None, prefix: str = "") -> EncoderConfig:
    """From `eva_vitg_psz14.bin`, or a plain EVA-CLIP with its prefix."""
    width, _, patch, _ = shape_of(tensors, f"{prefix}patch_embed.proj.weight", "D", "3", "p", "p")
    _, tokens, _ = shape_of(tensors, f"{prefix}pos_embed", "1", "1 + N", "D")
    grid = math.isqrt(tokens - 1)
    if grid**2 != tokens - 1:
        raise UserError(
            f"{tensors.path}: tensor '{prefix}pos_embed' has {tokens} positions, "
            "expected [CLS] and a square number of patches"
        )
    hidden, _ = shape_of(tensors, f"{prefix}blocks.0.mlp.fc1.weight", "hidden", "D")
    # A release without the head keeps the published width of the embedding.
    embed_dim = EncoderConfig.embed_dim
    if f"{prefix}head.weight" in tensors.infos:
        embed_dim, _ = shape_of(tensors, f"{prefix}head.weight", "F", "D")
    return EncoderConfig(
        width=width,
        depth=depth_of(tensors, prefix),
        heads=vision_heads(width, heads, tensors.path),
        mlp_ratio=mlp_ratio(width, hidden),
        image_size=grid * patch,
        patch_size=patch,
        embed_dim=embed_dim,
    )


def merger(tensors: Tensors, heads: int | None) -> MergerConfig:
    """From `causal_encoder.` of `tokenizer_encoder.bin` or `visual_weight.bin`."""
    prefix = "causal_encoder."
    hidden, width = shape_of(tensors, f"{prefix}blocks.0.mlp.fc1.weight", "hidden", "D")
    return MergerConfig(
        width=width,
        depth=depth_of(tensors, prefix),
        heads=vision_heads(width, heads, tensors.path),
        mlp_ratio=mlp_ratio(width, hidden),
        attention="published",
    )


def quantizer(tensors: Tensors) -> QuantizerConfig:
    """From `tokenizer_encoder.bin`."""
    codes, code_dim = shape_of(tensors, "quantize.embedding.weight", "K", "C")
    width, _ = shape_of(tensors, "encode_task_layer.0.weight", "D", "D")
    return QuantizerConfig(width=width, codes=codes, code_dim=code_dim)


def decoder(tensors: Tensors, heads: int | None) -> DecoderConfig:
    """From `tokenizer_decoder.bin` or `highres_tokenizer_decoder.bin`."""
    _, patches, width = shape_of(tensors, "query_embed", "1", "N", "D")
    hidden, _ = shape_of(tensors, "blocks.0.mlp.fc1.weight", "hidden", "D")
    _, code_dim = shape_of(tensors, "in_proj.weight", "D", "C")
    return DecoderConfig(
        width=width,
        depth=depth_of(tensors),
        heads=vision_heads(width, heads, tensors.path),
        mlp_ratio=mlp_ratio(width, hidden),
        patches=patches,
        code_dim=code_dim,
    )


def conditions(lowres: Tensors | None, highres: Tensors | None, heads: int | None) -> Conditions:
    """Sizes of the condition heads; the pool has as many heads as its decoder."""
    found: dict[str, Any] = {}
    if lowres is not None:
        found["lowres"] = shape_of(lowres, "unet_proj.weight", "F", "D")[0]
    if highres is not None:
        sizes = decoder(highres, heads)
        first, _ = shape_of(highres, "unet_proj_1.weight", "F", "D")
        second, _ = shape_of(highres, "unet_proj_2.weight", "P", "D")
        found |= {"highres": (first, second), "highres_decoder": sizes, "pool_heads": sizes.heads}
    return Conditions(**found)


def llama(
    tensors: Tensors,
    settings: Mapping[str, Any],
    where: object,
    codes: int,
    text_only: bool = False,
) -> LlamaConfig:
    """From the language model's weights and its config.json.

    Args:
      tensors: the weights.
      settings: the config.
      where: it was read from.
      codes: K.
      text_only: see `Sizes`.

    Raises:
      UserError: the config asks for what LaVIT's Llama has not, or lacks a needed field.
    """
    _supported(settings, where)
    vocab, width = shape_of(tensors, "model.embed_tokens.weight", "V", "E")
    hidden, _ = shape_of(tensors, "model.layers.0.mlp.gate_proj.weight", "hidden", "E")
    query, _ = shape_of(tensors, "model.layers.0.self_attn.q_proj.weight", "H * d", "E")
    heads = _count(settings, "num_attention_heads", where)
    if heads is None:
        raise UserError(f"{where}: 'num_attention_heads' is missing, expected a number")
    text_vocab = vocab if text_only else vocab - 2 - codes
    if text_vocab < 1:
        raise UserError(
            f"{tensors.path}: {vocab} ids leave no text beside [IMG], [/IMG] and {codes} codes"
        )
    return LlamaConfig(
        width=width,
        depth=depth_of(tensors),
        heads=heads,
        kv_heads=_count(settings, "num_key_value_heads", where) or heads,
        hidden=hidden,
        text_vocab=text_vocab,
        codes=codes,
        max_length=_count(settings, "max_position_embeddings", where) or 2048,
        rope_theta=rope_theta(settings),
        norm_eps=_norm_eps(settings, where),
        head_dim=_count(settings, "head_dim", where) or query // heads,
    )


def _count(settings: Mapping[str, Any], key: str, where: object) -> int | None:
    """A positive whole number; None where the file leaves it out."""
    value = settings.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: {key!r} is {value!r}, expected a positive whole number")
    return value


def _norm_eps(settings: Mapping[str, Any], where: object) -> float:
    value = settings.get("rms_norm_eps")
    if value is None:
        raise UserError(f"{where}: 'rms_norm_eps' is missing, expected a number")
    return float(value)


def vocabulary(tensors: Tensors) -> int:
    """Rows of the language model's embedding."""
    return shape_of(tensors, "model.embed_tokens.weight", "V", "E")[0]


def encoder_prefix(tensors: Tensors) -> str:
    """What stands before the encoder's names."""
    found = f"{CLIP_PREFIX}patch_embed.proj.weight" in tensors.infos
    return CLIP_PREFIX if found else ""


def tied(tensors: Tensors, settings: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding, and left out of the file."""
    return bool(settings.get("tie_word_embeddings")) and "lm_head.weight" not in tensors.infos


def rope_theta(settings: Mapping[str, Any]) -> float:
    """Base of the rotary frequencies; new files nest it, the oldest leave it out."""
    nested = settings.get("rope_parameters") or {}
    return float(nested.get("rope_theta") or settings.get("rope_theta") or 10000.0)


def _supported(settings: Mapping[str, Any], where: object) -> None:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise UserError(f"{where}: rope type {kind!r} is not supported, expected 'default'")
    activation = settings.get("hidden_act") or "silu"
    if activation != "silu":
        raise UserError(f"{where}: hidden_act {activation!r} is not supported, expected 'silu'")


def published_sizes(
    *,
    encoder: EncoderConfig | None,
    merger: MergerConfig | None,
    quantizer: QuantizerConfig | None,
    decoder: DecoderConfig | None,
    llm: LlamaConfig | None,
) -> LavitConfig:
    """Whole sizes; parts that the checkpoint lacks (None) get the published ones.

    The pixel head and the text tower are ours and never published.
    """
    known = next((c for c in (encoder, merger, decoder) if c is not None), None)
    width = known.width if known else 1408
    heads = known.heads if known else 16
    encoder = encoder or EncoderConfig(width=width, depth=40, heads=heads)
    quantizer = quantizer or QuantizerConfig(width=width)
    patches = encoder.patches
    return LavitConfig(
        encoder=encoder,
        selector=SelectorConfig(width=width),
        merger=merger or MergerConfig(width=width, depth=12, heads=heads, attention="published"),
        quantizer=quantizer,
        decoder=decoder
        or DecoderConfig(
            width=width, depth=12, heads=heads, patches=patches, code_dim=quantizer.code_dim
        ),
        pixel_head=PixelHeadConfig(
            width=768,
            depth=4,
            heads=12,
            features=width,
            patches=patches,
            patch_size=encoder.patch_size,
        ),
        text_tower=TextTowerConfig(
            width=768,
            depth=12,
            heads=12,
            embed_dim=encoder.embed_dim,
            vocab=llm.text_vocab if llm else 32000,
        ),
        llm=llm
        or LlamaConfig(
            width=4096, depth=32, heads=32, kv_heads=32, hidden=11008, codes=quantizer.codes
        ),
    )
