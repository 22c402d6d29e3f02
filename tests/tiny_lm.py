"""A tiny language model, and plain ways to continue its prompts one row and token at a time."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.inference.decoding import Prompt
from lavit_jax.models.attention import causal_segment_mask
from lavit_jax.models.config import LlamaConfig
from lavit_jax.models.llama import Llama
from random_params import random_params

CONFIG = LlamaConfig(
    width=24, depth=2, heads=4, kv_heads=2, hidden=32, text_vocab=9, codes=5, head_dim=6
)
LLM = Llama(CONFIG)
V = CONFIG.vocab
STOP = 2
LONGEST = 32


@functools.cache
def params():
    ids = jnp.zeros((1, 2), jnp.int32)
    return random_params(LLM.init, ids, ids, jnp.ones((1, 2, 2), bool), gain=1.6)["params"]


@jax.jit
def _logits(params, ids, segments):
    positions = jnp.arange(ids.shape[1])[None]
    return LLM.apply({"params": params}, ids, positions, causal_segment_mask(segments))


def log_probs(ids: Sequence[int]) -> np.ndarray:
    """Of the token after these, from the whole sequence without a cache, float64 [V]."""
    padded = np.zeros((1, LONGEST), np.int32)
    padded[0, : len(ids)] = ids
    segments = (np.arange(LONGEST) < len(ids)).astype(np.int32)[None]
    logits = np.asarray(_logits(params(), padded, segments)[0, len(ids) - 1], np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def prompt(rows: Sequence[Sequence[int]], places: int | None = None) -> Prompt:
    """Left-padded prompts of ids; an empty one is all padding."""
    places = places or max(map(len, rows))
    ids = np.zeros((len(rows), places), np.int32)
    mask = np.zeros((len(rows), places), bool)
    for number, row in enumerate(rows):
        if row:
            ids[number, places - len(row) :] = row
            mask[number, places - len(row) :] = True
    embeds = LLM.apply({"params": params()}, jnp.asarray(ids), method="embed")
    return Prompt(embeds, jnp.asarray(mask))


def banned(*ids: int) -> jax.Array:
    return jnp.zeros(V, bool).at[jnp.array(ids, int)].set(True)
