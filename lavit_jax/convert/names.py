"""Published names beside our parameter paths: one table per module.

Legend: D width, H heads, d head width, E llm width, C code dimension, K codes.
"""

from __future__ import annotations

from collections.abc import Iterator

from lavit_jax.convert import forms
from lavit_jax.convert.forms import Entry, Table, stacked, under
from lavit_jax.models.config import (
    DecoderConfig,
    EncoderConfig,
    LavitConfig,
    LlamaConfig,
    MergerConfig,
    QuantizerConfig,
    SelectorConfig,
    TransformerConfig,
)

CODEBOOK_PATH = "codebook/codes"
# A plain EVA-CLIP is an image tower under this prefix, and a text tower that LaVIT has no use for.
CLIP_PREFIX = "visual."
# Derived from the config; old Llama files carry it.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


def linear(name: str, path: str, inputs: int, outputs: int) -> Iterator[Entry]:
    """A linear layer with bias."""
    yield Entry(f"{name}.weight", (f"{path}/kernel",), forms.linear(inputs, outputs))
    yield Entry(f"{name}.bias", (f"{path}/bias",), forms.same(outputs))


def norm(name: str, path: str, width: int) -> Iterator[Entry]:
    """A norm with scale and bias."""
    yield Entry(f"{name}.weight", (f"{path}/norm/scale",), forms.same(width))
    yield Entry(f"{name}.bias", (f"{path}/norm/bias",), forms.same(width))


def _mlp(c: TransformerConfig) -> Iterator[Entry]:
    yield from linear("mlp.fc1", "mlp/fc1", c.width, c.hidden)
    yield from linear("mlp.fc2", "mlp/fc2", c.hidden, c.width)


def _merge(name: str, path: str, c: TransformerConfig) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (f"{path}/kernel",), forms.merge(c.width, c.heads, c.head_dim))
    yield Entry(f"{name}.bias", (f"{path}/bias",), forms.same(c.width))


def _head(name: str, path: str, width: int, heads: int) -> Iterator[Entry]:
    per_head = width // heads
    yield Entry(f"{name}.weight", (f"{path}/kernel",), forms.heads(width, heads, per_head))
    yield Entry(f"{name}.bias", (f"{path}/bias",), forms.head_bias(heads, per_head))


def _fused_self_attention(name: str, c: TransformerConfig) -> Iterator[Entry]:
    ours = ("self_query", "self_key", "self_value")
    kernels = tuple(f"{path}/kernel" for path in ours)
    biases = tuple(f"{path}/bias" for path in ours)
    yield Entry(f"{name}.qkv.weight", kernels, forms.heads(c.width, c.heads, c.head_dim, parts=3))
    yield Entry(f"{name}.qkv.bias", biases, forms.head_bias(c.heads, c.head_dim, parts=3))
    yield from _merge(f"{name}.proj", "self_proj", c)


def _cross_attention(name: str, c: TransformerConfig) -> Iterator[Entry]:
    for part in ("query", "key", "value"):
        yield from _head(f"{name}.{part}", f"cross_{part}", c.width, c.heads)
    yield from _merge(f"{name}.proj", "cross_proj", c)


def _reading_block(
    self_attention: str, cross_attention: str, c: TransformerConfig
) -> Iterator[Entry]:
    """The block of the merger and of the decoder; only the names of its attentions differ."""
    for name in ("norm0", "norm1", "norm2"):
        yield from norm(name, name, c.width)
    yield from _fused_self_attention(self_attention, c)
    yield from _cross_attention(cross_attention, c)
    yield from _mlp(c)


