"""Grain iterators over the data set, for every phase of training.

Each is deterministic in (seed, step) whatever the number of threads or worker processes, infinite,
shuffled anew every epoch, and has `get_state()` / `set_state(state)` with a small JSON-able state.
With several training processes each gets its share of the same global batches.

Legend: B rows of this process, H = W = image side, C channels, T text length.
"""

from __future__ import annotations

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


def variants(config: ConfigDict, data_dir: str | os.PathLike[str], split: str) -> Variants:
    """All variants of a split's pictures, in random access.

    Raises:
      UserError: as `load_split`, or `config.data.variants` under 1.
    """
    count = config.data.variants
    if count < 1:
        raise UserError(f"config.data.variants must be at least 1, got {count}")
    records = load_split(config, data_dir, split)
    augment = AugmentConfig.of(config.data.augment)
    return Variants(records, count, config.model.image_size, augment, config.seed)


def image_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    batch_size: int,
    seed: int,
    *,
    split: str = "train",
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
) -> Batches:
    """Augmented pictures, for the tokenizer phases.

    Args:
      config: the experiment.
      data_dir: where the data set is prepared.
      batch_size: rows over all processes.
      seed: of order and augmentation.
      split: which pictures.
      process_index: this process; by default JAX's.
      process_count: number of processes; by default JAX's.
      threads: that prepare batches ahead, by default `config.data.threads`; 0 prepares each when
        asked.
      workers: processes that do so instead, by default `config.data.workers`; 0 is none.

    Returns:
      Iterator of {"images": uint8 [B, H, W, 3], "index": int32 [B], place in the split}.
    """
    records = load_split(config, data_dir, split)
    view = views.ImageView(records, AugmentConfig.of(config.data.augment), config.model.image_size)
    return view_batches(
        config, view, batch_size, seed, process_index, process_count, threads, workers
    )


def pixel_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    batch_size: int,
    seed: int,
    pixel_size: int,
    *,
    split: str = "train",
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
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
        return image_batches(
            config, data_dir, batch_size, seed, split=split, process_index=process_index,
            process_count=process_count, threads=threads, workers=workers,
        )  # fmt: skip
    records = load_split(config, data_dir, split)
    augment = AugmentConfig.of(config.data.augment)
    view = views.PixelView(records, augment, size, pixel_size)
    return view_batches(
        config, view, batch_size, seed, process_index, process_count, threads, workers
    )


def pair_batches(
    config: ConfigDict,
    data_dir: str | os.PathLike[str],
    text: TextTokenizer,
    batch_size: int,
    seed: int,
    text_length: int,
    *,
    split: str = "train",
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
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
    return view_batches(
        config, view, batch_size, seed, process_index, process_count, threads, workers
    )


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
    process_index: int | None = None,
    process_count: int | None = None,
    prefetch: int = PREFETCH,
    threads: int | None = None,
    workers: int | None = None,
) -> Batches:
    """Packed rows of examples, mixed by `config.data.mixture` or from `config.data.sources`.

    Args:
      config: the experiment.
      data_dir: where the data set is prepared.
      text: text tokenizer.
      cache: codes and kept patches of `variants(config, data_dir, split)`.
      batch_size: rows over all processes.
      seed: of order, choice of captions, questions and variants.
      split: which pictures.
      stamp: that other sources' visual ids must have.
      process_index: this process; by default JAX's.
      process_count: number of processes; by default JAX's.
      prefetch: batches prepared ahead by a thread; 0 prepares each when asked.
      threads: that read a row's images; by default `config.data.threads`.
      workers: processes that do so instead; by default `config.data.workers`; 0 is none.

    Returns:
      Iterator of the arrays of `packing.lay_row`, stacked to B rows.

    Raises:
      UserError: a cache of other images, or an example longer than a row (when it comes up).
    """
    patches = (config.model.image_size // config.model.patch_size) ** 2
    index, count = process_share(process_index, process_count)
    limits = packing.Limits(config.data.row_length, config.data.images_per_row)
    shape = packing.RowShape(limits, patches, config.model.image_size)

    def opened(name: str, fields: Mapping[str, Any]) -> several.Held:
        if fields["path"]:
            return _other_source(config, name, fields, stamp)
        main = variants(config, data_dir, split)
        _check_ids(cache, len(main), patches, "delete visual_ids.npz")
        return several.Held(datasets.load_texts(config, data_dir, split), main, cache)

    examples: packing.Examples | packing.Staged
    images: Sequence[np.ndarray]
    if config.data.sources:
        examples, images = several.several(config, text, batch_size, seed, opened)
    else:
        held = opened("", {"path": ""})
        maker = ExampleMaker(config, held.records, text, held.ids)
        examples, images = mixed(config, maker, len(held.records), seed), held.images
    rows = packing.PackedRows(examples, limits, process_index=index, process_count=count)
    threads, workers = _helpers(config, threads, workers)
    laid: grain.IterDataset[dict[str, np.ndarray]]
    if workers:
        readers = Workers(views.Stacks(views.Shown(images)), workers)
        laid = Ahead(rows, readers, _shown, functools.partial(_lay_found, shape))
    else:
        laid = rows.map(_laid(shape, images, threads))
    batches = laid.batch(local_rows(batch_size, count), drop_remainder=True)
    ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=prefetch)
    return Batches(iter(ahead))


