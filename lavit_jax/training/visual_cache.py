"""Visual ids of every picture the unified phase shows, computed once by the frozen tokenizer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from lavit_jax.data import pipeline
from lavit_jax.data.visual_ids import VisualIdCache
from lavit_jax.models import lavit
from lavit_jax.parallel import feed, rules
from lavit_jax.training.state import TrainState

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

BATCH = 64
TOKENIZER = ("encoder", "selector", "merger", "quantizer")


def stamp(current: TrainState, mesh: Mesh) -> str:
    """A hash of the weights that decide ids; a cache made by others is not used."""
    digest = hashlib.sha256()
    tree = ({name: current.params[name] for name in TOKENIZER}, current.codebook.codes_KC)
    for leaf in jax.tree.leaves(feed.to_host(tree, mesh)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def load_or_build(run: Run, current: TrainState) -> VisualIdCache:
    """Reads `WORKDIR/visual_ids.npz`, or tokenizes all variants of all training pictures."""
    path, wanted = run.workdir / "visual_ids.npz", stamp(current, run.mesh)
    if path.exists():
        cache = VisualIdCache.load(path)
        if cache.stamp == wanted:
            return cache
    cache = build(run, current, wanted)
    cache.save(path)
    return cache


def build(run: Run, current: TrainState, wanted: str) -> VisualIdCache:
    """Tokenizes pictures in batches of one shape."""
    m = run.modules
    tokenize = jax.jit(
        lambda params, book, images: lavit.tokenize(m, params, book, images),
        out_shardings=rules.replicated(run.mesh),
    )
    pictures = pipeline.variants(run.config, run.data_dir, "train")
    codes, keeps = [], []
    for start in range(0, len(pictures), BATCH):
        images = np.stack([pictures[i] for i in range(start, min(start + BATCH, len(pictures)))])
        padded = np.zeros((BATCH, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        tokens = jax.device_get(tokenize(current.params, current.codebook, padded))
        codes.append(tokens.ids_BL[: len(images)])
        keeps.append(tokens.keep_BN[: len(images)] > 0.5)
    return VisualIdCache(np.concatenate(codes), np.concatenate(keeps).astype(np.uint8), wanted)
