"""Frozen, typed sizes of every module; derived values are computed here and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from lavit_jax.models.pixel_config import (
    AutoencoderConfig,
    NoiseConfig,
    PixelConfig,
    UNetConfig,
)

T = TypeVar("T")

# What the backward pass keeps of each block, least first; `layers.stack` says exactly.
REMAT_POLICIES = ("full", "context", "projections", "attention", "most", "dots", "none")
MATMULS = ("plain", "int8")
MERGER_ATTENTION = ("clean", "published")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a stack of pre-norm blocks.

    Attributes:
      width: residual width D.
      depth: number of blocks.
      heads: attention heads; must divide the width.
      mlp_ratio: MLP hidden width is int(width * mlp_ratio) (4.3637 gives EVA's 6144 of 1408).
      dtype: compute dtype; parameters, norms and softmax stay float32.
      remat: what the backward pass recomputes: one of `REMAT_POLICIES`, from "full" (all of a
        block) over "context" (all but attention) and "dots" (all but matmuls' results) to "none".
      unroll: blocks per scan iteration; more is faster on a CPU and slower to compile.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.3637
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check(
            self.width % self.heads == 0,
            f"{name}: heads must divide width, got width={self.width}, heads={self.heads}",
        )
        _check(
            self.remat in REMAT_POLICIES,
            f"{name}: remat must be one of {REMAT_POLICIES}, got {self.remat!r}",
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """EVA-CLIP vision encoder (SPEC: 40 blocks of 1408, patch 14 at 224 px).

    Attributes:
      image_size: input side in pixels, a multiple of patch_size.
      patch_size: patch side in pixels.
      embed_dim: width of the contrastive embedding made from [CLS].
    """

    image_size: int = 224
    patch_size: int = 14
    embed_dim: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.image_size % self.patch_size == 0,
            "image_size must be a multiple of patch_size, got "
            f"image_size={self.image_size}, patch_size={self.patch_size}",
        )

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2


@dataclasses.dataclass(frozen=True)
class SelectorConfig:
    """Keep/drop decisions.

    Attributes:
      width: encoder width D.
      max_kept: L_max, the most patches kept per image; 0 means all N may be kept.
    """

    width: int
    max_kept: int = 0


@dataclasses.dataclass(frozen=True)
class MergerConfig(TransformerConfig):
    """Token merger.

    Attributes:
      attention: "published" (bit-faithful to the released weights) or "clean" (ours: exact
        zeros for masked keys, so kept patches can be gathered).
    """

    attention: str = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            self.attention in MERGER_ATTENTION,
            f"merger.attention must be one of {MERGER_ATTENTION}, got {self.attention!r}",
        )


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Codebook of K unit vectors of C dimensions.

    Attributes:
      width: merger width D.
      codes: K.
      code_dim: C.
      decay: EMA decay of the code statistics (0.99, borrowed from BEiT-2).
      reseed_below: a code whose EMA count per batch falls below this share of a uniform
        use is dead and re-seeded from the batch (ours).
    """

    width: int
    codes: int = 16384
    code_dim: int = 32
    decay: float = 0.99
    reseed_below: float = 0.02

    def __post_init__(self) -> None:
        _check(self.codes > 1, f"quantizer.codes must be at least 2, got {self.codes}")
        _check(0 < self.decay < 1, f"quantizer.decay must lie in (0, 1), got {self.decay}")


@dataclasses.dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
    """Feature decoder: N learned queries read L codes.

    Attributes:
      patches: N.
      code_dim: C.
      norm_qk: queries and keys of cross-attention are normalised, so that no logit exceeds the
        root of the heads' width (ours, for training from nothing; published: False).
    """

    patches: int = 256
    code_dim: int = 32
    norm_qk: bool = False


@dataclasses.dataclass(frozen=True)
class PixelHeadConfig(TransformerConfig):
    """One-pass pixel head: x_rec to patch pixels (ours).

    Attributes:
      features: width D of x_rec.
      patches: N.
      patch_size: patch side in pixels.
    """

    features: int = 1408
    patches: int = 256
    patch_size: int = 14


