"""Random checkpoints of any shape in the published folder layout.

Names and shapes are written out here a second time on purpose: a mistake in the tables of
`lavit_jax/convert/names.py` must not repeat itself in their tests.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

State = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Sizes of a checkpoint; every one differs from lavit-mini's, and from each other."""

    width: int = 24
    heads: int = 3
    hidden: int = 37
    encoder_depth: int = 3
    merger_depth: int = 1
    decoder_depth: int = 2
    highres_depth: int = 1
    grid: int = 3
    patch: int = 6
    embed_dim: int = 10
    codes: int = 20
    code_dim: int = 5
    lowres: int = 7
    highres: tuple[int, int] = (9, 11)
    llm_width: int = 32
    llm_depth: int = 3
    llm_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 6
    llm_hidden: int = 40
    text_vocab: int = 53
    theta: float = 500.0
    eps: float = 1e-6

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def vocab(self) -> int:
        return self.text_vocab + 2 + self.codes


GROUPED = Shapes()
PUBLISHED_RATIO = Shapes(
    width=88, heads=1, hidden=int(88 * 4.3637), encoder_depth=1, grid=2, patch=4, head_dim=8,
    kv_heads=1, theta=10000.0, merger_depth=2, codes=33, text_vocab=40,
)  # fmt: skip


