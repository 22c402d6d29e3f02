"""Grain iterators over the data set, for every phase of training.

Each is deterministic in (seed, step) whatever the number of threads or worker processes, infinite,
shuffled anew every epoch, and has `get_state()` / `set_state(state)` with a small JSON-able state.
With several training processes each gets its share of the same global batches.

Legend: B rows of this process, H = W = image side, C channels, T text length.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from lavit_jax.data import datasets, packing, prepared, several, stored_ids, views
from lavit_jax.data.ahead import Ahead
from lavit_jax.data.batches import Batches
from lavit_jax.data.datasets import load_split
from lavit_jax.data.images import AugmentConfig
from lavit_jax.data.mixture import ExampleMaker, mixed
from lavit_jax.data.stored_ids import Stamp
from lavit_jax.data.text import TextTokenizer
from lavit_jax.data.views import Variants
from lavit_jax.data.visual_ids import VisualIds
from lavit_jax.data.workers import Workers
from lavit_jax.errors import UserError

PREFETCH = 4  # batches


@dataclasses.dataclass(frozen=True)
class Readers:
    """Who reads. What is read does not depend on it, only which share of a batch comes out here.

    Attributes:
      index: of this training process.
      count: of training processes.
      threads: that prepare batches ahead; where rows are packed, that read a row's images. 0
        prepares each batch when it is asked for.
      workers: processes that do so instead; 0 is none.
    """

    index: int = 0
    count: int = 1
    threads: int = 1
    workers: int = 0

    @classmethod
    def of(cls, config: ConfigDict) -> Readers:
        """As a config asks for, in this process of JAX's."""
        import jax

        data = config.data
        return cls(jax.process_index(), jax.process_count(), data.threads, data.workers)

    @property
    def ahead(self) -> int:
        """Batches prepared ahead."""
        return PREFETCH if self.threads or self.workers else 0

    def rows(self, batch_size: int) -> int:
        """Rows of a batch for each training process.

        Raises:
          UserError: they do not divide evenly.
        """
        if batch_size < 1 or batch_size % self.count:
            raise UserError(f"batch_size={batch_size} does not divide over {self.count} processes")
        return batch_size // self.count


def variants(config: ConfigDict, data_dir: str | os.PathLike[str], split: str) -> Variants:
    """All variants of a split's pictures, in random access.

    Raises:
      UserError: as `load_split`, or `config.data.variants` under 1.
    """
    return _variants(config, load_split(config, data_dir, split))


def _variants(config: ConfigDict, records: Sequence[Any]) -> Variants:
    count = config.data.variants
    if count < 1:
        raise UserError(f"config.data.variants must be at least 1, got {count}")
    augment = AugmentConfig.of(config.data.augment)
    return Variants(records, count, config.model.image_size, augment, config.seed)


def image_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    batch_size: int,
    seed: int,
    *,
    split: str = "train",
    readers: Readers | None = None,
) -> Batches:
    """Augmented pictures, for the tokenizer phases.

    Args:
      config: the experiment.
      data_dir: where the data set is prepared.
      batch_size: rows over all processes.
      seed: of order and augmentation.
      split: which pictures.
      readers: by default `Readers.of(config)`.

    Returns:
      Iterator of {"images": uint8 [B, H, W, 3], "index": int32 [B], place in the split}.
    """
    records = load_split(config, data_dir, split)
    view = views.ImageView(records, AugmentConfig.of(config.data.augment), config.model.image_size)
    return view_batches(view, batch_size, seed, readers or Readers.of(config))


def pixel_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    batch_size: int,
    seed: int,
    pixel_size: int,
    *,
    split: str = "train",
    readers: Readers | None = None,
) -> Batches:
    """Augmented pictures as the tokenizer reads them and as the pixel decoder paints them.

    Args:
      pixel_size: side of the painted pictures.
      others: see `image_batches`.

    Returns:
      Iterator as that of `image_batches`; where the sides differ, with "pixels" uint8 [B, P, P, 3]:
      the same views at the side of the painted pictures.
    """
    size = config.model.image_size
    if pixel_size == size:
        return image_batches(config, data_dir, batch_size, seed, split=split, readers=readers)
    records = load_split(config, data_dir, split)
    augment = AugmentConfig.of(config.data.augment)
    view = views.PixelView(records, augment, size, pixel_size)
    return view_batches(view, batch_size, seed, readers or Readers.of(config))