@dataclasses.dataclass(frozen=True)
class TextTowerConfig(TransformerConfig):
    """Small text encoder for contrastive pretraining.

    Attributes:
      vocab: text vocabulary T.
      length: longest caption in tokens.
      embed_dim: width of the shared embedding; equals the encoder's embed_dim.
    """

    vocab: int = 32000
    length: int = 32
    embed_dim: int = 1024


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Decoder-only language model.

    Attributes:
      width: E.
      depth: number of layers.
      heads: query heads.
      kv_heads: key/value heads; divides heads.
      hidden: SwiGLU hidden width.
      text_vocab: T, ids 0..T-1.
      codes: K; the vocabulary is T + 2 + K.
      max_length: longest sequence the positions were trained for.
      rope_theta: base of the rotary frequencies.
      norm_eps: RMSNorm epsilon.
      head_dim: width of a head; 0 means width / heads.
      dtype: compute dtype.
      remat: see TransformerConfig.
      unroll: see TransformerConfig.
      vocab_chunks: parts of the vocabulary that the loss looks at one after the other; 1 keeps
        all logits, more never have them all at once.
      matmul: of the layers: "plain" in the compute dtype, or "int8", quantized on the way.
      stacked: parameters of all layers in one array each, for `nn.scan`; that trains, is stored,
        and decodes on a TPU. False is the form that decodes fastest on a CPU, see `FlatBlock`;
        `llama.flattened` makes its parameters.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    hidden: int
    text_vocab: int = 32000
    codes: int = 16384
    max_length: int = 4096
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    head_dim: int = 0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    vocab_chunks: int = 1
    matmul: str = "plain"
    stacked: bool = True

    def __post_init__(self) -> None:
        _check(self.matmul in MATMULS, f"llm: matmul must be one of {MATMULS}, got {self.matmul!r}")
        _check(
            self.remat in REMAT_POLICIES,
            f"llm: remat must be one of {REMAT_POLICIES}, got {self.remat!r}",
        )
        _check(
            self.vocab_chunks >= 1,
            f"llm: vocab_chunks must be at least 1, got {self.vocab_chunks}",
        )
        _check(
            self.heads % self.kv_heads == 0,
            f"llm: kv_heads must divide heads, got heads={self.heads}, kv_heads={self.kv_heads}",
        )
        if self.head_dim == 0:
            _check(
                self.width % self.heads == 0,
                f"llm: heads must divide width, got width={self.width}, heads={self.heads}",
            )
            object.__setattr__(self, "head_dim", self.width // self.heads)

    @property
    def vocab(self) -> int:
        """T + [IMG] + [/IMG] + K."""
        return self.text_vocab + 2 + self.codes

    @property
    def image_start(self) -> int:
        return self.text_vocab

    @property
    def image_end(self) -> int:
        return self.text_vocab + 1

    @property
    def first_code(self) -> int:
        return self.text_vocab + 2

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class LavitConfig:
    """Sizes of the whole model; sizes shared by two modules are set once by `lavit_config`.

    `pixels` is None where no pixel decoder is trained.
    """

    encoder: EncoderConfig
    selector: SelectorConfig
    merger: MergerConfig
    quantizer: QuantizerConfig
    decoder: DecoderConfig
    pixel_head: PixelHeadConfig
    text_tower: TextTowerConfig
    llm: LlamaConfig
    pixels: PixelConfig | None = None

    @property
    def patches(self) -> int:
        return self.encoder.patches

    def rolled(self) -> LavitConfig:
        """The same parameters with every scan rolled: quicker to compile, for initialisation."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return LavitConfig(
            **{
                name: dataclasses.replace(part, unroll=1) if hasattr(part, "unroll") else part
                for name, part in parts.items()
            }
        )

    def computing_in(self, dtype: str) -> LavitConfig:
        """The same parameters with another compute dtype."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return LavitConfig(
            **{
                name: dataclasses.replace(part, dtype=dtype) if hasattr(part, "dtype") else part
                for name, part in parts.items()
            }
        )

    @property
    def max_kept(self) -> int:
        """L_max: the static length of gathered kept patches."""
        return self.selector.max_kept or self.patches


def _make(cls: type[T], section: str, fields: Mapping[str, Any], **derived: Any) -> T:
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"model.{section}: unknown field {unknown[0]!r}; known: {sorted(known)}")
    twice = sorted(set(fields) & set(derived))
    if twice:
        raise ValueError(f"model.{section}.{twice[0]} is derived from other fields; leave it out")
    try:
        return cls(**fields, **derived)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"model.{section}: {error}") from error


def lavit_config(model: Mapping[str, Any], text_vocab: int) -> LavitConfig:
    """Builds the typed sizes from `config.model` and the text vocabulary T.

    Raises:
      ValueError: an unknown field, or sizes that do not fit together.
    """
    encoder = _make(
        EncoderConfig,
        "encoder",
        model["encoder"],
        image_size=model["image_size"],
        patch_size=model["patch_size"],
    )
    selector = _make(SelectorConfig, "selector", model["selector"], width=encoder.width)
    _check(
        0 <= selector.max_kept <= encoder.patches,
        f"model.selector.max_kept must lie in 0..{encoder.patches}, got {selector.max_kept}",
    )
    merger = _make(MergerConfig, "merger", model["merger"], width=encoder.width)
    quantizer = _make(QuantizerConfig, "quantizer", model["quantizer"], width=encoder.width)
    decoder = _make(
        DecoderConfig,
        "decoder",
        model["decoder"],
        width=encoder.width,
        patches=encoder.patches,
        code_dim=quantizer.code_dim,
    )
    pixel_head = _make(
        PixelHeadConfig,
        "pixel_head",
        model["pixel_head"],
        features=encoder.width,
        patches=encoder.patches,
        patch_size=encoder.patch_size,
    )
    text_tower = _make(
        TextTowerConfig,
        "text_tower",
        model["text_tower"],
        vocab=text_vocab,
        embed_dim=encoder.embed_dim,
    )
    llm = _make(LlamaConfig, "llm", model["llm"], text_vocab=text_vocab, codes=quantizer.codes)
    pixels = _pixel_config(model["pixels"]) if "pixels" in model else None
    return LavitConfig(
        encoder, selector, merger, quantizer, decoder, pixel_head, text_tower, llm, pixels
    )


def _pixel_config(fields: Mapping[str, Any]) -> PixelConfig:
    """Sizes of the pixel decoder that is trained; lists, as JSON has them, become tuples."""

    def part(cls: type[T], section: str) -> T:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in fields[section].items()}
        return _make(cls, f"pixels.{section}", given)

    parts: dict[str, Any] = {
        "unet": part(UNetConfig, "unet"),
        "noise": part(NoiseConfig, "noise"),
    }
    if "autoencoder" in fields:
        parts["autoencoder"] = part(AutoencoderConfig, "autoencoder")
    sides = {key: value for key, value in fields.items() if key not in parts}
    return _make(PixelConfig, "pixels", sides, **parts)
