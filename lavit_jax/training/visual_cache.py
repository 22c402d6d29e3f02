"""Visual ids of every picture the unified phase shows, computed once by the frozen tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from lavit_jax.data import pipeline, prepared
from lavit_jax.data.stored_ids import Stamp
from lavit_jax.data.visual_ids import VisualIdCache, VisualIds
from lavit_jax.models import lavit
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel import feed, peers, rules
from lavit_jax.parallel.mesh import batch_parts
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.state import TrainState

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

BATCH = 64
TOKENIZER = ("encoder", "selector", "merger", "quantizer")


class Model(Protocol):
    """Weights of a tokenizer, whatever else comes with them."""

    @property
    def params(self) -> Mapping[str, Any]: ...

    @property
    def codebook(self) -> Codebook: ...


def stamp(model: Model, mesh: Mesh) -> str:
    """A hash of the weights that decide ids; a cache made by others is not used."""
    digest = hashlib.sha256()
    tree = ({name: model.params[name] for name in TOKENIZER}, model.codebook.codes_KC)
    for leaf in jax.tree.leaves(feed.to_host(tree, mesh)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def full_stamp(config: LavitConfig, model: Model, mesh: Mesh) -> Stamp:
    """What the visual ids of a model's tokenizer are stored with."""
    size = config.encoder.image_size
    seen = f"whole image, {size} x {size}, Pillow bicubic, JPEG no larger than needed"
    chosen = f"greedy, at most {config.max_kept}, {config.merger.attention} merger"
    return Stamp(stamp(model, mesh), seen, chosen)


def load_or_build(run: Run, current: TrainState, interruption: Interruption) -> VisualIds:
    """Reads stored ids, or tokenizes all variants of all training pictures.

    Stored are those of `config.data.visual_ids`, or `WORKDIR/visual_ids.npz`. If no source of
    `config.data.sources` is the data set itself, there are none to make.
    """
    data = run.config.data
    if data.sources and all(source.get("path", "") for source in data.sources.values()):
        return VisualIdCache(np.zeros((0, 0), np.uint16), np.zeros((0, 0), np.uint8))
    if data.visual_ids:
        examples = prepared.read_index(data.dataset)["examples"]
        full = full_stamp(run.modules.config, current, run.mesh)
        return pipeline.load_ids(run.config, data.visual_ids, full, examples)
    path, wanted = run.workdir / "visual_ids.npz", stamp(current, run.mesh)
    stored = VisualIdCache.load(path) if path.exists() else None
    # All make them together or none does: the others may be done before this one has looked.
    # Those of before there were keys may be beside another example's text: they are made anew.
    if peers.all_of(stored is not None and stored.stamp == wanted and len(stored.keys) > 0):
        assert stored is not None
        return stored
    cache = build(run, current, wanted, interruption)
    cache.save(path)
    return cache


def build(run: Run, current: TrainState, wanted: str, interruption: Interruption) -> VisualIdCache:
    """Tokenizes pictures in batches of one shape, of which each device has its share."""
    m, split = run.modules, rules.batch_sharding(run.mesh)
    tokenize = jax.jit(
        lambda params, book, images: lavit.tokenize(
            m, params, book, jax.lax.with_sharding_constraint(images, split)
        ),
        out_shardings=rules.replicated(run.mesh),
    )
    pictures = pipeline.variants(run.config, run.data_dir, "train")
    parts = batch_parts(run.mesh)
    height = -(-BATCH // parts) * parts
    codes, keeps, keys = [], [], list[str]()
    for start in range(0, len(pictures), height):
        interruption.stop_if_requested()
        places = range(start, min(start + height, len(pictures)))
        read = [pictures.keyed(place) for place in places]
        keys += [key for key, _ in read]
        pixels: list[Any] = [image for _, image in read]
        images = np.stack(pixels)
        padded = np.zeros((height, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        tokens = jax.device_get(tokenize(current.params, current.codebook, padded))
        codes.append(tokens.ids_BL[: len(images)])
        keeps.append(tokens.keep_BN[: len(images)] > 0.5)
    kept = np.concatenate(keeps).astype(np.uint8)
    return VisualIdCache(np.concatenate(codes), kept, wanted, tuple(keys))