def _encoder_block(c: EncoderConfig) -> Iterator[Entry]:
    yield from norm("norm1", "norm1", c.width)
    yield from norm("norm2", "norm2", c.width)
    kernels = ("query/kernel", "key/kernel", "value/kernel")
    yield Entry("attn.qkv.weight", kernels, forms.heads(c.width, c.heads, c.head_dim, parts=3))
    yield Entry("attn.q_bias", ("query/bias",), forms.head_bias(c.heads, c.head_dim))
    yield Entry("attn.v_bias", ("value/bias",), forms.head_bias(c.heads, c.head_dim))
    yield from _merge("attn.proj", "proj", c)
    yield from _mlp(c)


def encoder(c: EncoderConfig) -> Table:
    """`eva_vitg_psz14.bin`; some releases leave out the norm or the head."""
    tokens = c.patches + 1
    return (
        Entry(
            "patch_embed.proj.weight", ("patch_embed/kernel",), forms.patches(c.width, c.patch_size)
        ),
        Entry("patch_embed.proj.bias", ("patch_embed/bias",), forms.same(c.width)),
        Entry("cls_token", ("cls_token",), forms.reshaped((1, 1, c.width), (c.width,))),
        Entry("pos_embed", ("pos_embed",), forms.reshaped((1, tokens, c.width), (tokens, c.width))),
        *stacked(_encoder_block(c), c.depth, "blocks.{i}.", "blocks/"),
        *under(norm("norm", "norm", c.width), group="norm"),
        *under(linear("head", "head_proj", c.width, c.embed_dim), group="head"),
    )


def selector(c: SelectorConfig) -> Table:
    """`token_predictor.` of `tokenizer_encoder.bin`."""
    half, quarter = c.width // 2, c.width // 4
    return (
        *norm("in_conv.0", "norm", c.width),
        *linear("in_conv.1", "in_proj", c.width, c.width),
        *linear("out_conv.0", "out1", c.width, half),
        *linear("out_conv.2", "out2", half, quarter),
        *linear("out_conv.4", "out3", quarter, 2),
    )


def merger(c: MergerConfig) -> Table:
    """`causal_encoder.` of `tokenizer_encoder.bin` and of `visual_weight.bin`."""
    block = _reading_block("token_causal_attn", "token_cross_attn", c)
    return (
        *norm("ln_vision", "ln_vision", c.width),
        *stacked(block, c.depth, "blocks.{i}.", "blocks/"),
        *norm("norm", "norm", c.width),
    )


def quantizer(c: QuantizerConfig) -> Table:
    """`encode_task_layer.` of `tokenizer_encoder.bin`."""
    return (
        *linear("0", "in_proj", c.width, c.width),
        *linear("2", "out_proj", c.width, c.code_dim),
    )


def tokenizer_encoder(c: LavitConfig) -> Table:
    """`tokenizer_encoder.bin`: selector, merger, quantizer and codebook."""
    codes = forms.same(c.quantizer.codes, c.quantizer.code_dim)
    return (
        *under(selector(c.selector), "token_predictor.", "selector/"),
        *under(merger(c.merger), "causal_encoder.", "merger/"),
        *under(quantizer(c.quantizer), "encode_task_layer.", "quantizer/"),
        Entry("quantize.embedding.weight", (CODEBOOK_PATH,), codes),
    )


def decoder(c: DecoderConfig) -> Table:
    """The feature decoder of `tokenizer_decoder.bin` and of `highres_tokenizer_decoder.bin`."""
    published, ours = (1, c.patches, c.width), (c.patches, c.width)
    return (
        Entry("pos_embed", ("pos_embed",), forms.reshaped(published, ours)),
        Entry("query_embed", ("query_embed",), forms.reshaped(published, ours)),
        *linear("in_proj", "in_proj", c.code_dim, c.width),
        *stacked(_reading_block("self_attn", "cross_attn", c), c.depth, "blocks.{i}.", "blocks/"),
        *norm("norm", "norm", c.width),
        *linear("decode_task_layer.0", "out1", c.width, c.width),
        *linear("decode_task_layer.2", "out2", c.width, c.width),
    )


