"""What the published modules compute, written plainly in numpy with float64.

A second opinion on our modules for shapes no golden covers; `tests/convert/test_parity.py` first
holds it against the goldens.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf

from published_weights import Shapes, State

EPS = 1e-6


class Weights:
    """A state dict in float64, read under a prefix."""

    def __init__(self, state: State, prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self.state[self.prefix + name].astype(np.float64)

    def under(self, prefix: str) -> Weights:
        return Weights(self.state, self.prefix + prefix)

    def depth(self, blocks: str) -> int:
        start = self.prefix + blocks
        names = [name for name in self.state if name.startswith(start)]
        return 1 + max(int(name[len(start) :].split(".")[0]) for name in names)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        bias = f"{name}.bias"
        shift = self[bias] if self.prefix + bias in self.state else 0
        return x @ self[f"{name}.weight"].T + shift

    def norm(self, name: str, x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
        return centred / scale * self[f"{name}.weight"] + self[f"{name}.bias"]

    def mlp(self, x: np.ndarray) -> np.ndarray:
        return self.linear("mlp.fc2", gelu(self.linear("mlp.fc1", x)))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def split(x: np.ndarray, heads: int) -> np.ndarray:
    """[B, S, H * d] to [B, H, S, d]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def join(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, added: np.ndarray | float = 0.0):
    logits = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    return join(softmax(logits + added) @ v)


def attend_by_policy(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray):
    logits = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True)) * mask[:, None]
    count = logits.shape[-1]
    weights = (weights + EPS / count) / (weights.sum(axis=-1, keepdims=True) + EPS)
    return join(weights @ v)


def encoder(state: State, image: np.ndarray, heads: int) -> np.ndarray:
    """NCHW to the residual stream with [CLS]."""
    w = Weights(state)
    kernel = w["patch_embed.proj.weight"]
    patch, width = kernel.shape[-1], kernel.shape[0]
    batch, _, height, _ = image.shape
    grid = height // patch
    tiles = image.astype(np.float64).reshape(batch, 3, grid, patch, grid, patch)
    tiles = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(batch, grid**2, -1)
    x = tiles @ kernel.reshape(width, -1).T + w["patch_embed.proj.bias"]
    cls = np.broadcast_to(w["cls_token"], (batch, 1, width))
    x = np.concatenate([cls, x], axis=1) + w["pos_embed"]
    for i in range(w.depth("blocks.")):
        b = w.under(f"blocks.{i}.")
        bias = np.concatenate([b["attn.q_bias"], np.zeros(width), b["attn.v_bias"]])
        qkv = b.norm("norm1", x, 1e-6) @ b["attn.qkv.weight"].T + bias
        q, k, v = (split(part, heads) for part in np.split(qkv, 3, axis=-1))
        x = x + b.linear("attn.proj", attend(q, k, v))
        x = x + b.mlp(b.norm("norm2", x, 1e-6))
    return x


def encoder_head(state: State, x: np.ndarray) -> np.ndarray:
    w = Weights(state)
    return w.linear("head", w.norm("norm", x[:, 0], 1e-6))


def selector(state: State, x: np.ndarray) -> np.ndarray:
    w = Weights(state, "token_predictor.")
    h = gelu(w.linear("in_conv.1", w.norm("in_conv.0", x)))
    half = x.shape[-1] // 2
    mean = np.broadcast_to(h[..., half:].mean(axis=1, keepdims=True), h[..., half:].shape)
    h = np.concatenate([h[..., :half], mean], axis=-1)
    h = gelu(w.linear("out_conv.2", gelu(w.linear("out_conv.0", h))))
    return np.log(softmax(w.linear("out_conv.4", h)))


def greedy(log_probs: np.ndarray) -> np.ndarray:
    keep = log_probs[..., 0] > log_probs[..., 1]
    for row, scores in zip(keep, log_probs[..., 0]):
        if not row.any():
            row[scores.argmax()] = True
    return keep.astype(np.float32)