def pair_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    text: TextTokenizer,
    batch_size: int,
    seed: int,
    text_length: int,
    *,
    split: str = "train",
    readers: Readers | None = None,
) -> Batches:
    """Augmented pictures with one of their captions, for contrastive pretraining.

    Args:
      text: text tokenizer.
      text_length: T; longer captions lose their end, never the end-of-text id.
      others: see `image_batches`.

    Returns:
      Iterator of {"images": uint8 [B, H, W, 3], "text": int32 [B, T], ended by eos and padded
      with 0, "index": int32 [B]}.
    """
    if text_length < 2:
        raise UserError(f"the text length must be at least 2, got {text_length}")
    records = load_split(config, data_dir, split)
    augment, size = AugmentConfig.of(config.data.augment), config.model.image_size
    share = config.data.canonical_share
    view = views.PairView(records, augment, size, text, text_length, share)
    return view_batches(view, batch_size, seed, readers or Readers.of(config))


def unified_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    text: TextTokenizer,
    cache: VisualIds,
    batch_size: int,
    seed: int,
    *,
    split: str = "train",
    stamp: Stamp | None = None,
    readers: Readers | None = None,
) -> Batches:
    """Packed rows of examples, mixed by `config.data.mixture` or from `config.data.sources`.

    Args:
      config: the experiment.
      data_dir: where the data set is prepared.
      text: text tokenizer.
      cache: codes, kept patches and keys of `variants(config, data_dir, split)`.
      batch_size: rows over all processes.
      seed: of order, choice of captions, questions and variants.
      split: which pictures.
      stamp: that other sources' visual ids must have.
      readers: by default `Readers.of(config)`.

    Returns:
      Iterator of the arrays of `packing.lay_row`, stacked to B rows.

    Raises:
      UserError: a cache of other images, or an example longer than a row (when it comes up).
    """
    patches = (config.model.image_size // config.model.patch_size) ** 2
    readers = readers or Readers.of(config)
    limits = packing.Limits(config.data.row_length, config.data.images_per_row)
    shape = packing.RowShape(limits, patches, config.model.image_size)

    def opened(name: str, fields: Mapping[str, Any]) -> several.Held:
        if fields["path"]:
            return _other_source(config, name, fields, stamp)
        main = _variants(config, datasets.load_own(config, data_dir, split))
        _check_ids(cache, len(main), patches, "delete visual_ids.npz")
        return several.Held(datasets.load_texts(config, data_dir, split), main, cache)

    examples: packing.Examples | packing.Staged
    images: views.Images
    if config.data.sources:
        examples, images = several.several(config, text, batch_size, seed, opened)
    else:
        held = opened("", {"path": ""})
        maker = ExampleMaker(config, held.records, text, held.ids)
        examples, images = mixed(config, maker, len(held.records), seed), held.images
    rows = packing.PackedRows(
        examples, limits, process_index=readers.index, process_count=readers.count
    )
    laid: grain.IterDataset[dict[str, np.ndarray]]
    if readers.workers:
        workers = Workers(
            views.Stacks(views.Shown(images, config.model.image_size)), readers.workers
        )
        laid = Ahead(rows, workers, _shown, functools.partial(_lay_found, shape))
    else:
        laid = rows.map(_laid(shape, images, readers.threads))
    return _ahead(laid.batch(readers.rows(batch_size), drop_remainder=True), readers)


def _ahead(batches: grain.IterDataset[dict[str, np.ndarray]], readers: Readers) -> Batches:
    """Batches that one thread prepares before they are asked for."""
    threaded = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=readers.ahead
    )
    return Batches(iter(threaded))