class _Maker:
    """Draws tensors and names them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.state: State = {}

    def put(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.state[name] = (scale * self.rng.normal(size=shape)).astype(np.float32)

    def matrix(self, name: str, outputs: int, inputs: int) -> None:
        self.put(f"{name}.weight", outputs, inputs, scale=inputs**-0.5)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.matrix(name, outputs, inputs)
        self.put(f"{name}.bias", outputs, scale=0.1)

    def norm(self, name: str, width: int) -> None:
        self.put(f"{name}.weight", width, scale=0.1)
        self.state[f"{name}.weight"] += 1
        self.put(f"{name}.bias", width, scale=0.1)

    def mlp(self, name: str, width: int, hidden: int) -> None:
        self.linear(f"{name}.fc1", hidden, width)
        self.linear(f"{name}.fc2", width, hidden)

    def reading_block(self, name: str, own: str, cross: str, s: Shapes) -> None:
        for index in range(3):
            self.norm(f"{name}.norm{index}", s.width)
        self.linear(f"{name}.{own}.qkv", 3 * s.width, s.width)
        self.linear(f"{name}.{own}.proj", s.width, s.width)
        for part in ("query", "key", "value", "proj"):
            self.linear(f"{name}.{cross}.{part}", s.width, s.width)
        self.mlp(f"{name}.mlp", s.width, s.hidden)


def encoder(s: Shapes, rng: np.random.Generator) -> State:
    m, d = _Maker(rng), s.width
    m.put("cls_token", 1, 1, d)
    m.put("pos_embed", 1, s.patches + 1, d, scale=0.3)
    m.put("patch_embed.proj.weight", d, 3, s.patch, s.patch, scale=0.1)
    m.put("patch_embed.proj.bias", d, scale=0.1)
    for i in range(s.encoder_depth):
        block = f"blocks.{i}"
        m.norm(f"{block}.norm1", d)
        m.norm(f"{block}.norm2", d)
        m.matrix(f"{block}.attn.qkv", 3 * d, d)
        m.put(f"{block}.attn.q_bias", d, scale=0.1)
        m.put(f"{block}.attn.v_bias", d, scale=0.1)
        m.linear(f"{block}.attn.proj", d, d)
        m.mlp(f"{block}.mlp", d, s.hidden)
    m.norm("norm", d)
    m.linear("head", s.embed_dim, d)
    return m.state


def _merger(m: _Maker, s: Shapes) -> None:
    m.norm("causal_encoder.ln_vision", s.width)
    m.norm("causal_encoder.norm", s.width)
    for i in range(s.merger_depth):
        name = f"causal_encoder.blocks.{i}"
        m.reading_block(name, "token_causal_attn", "token_cross_attn", s)


def tokenizer_encoder(s: Shapes, rng: np.random.Generator) -> State:
    m, d = _Maker(rng), s.width
    m.norm("token_predictor.in_conv.0", d)
    m.linear("token_predictor.in_conv.1", d, d)
    m.linear("token_predictor.out_conv.0", d // 2, d)
    m.linear("token_predictor.out_conv.2", d // 4, d // 2)
    m.linear("token_predictor.out_conv.4", 2, d // 4)
    _merger(m, s)
    m.linear("encode_task_layer.0", d, d)
    m.linear("encode_task_layer.2", s.code_dim, d)
    m.put("quantize.embedding.weight", s.codes, s.code_dim)
    codes = m.state["quantize.embedding.weight"]
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    return m.state


def conditioner(s: Shapes, rng: np.random.Generator) -> State:
    m = _Maker(rng)
    _merger(m, s)
    m.linear("vit_proj", s.llm_width, s.width)
    return m.state


def _decoder(m: _Maker, s: Shapes, depth: int) -> None:
    d = s.width
    m.put("pos_embed", 1, s.patches, d, scale=0.3)
    m.put("query_embed", 1, s.patches, d)
    m.linear("in_proj", d, s.code_dim)
    for i in range(depth):
        m.reading_block(f"blocks.{i}", "self_attn", "cross_attn", s)
    m.norm("norm", d)
    m.linear("decode_task_layer.0", d, d)
    m.linear("decode_task_layer.2", d, d)


def lowres_decoder(s: Shapes, rng: np.random.Generator) -> State:
    m = _Maker(rng)
    _decoder(m, s, s.decoder_depth)
    m.linear("unet_proj", s.lowres, s.width)
    return m.state


def highres_decoder(s: Shapes, rng: np.random.Generator) -> State:
    m = _Maker(rng)
    _decoder(m, s, s.highres_depth)
    m.linear("unet_proj_1", s.highres[0], s.width)
    m.linear("unet_proj_2", s.highres[1], s.width)
    m.put("unet_attnpool.positional_embedding", s.patches + 1, s.width, scale=0.3)
    for part in "qkv":
        m.linear(f"unet_attnpool.{part}_proj", s.width, s.width)
    m.linear("unet_attnpool.c_proj", s.highres[1], s.width)
    return m.state


def llama(s: Shapes, rng: np.random.Generator) -> State:
    m, e = _Maker(rng), s.llm_width
    m.put("model.embed_tokens.weight", s.vocab, e)
    for i in range(s.llm_depth):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            m.put(f"{layer}.{norm}.weight", e, scale=0.1)
            m.state[f"{layer}.{norm}.weight"] += 1
        m.matrix(f"{layer}.self_attn.q_proj", s.llm_heads * s.head_dim, e)
        m.matrix(f"{layer}.self_attn.k_proj", s.kv_heads * s.head_dim, e)
        m.matrix(f"{layer}.self_attn.v_proj", s.kv_heads * s.head_dim, e)
        m.matrix(f"{layer}.self_attn.o_proj", e, s.llm_heads * s.head_dim)
        m.matrix(f"{layer}.mlp.gate_proj", s.llm_hidden, e)
        m.matrix(f"{layer}.mlp.up_proj", s.llm_hidden, e)
        m.matrix(f"{layer}.mlp.down_proj", e, s.llm_hidden)
    m.put("model.norm.weight", e, scale=0.1)
    m.state["model.norm.weight"] += 1
    m.matrix("lm_head", s.vocab, e)
    return m.state


def weights(s: Shapes, seed: int = 0) -> dict[str, State]:
    """State dicts of a checkpoint by component."""
    rng = np.random.default_rng(seed)
    return {
        "encoder": encoder(s, rng),
        "tokenizer_encoder": tokenizer_encoder(s, rng),
        "tokenizer_decoder": lowres_decoder(s, rng),
        "highres_tokenizer_decoder": highres_decoder(s, rng),
        "conditioner": conditioner(s, rng),
        "llm": llama(s, rng),
    }


FILES = {
    "encoder": "visual_tokenizer/eva_vitg_psz14.bin",
    "tokenizer_encoder": "visual_tokenizer/tokenizer_encoder.bin",
    "tokenizer_decoder": "visual_tokenizer/tokenizer_decoder.bin",
    "highres_tokenizer_decoder": "visual_tokenizer/highres_tokenizer_decoder.bin",
    "conditioner": "language_model/visual_weight.bin",
}


def llm_settings(s: Shapes, old: bool) -> dict:
    """`config.json`; old files have no head_dim and a flat rope_theta."""
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": s.llm_width,
        "intermediate_size": s.llm_hidden,
        "max_position_embeddings": 99,
        "num_attention_heads": s.llm_heads,
        "num_hidden_layers": s.llm_depth,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": s.eps,
        "tie_word_embeddings": False,
        "vocab_size": s.vocab,
    }
    if old:
        return settings | {"rope_theta": s.theta, "rope_scaling": None}
    rope = {"rope_type": "default", "rope_theta": s.theta}
    return settings | {"rope_parameters": rope, "head_dim": s.head_dim}


def write_torch(path: Path, state: Mapping[str, np.ndarray]) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.from_numpy(value.copy()) for name, value in state.items()}, path)


def write_llm(folder: Path, state: State, layout: str) -> None:
    """Writes the language model as "safetensors", "torch", or sharded "...-sharded"."""
    folder.mkdir(parents=True, exist_ok=True)
    torch = layout.startswith("torch")
    stem, suffix = ("pytorch_model", "bin") if torch else ("model", "safetensors")
    save = (lambda part, path: write_torch(path, part)) if torch else save_file
    if not layout.endswith("sharded"):
        save(state, folder / f"{stem}.{suffix}")
        return
    where = {}
    names = list(state)
    for shard in range(3):
        file = f"{stem}-{shard + 1:05d}-of-00003.{suffix}"
        save({name: state[name] for name in names[shard::3]}, folder / file)
        where |= dict.fromkeys(names[shard::3], file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def write(
    folder: Path,
    s: Shapes,
    states: dict[str, State],
    layout: str = "safetensors",
    old: bool = False,
) -> Path:
    """Writes a whole checkpoint and returns its folder."""
    for component, file in FILES.items():
        if component in states:
            write_torch(folder / file, states[component])
    if "llm" in states:
        write_llm(folder / "language_model", states["llm"], layout)
        settings = json.dumps(llm_settings(s, old))
        (folder / "language_model" / "config.json").write_text(settings)
    (folder / "reference_config.json").write_text(json.dumps({"heads": s.heads}))
    return folder