def merger(state: State, x: np.ndarray, keep: np.ndarray, heads: int) -> np.ndarray:
    w = Weights(state, "causal_encoder.")
    origin, count = w.norm("ln_vision", x), x.shape[1]
    eye = np.eye(count)
    own = (keep[:, None, :] * (1 - eye) + eye) * np.tril(np.ones((count, count)))
    dropped = np.broadcast_to(1 - keep[:, None, :], own.shape)
    for i in range(w.depth("blocks.")):
        b = w.under(f"blocks.{i}.")
        qkv = b.linear("token_causal_attn.qkv", b.norm("norm0", x))
        q, k, v = (split(part, heads) for part in np.split(qkv, 3, axis=-1))
        x = x + b.linear("token_causal_attn.proj", attend_by_policy(q, k, v, own))
        h = b.norm("norm1", x)
        sources = {"query": h, "key": origin, "value": origin}
        q, k, v = (
            split(b.linear(f"token_cross_attn.{name}", source), heads)
            for name, source in sources.items()
        )
        x = x + b.linear("token_cross_attn.proj", attend_by_policy(q, k, v, dropped))
        x = x + b.mlp(b.norm("norm2", x))
    return w.norm("norm", x)


def code_features(state: State, merged: np.ndarray) -> np.ndarray:
    w = Weights(state, "encode_task_layer.")
    return w.linear("2", np.tanh(w.linear("0", merged)))


def nearest(state: State, z: np.ndarray) -> np.ndarray:
    codes = state["quantize.embedding.weight"].astype(np.float64)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    return np.square(z[..., None, :] - codes).sum(axis=-1).argmin(axis=-1)


def decoder(state: State, codes: list[np.ndarray], heads: int) -> np.ndarray:
    """Kept vectors of every image to x_rec."""
    w = Weights(state)
    longest = max(map(len, codes))
    padded = np.stack([np.pad(c, ((0, longest - len(c)), (0, 0))) for c in codes])
    real = np.stack([np.arange(longest) < len(c) for c in codes])
    kv = w.linear("in_proj", padded.astype(np.float64)) + w["pos_embed"][:, :longest]
    added = np.where(real, 0.0, -10000.0)[:, None, None, :]
    x = np.repeat(w["query_embed"], len(codes), axis=0)
    for i in range(w.depth("blocks.")):
        b = w.under(f"blocks.{i}.")
        qkv = b.linear("self_attn.qkv", b.norm("norm0", x))
        q, k, v = (split(part, heads) for part in np.split(qkv, 3, axis=-1))
        x = x + b.linear("self_attn.proj", attend(q, k, v))
        sources = {"query": b.norm("norm1", x), "key": kv, "value": kv}
        q, k, v = (
            split(b.linear(f"cross_attn.{name}", source), heads) for name, source in sources.items()
        )
        x = x + b.linear("cross_attn.proj", attend(q, k, v, added))
        x = x + b.mlp(b.norm("norm2", x))
    return w.linear(
        "decode_task_layer.2", np.tanh(w.linear("decode_task_layer.0", w.norm("norm", x)))
    )


def lowres_head(state: State, x: np.ndarray) -> np.ndarray:
    return Weights(state).linear("unet_proj", x)