def _laid(
    shape: packing.RowShape, images: Sequence[np.ndarray], threads: int
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
    known = dict(zip(_shown(row), found.get("images", ())))
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
    augment = AugmentConfig.of(config.data.augment)
    records = datasets.load_prepared(config, folder, "train")
    images = Variants(records, 1, config.model.image_size, augment, config.seed)
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


def view_batches(
    config: ConfigDict,
    view: views.ImageView,
    batch_size: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
) -> Batches:
    """Views of records, each record once an epoch.

    Args:
      view: makes the arrays of one row.
      others: see `image_batches`.
    """
    index, count = process_share(process_index, process_count)
    threads, workers = _helpers(config, threads, workers)
    rows = local_rows(batch_size, count)
    # After the random map, so that a view does not depend on the number of processes.
    share = slice(index, None, count)
    chosen = grain.MapDataset.range(len(view.records)).seed(seed % 2**32).shuffle().repeat()
    if workers:
        # Everything but the views is so quickly made that one thread does it.
        wanted = chosen.random_map(views.Drawn.of).slice(share)
        wanted = wanted.batch(rows, drop_remainder=True, batch_fn=list)
        readers = Workers(views.Stacks(views.SeenAs(view)), workers)
        plain = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        made: grain.IterDataset[dict[str, np.ndarray]]
        made = Ahead(wanted.to_iter_dataset(plain), readers, list, lambda _, found: found)
        ahead = grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=PREFETCH)
        return Batches(iter(ahead))
    seen = chosen.random_map(view).slice(share).batch(rows, drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH * (threads > 0))
    return Batches(iter(seen.to_iter_dataset(options)))


def _helpers(config: ConfigDict, threads: int | None, workers: int | None) -> tuple[int, int]:
    """The numbers of threads and worker processes: the config's, where they are not given."""
    return (
        config.data.threads if threads is None else threads,
        config.data.workers if workers is None else workers,
    )


def process_share(index: int | None, count: int | None) -> tuple[int, int]:
    """Which of how many processes this is; JAX is asked only for what is not given."""
    if index is not None and count is not None:
        return index, count
    import jax

    return (
        jax.process_index() if index is None else index,
        jax.process_count() if count is None else count,
    )


def local_rows(batch_size: int, process_count: int) -> int:
    """Rows of a batch for each process.

    Raises:
      UserError: they do not divide evenly.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size={batch_size} does not divide over {process_count} processes")
    return batch_size // process_count