def _laid(
    shape: packing.RowShape, images: views.Images, threads: int
) -> Callable[[packing.Row], dict[str, np.ndarray]]:
    """Lays rows out; reads their images one after the other, or several at once."""
    if threads <= 1:
        return lambda row: packing.lay_row(row, shape, images.__getitem__)
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="images")

    def lay(row: packing.Row) -> dict[str, np.ndarray]:
        shown = _shown(row)
        found = dict(zip(shown, pool.map(images.__getitem__, shown)))
        return packing.lay_row(row, shape, found.__getitem__)

    return lay


def _shown(row: packing.Row) -> list[int]:
    """The images that a row shows."""
    return [example.condition.image for example in row if example.condition is not None]


def _lay_found(
    shape: packing.RowShape, row: packing.Row, found: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    pairs = zip(found["images"], found["lost"], strict=True) if found else ()
    known = dict(zip(_shown(row), (None if lost else image for image, lost in pairs)))
    return packing.lay_row(row, shape, known.__getitem__)


def _check_ids(ids: VisualIds, images: int, patches: int, cure: str) -> None:
    if (len(ids), ids.patches) != (images, patches):
        raise UserError(
            f"the visual ids are of {len(ids)} images of {ids.patches} patches; this config has "
            f"{images} of {patches}: {cure}"
        )


def _other_source(
    config: ConfigDict, name: str, fields: Mapping[str, Any], stamp: Stamp | None
) -> several.Held:
    """A prepared folder that `config.data.sources` names."""
    folder, whole = fields["path"], several.check_folder(name, fields)
    texts = datasets.load_prepared_texts(config, folder, "train")
    if not fields["visual_ids"]:
        return several.Held(texts, (), None)
    ids = load_ids(config, fields["visual_ids"], stamp, whole["examples"])
    images = _variants(config, datasets.load_prepared_own(config, folder, "train"))
    return several.Held(texts, images, ids)


def load_ids(config: ConfigDict, folder: str, stamp: Stamp | None, examples: int) -> VisualIds:
    """Stored visual ids of the training examples of a prepared folder.

    Raises:
      UserError: they are of another tokenizer, data set or image size.
    """
    if stamp is None:
        raise ValueError("stored visual ids need a stamp to be checked against")
    stored = stored_ids.StoredIds(folder, stamp, examples, lambda url: datasets.here(config, url))
    patches = (config.model.image_size // config.model.patch_size) ** 2
    _check_ids(stored_ids.IdsOf(stored, stored.patches), examples, patches, "make them anew")
    split = prepared.Split(stored, config.data.held_out, train=True)
    return stored_ids.IdsOf(split, stored.patches)


def view_batches(view: views.ImageView, batch_size: int, seed: int, readers: Readers) -> Batches:
    """Views of records, each record once an epoch.

    Args:
      view: makes the arrays of one row.
      others: see `image_batches`.
    """
    rows = readers.rows(batch_size)
    # After the random map, so that a view does not depend on the number of processes.
    share = slice(readers.index, None, readers.count)
    chosen = grain.MapDataset.range(len(view.records)).seed(seed % 2**32).shuffle().repeat()
    if readers.workers:
        # Everything but the views is so quickly made that one thread does it.
        wanted = chosen.random_map(views.Drawn.of).slice(share)
        wanted = wanted.batch(rows, drop_remainder=True, batch_fn=list)
        workers = Workers(views.Stacks(views.SeenAs(view)), readers.workers)
        plain = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        made: grain.IterDataset[dict[str, np.ndarray]]
        made = Ahead(wanted.to_iter_dataset(plain), workers, list, lambda _, found: found)
        return _ahead(made, readers)
    seen = chosen.random_map(view).slice(share).batch(rows, drop_remainder=True)
    options = grain.ReadOptions(num_threads=readers.threads, prefetch_buffer_size=readers.ahead)
    return Batches(iter(seen.to_iter_dataset(options)))