def highres_head(state: State, x: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    w = Weights(state)
    embeds = np.concatenate([w.linear("unet_proj_1", x), w.linear("unet_proj_2", x)], axis=-1)
    p = w.under("unet_attnpool.")
    tokens = np.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    tokens = tokens + p["positional_embedding"]
    sources = {"q": tokens[:, :1], "k": tokens, "v": tokens}
    q, k, v = (split(p.linear(f"{n}_proj", source), heads) for n, source in sources.items())
    return embeds, p.linear("c_proj", attend(q, k, v))[:, 0]


def llama(state: State, embeds: np.ndarray, mask: np.ndarray, s: Shapes) -> np.ndarray:
    """Logits of embeddings [B, S, E] under a 0/1 mask of real tokens."""
    w = Weights(state)
    length, half = embeds.shape[1], s.head_dim // 2
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    angle = positions[:, None, :, None] * s.theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    readable = np.tril(np.ones((length, length), bool)) & (mask[:, None, None, :] > 0)
    added = np.where(readable, 0.0, -1e30)

    def rms(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + s.eps) * w[f"{name}.weight"]

    def turn(x: np.ndarray) -> np.ndarray:
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x, repeats = embeds.astype(np.float64), s.llm_heads // s.kv_heads
    for i in range(s.llm_depth):
        layer = f"model.layers.{i}"
        h = rms(f"{layer}.input_layernorm", x)
        q = turn(split(w.linear(f"{layer}.self_attn.q_proj", h), s.llm_heads))
        k = turn(split(w.linear(f"{layer}.self_attn.k_proj", h), s.kv_heads))
        v = split(w.linear(f"{layer}.self_attn.v_proj", h), s.kv_heads)
        out = attend(q, k.repeat(repeats, axis=1), v.repeat(repeats, axis=1), added)
        x = x + w.linear(f"{layer}.self_attn.o_proj", out)
        h = rms(f"{layer}.post_attention_layernorm", x)
        gate = w.linear(f"{layer}.mlp.gate_proj", h)
        h = gate / (1 + np.exp(-gate)) * w.linear(f"{layer}.mlp.up_proj", h)
        x = x + w.linear(f"{layer}.mlp.down_proj", h)
    return w.linear("lm_head", rms("model.norm", x))


def reference_arrays(states: dict[str, State], s: Shapes, seed: int = 0) -> dict[str, np.ndarray]:
    """`reference_io.npz` of a checkpoint: random inputs, and the outputs of all modules."""
    rng = np.random.default_rng(seed)
    batch, side = 2, s.grid * s.patch
    image = rng.normal(size=(batch, 3, side, side)).astype(np.float32)
    keep = rng.random((batch, s.patches)) < 0.5
    keep[:, 0] = True
    mask = np.ones((batch, 9), np.int64)
    mask[1, :4] = 0
    inputs = {
        "image_nchw": image,
        "tok_image_nchw": image,
        "keep": keep.astype(np.float32),
        "lm_ids": rng.integers(0, s.vocab, (batch, 9)),
        "lm_mask": mask,
        "question_ids": np.array([[5, 6, 7, 8], [9, 10, -1, -1]]),
        "t2i_prompt_ids": np.array([[11, 4, 17, s.text_vocab]]),
    }
    return compute(states, s, inputs)


def compute(
    states: dict[str, State], s: Shapes, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Inputs and outputs, as `reference_io.npz` names them; both parts share the keep decisions."""
    out = dict(inputs)
    keep, tokenizer = inputs["keep"], states["tokenizer_encoder"]
    out |= {"tok_random_keep": keep, "tok_all_keep": np.ones_like(keep)}
    features = encoder(states["encoder"], inputs["tok_image_nchw"], s.heads)
    x = features[:, 1:]
    out["tok_encoder_features_with_cls"] = features
    out["tok_encoder_head"] = encoder_head(states["encoder"], features)
    out["tok_selector_log_probs"] = selector(tokenizer, x)
    out["tok_greedy_keep"] = greedy(out["tok_selector_log_probs"])
    vit_proj = Weights(states["conditioner"])
    for name in ("greedy", "random", "all"):
        merged = merger(tokenizer, x, out[f"tok_{name}_keep"], s.heads)
        out[f"tok_{name}_merged"] = merged
        out[f"tok_{name}_llm_features"] = vit_proj.linear("vit_proj", merged)
        out[f"tok_{name}_code_features"] = code_features(tokenizer, merged)
        codes = nearest(tokenizer, out[f"tok_{name}_code_features"])
        out[f"tok_{name}_codes"] = codes
        out[f"tok_{name}_quantized"] = tokenizer["quantize.embedding.weight"][codes]
    kept = keep > 0.5
    out["tok_tokenize_image_ids"] = _tokenize_ids(out["tok_random_codes"], kept)
    vectors = [row[k] for row, k in zip(out["tok_random_quantized"], kept)]
    out["tok_decoder_in"] = np.concatenate(vectors)
    out["tok_decoder_token_nums"] = kept.sum(axis=1)
    x_rec = decoder(states["tokenizer_decoder"], vectors, s.heads)
    out["tok_decoder_lowres_reconstruction"] = x_rec
    out["tok_decoder_lowres_cond"] = lowres_head(states["tokenizer_decoder"], x_rec)
    highres = states["highres_tokenizer_decoder"]
    x_rec = decoder(highres, vectors, s.heads)
    out["tok_decoder_highres_reconstruction"] = x_rec
    embeds, pooled = highres_head(highres, x_rec, s.heads)
    out |= {"tok_decoder_highres_prompt_embeds": embeds, "tok_decoder_highres_pooled": pooled}
    out |= _language(states, s, inputs)
    return {name: _plain(array) for name, array in out.items()}


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _tokenize_ids(codes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    out = np.full((len(codes), kept.sum(axis=1).max() + 2), -1)
    for row, ids, keep in zip(out, codes, kept):
        count = keep.sum()
        row[0], row[count + 1] = 32000, 32001
        row[1 : count + 1] = 32002 + ids[keep]
    return out


def _language(
    states: dict[str, State], s: Shapes, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    table = states["llm"]["model.embed_tokens.weight"].astype(np.float64)
    logits = llama(states["llm"], table[inputs["lm_ids"]], inputs["lm_mask"], s)
    x = encoder(states["encoder"], inputs["image_nchw"], s.heads)[:, 1:]
    keep = inputs["keep"]
    merged = merger(states["conditioner"], x, keep, s.heads)
    features = Weights(states["conditioner"]).linear("vit_proj", merged)
    rows = []
    for row, kept, question in zip(features, keep > 0.5, inputs["question_ids"]):
        start, end = table[[s.text_vocab]], table[[s.text_vocab + 1]]
        rows.append(np.concatenate([start, row[kept], end, table[question[question >= 0]]]))
    longest = max(map(len, rows))
    mask = np.stack([(np.arange(longest) >= longest - len(row)).astype(np.int64) for row in rows])
    embeds = np.stack([np.pad(row, ((longest - len(row), 0), (0, 0))) for row in rows])
    prompts = [row[real > 0] for row, real in zip(embeds, mask)]
    ids, scores = _drawing(states["llm"], s, inputs["t2i_prompt_ids"])
    return _texts(states["llm"], s, prompts) | {
        "t2i_greedy_ids": ids,
        "t2i_scores": scores,
        "lm_logits": logits,
        "llm_features": features,
        "prompt_embeds": embeds,
        "prompt_mask": mask,
        "prompt_last_logits": llama(states["llm"], embeds, mask, s)[:, -1],
    }


EOS = 2


def log_probs(state: State, s: Shapes, prompt: np.ndarray, tails: list[list[int]]) -> np.ndarray:
    """Of the token after a prompt's embeddings [S, E] and each of as long tails, [n, V]."""
    table = state["model.embed_tokens.weight"].astype(np.float64)
    embeds = np.stack([np.concatenate([prompt, table[np.array(ids, int)]]) for ids in tails])
    logits = llama(state, embeds, np.ones(embeds.shape[:2], np.int64), s)[:, -1]
    return np.log(softmax(logits))


def _texts(state: State, s: Shapes, prompts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Text without visual ids: greedy, 2 beams, and 5 that stop early and are not normalized."""
    searches = {
        "greedy_ids": lambda row: beam_ids(state, s, row, 1, 12, 2, 1.0, early=True),
        "beam2_caption_ids": lambda row: beam_ids(state, s, row, 2, 12, 4, 1.0, early=False),
        "beam5_answer_ids": lambda row: beam_ids(state, s, row, 5, 10, 2, 0.0, early=True),
    }
    return {name: _padded([search(row) for row in prompts]) for name, search in searches.items()}


def beam_ids(
    state: State,
    s: Shapes,
    prompt: np.ndarray,
    beams: int,
    most: int,
    least: int,
    penalty: float,
    *,
    early: bool,
) -> list[int]:
    """The best ids of a beam search over whole sequences; one beam is greedy decoding."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        scores = log_probs(state, s, prompt, [ids for _, ids in running])
        scores[:, s.text_vocab :] = -np.inf
        if length <= least:
            scores[:, EOS] = -np.inf
        totals = scores + np.array([[total] for total, _ in running])
        best = [divmod(int(i), s.vocab) for i in np.argsort(-totals, axis=None)[: 2 * beams]]
        candidates = [(totals[row, token], [*running[row][1], token]) for row, token in best]
        ended += [
            (total / length**penalty, ids)
            for total, ids in candidates[:beams]
            if ids[-1] == EOS or length == most
        ]
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        running = [one for one in candidates if one[1][-1] != EOS][:beams]
        full = len(ended) == beams
        if full and (early or ended[-1][0] >= running[0][0] / length**penalty):
            break
    return ended[0][1]


def _drawing(state: State, s: Shapes, ids_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ten greedy visual ids under guidance of 4, and the scores before each."""
    table = state["model.embed_tokens.weight"].astype(np.float64)
    start, end = s.text_vocab, s.text_vocab + 1
    (prompt,) = ids_BS
    ids: list[int] = []
    rows: list[np.ndarray] = []
    while len(ids) < 10 and end not in ids:
        conditional, unconditional = (
            log_probs(state, s, table[begun], [ids])[0] for begun in (prompt, np.array([start]))
        )
        scores = unconditional + 4.0 * (conditional - unconditional)
        scores[: end + (len(ids) < 4)] = -np.inf
        rows.append(scores)
        ids.append(int(scores.argmax()))
    return np.array([ids]), np.stack(rows)[None]


def _padded(rows: list[list[int]]) -> np.ndarray:
    """Rows of ids, 0 after those that ended."""
    out = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for filled, ids in zip(out, rows):
        filled[: len(ids)] = ids
    return out