def lowres_decoder(c: DecoderConfig, features: int) -> Table:
    """`tokenizer_decoder.bin`: decoder and the condition head of the SD 1.5-style U-Net."""
    return (
        *under(decoder(c), path="decoder/"),
        *linear("unet_proj", "lowres_head/proj", c.width, features),
    )


def highres_decoder(c: DecoderConfig, first: int, second: int, pool_heads: int) -> Table:
    """`highres_tokenizer_decoder.bin`: decoder and the head of the SDXL-style U-Net."""
    per_head = c.width // pool_heads
    pool = (
        Entry("positional_embedding", ("pos_embed",), forms.same(c.patches + 1, c.width)),
        *(
            entry
            for part in ("query", "key", "value")
            for entry in _head(f"{part[0]}_proj", part, c.width, pool_heads)
        ),
        Entry("c_proj.weight", ("proj/kernel",), forms.merge(second, pool_heads, per_head)),
        Entry("c_proj.bias", ("proj/bias",), forms.same(second)),
    )
    return (
        *under(decoder(c), path="highres_decoder/"),
        *linear("unet_proj_1", "highres_head/proj1", c.width, first),
        *linear("unet_proj_2", "highres_head/proj2", c.width, second),
        *under(pool, "unet_attnpool.", "highres_head/pool/"),
    )


def conditioner(c: MergerConfig, llm_width: int) -> Table:
    """`visual_weight.bin`: the language model's own merger and vit_proj."""
    return (
        *under(merger(c), "causal_encoder.", "conditioner/merger/"),
        *linear("vit_proj", "conditioner/vit_proj", c.width, llm_width),
    )


def _llama_block(c: LlamaConfig) -> Iterator[Entry]:
    def kernel(name: str, path: str, form: forms.Form) -> Entry:
        return Entry(f"{name}.weight", (f"{path}/kernel",), form)

    yield Entry("input_layernorm.weight", ("attention_norm/scale",), forms.same(c.width))
    yield Entry("post_attention_layernorm.weight", ("mlp_norm/scale",), forms.same(c.width))
    grouped = forms.heads(c.width, c.kv_heads, c.head_dim)
    yield kernel("self_attn.q_proj", "query", forms.heads(c.width, c.heads, c.head_dim))
    yield kernel("self_attn.k_proj", "key", grouped)
    yield kernel("self_attn.v_proj", "value", grouped)
    yield kernel("self_attn.o_proj", "proj", forms.merge(c.width, c.heads, c.head_dim))
    yield kernel("mlp.gate_proj", "gate", forms.linear(c.width, c.hidden))
    yield kernel("mlp.up_proj", "up", forms.linear(c.width, c.hidden))
    yield kernel("mlp.down_proj", "down", forms.linear(c.hidden, c.width))


def llama(c: LlamaConfig, tied: bool = False, text_only: bool = False) -> Table:
    """The language model's weights.

    Args:
      c: sizes.
      tied: the head is the embedding and not stored again.
      text_only: a plain Llama: [IMG], [/IMG] and the codes have no rows yet, they are created.
    """

    def rows(form: forms.Transform, seed: int) -> forms.Transform:
        return forms.Grown(c.text_vocab, form, seed) if text_only else form

    embedding, head = "model.embed_tokens.weight", ("lm_head/kernel",)
    same, linear = forms.same(c.vocab, c.width), forms.linear(c.width, c.vocab)
    outer = (
        (Entry(embedding, ("embedding", *head), rows(forms.Tied((c.vocab, c.width)), seed=0)),)
        if tied
        else (
            Entry(embedding, ("embedding",), rows(same, seed=0)),
            Entry("lm_head.weight", head, rows(linear, seed=1)),
        )
    )
    return under(
        (
            *outer,
            *stacked(_llama_block(c), c.depth, "model.layers.{i}.", "blocks/"),
            Entry("model.norm.weight", ("norm/scale",), forms.same(c.width)),
        ),
        path="llm/",
    )
