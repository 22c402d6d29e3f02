"""The data sets a config can name: `twemoji`, or a folder that `lavit data prepare` wrote."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lavit_jax.data import copies, emoji_names, prepared, twemoji
from lavit_jax.errors import UserError

Record = dict[str, Any]

TWEMOJI = "twemoji"
TRAIN = "train"
IN_MEMORY_BYTES = 1 << 30
SENTENCES = 100_000  # texts that a tokenizer is trained on at most


def check(config: ConfigDict) -> None:
    """Checks that the data set can be trained on.

    Raises:
      UserError: a data set or language that does not exist, or a folder that is not prepared or
        has more than images with captions.
    """
    if config.data.dataset == TWEMOJI:
        emoji_names.check_languages(tuple(config.data.languages))
    else:
        _check_folder(config.data.dataset)


def prepare(config: ConfigDict, data_dir: str | os.PathLike[str]) -> None:
    """Makes the data set ready, or checks that it is.

    Raises:
      UserError: a data set or language that does not exist.
    """
    if config.data.dataset == TWEMOJI:
        twemoji.prepare(data_dir, tuple(config.data.languages))
    else:
        _check_folder(config.data.dataset)


def here(config: ConfigDict, folder: str) -> str:
    """Where a prepared folder is on this machine: of a URL, its copy.

    Raises:
      UserError: as `copies.bring`.
    """
    return copies.place(folder, config.data.get("cache", ""))


def bring(config: ConfigDict, say: copies.Say) -> None:
    """Copies all that a config reads from buckets to this machine, ids that are made among it.

    Raises:
      UserError: as `copies.bring`.
    """
    data = config.data
    named = [data.dataset, *(source.get("path", "") for source in data.sources.values())]
    ids = [data.visual_ids, *(source.get("visual_ids", "") for source in data.sources.values())]
    named += [folder for folder in ids if copies.is_remote(folder) and prepared.has_index(folder)]
    copies.bring(named, data.get("cache", ""), say)


def load_split(
    config: ConfigDict, data_dir: str | os.PathLike[str], split: str
) -> Sequence[Record]:
    """The records of a split; of twemoji decoded once and kept in memory.

    Of a prepared folder all splits but "train" are the held-out examples.

    Raises:
      UserError: a data set, language or split that does not exist, or is not prepared.
    """
    if config.data.dataset == TWEMOJI:
        folder = str(Path(data_dir).resolve())
        return _load_twemoji(folder, tuple(config.data.languages), split)
    _check_folder(config.data.dataset)
    return load_prepared(config, config.data.dataset, split)


def load_texts(
    config: ConfigDict, data_dir: str | os.PathLike[str], split: str
) -> Sequence[Record]:
    """The records of a split for those who do not look at images, which may be missing."""
    if config.data.dataset == TWEMOJI:
        return load_split(config, data_dir, split)
    return load_prepared_texts(config, config.data.dataset, split)


def load_prepared(config: ConfigDict, folder: str, split: str) -> Sequence[Record]:
    """The records of a split of a prepared folder, text alone among them."""
    place, data = here(config, folder), config.data
    found = _examples(place, config.model.image_size, data.max_bad_share)
    return prepared.Split(found, data.held_out, split == TRAIN)


def load_own(
    config: ConfigDict, data_dir: str | os.PathLike[str], split: str
) -> Sequence[Record | None]:
    """The records of a split for those who have their texts from `load_texts`.

    None where one cannot be read: another's image would be beside a text that is not its own.
    """
    if config.data.dataset == TWEMOJI:
        return load_split(config, data_dir, split)
    return load_prepared_own(config, config.data.dataset, split)


def load_prepared_own(config: ConfigDict, folder: str, split: str) -> Sequence[Record | None]:
    """The same of a prepared folder."""
    place, data = here(config, folder), config.data
    found = _own_examples(place, config.model.image_size, data.max_bad_share)
    return prepared.Split(found, data.held_out, split == TRAIN)


def load_prepared_texts(config: ConfigDict, folder: str, split: str) -> Sequence[Record]:
    """The same without images."""
    place, data = here(config, folder), config.data
    found = _texts(place, data.max_bad_share)
    return prepared.Split(found, data.held_out, split == TRAIN)


@functools.lru_cache(maxsize=8)
def _load_twemoji(folder: str, languages: tuple[str, ...], split: str) -> Sequence[Record]:
    return in_memory_if_small(twemoji.source(split, folder, languages))


_examples = functools.lru_cache(maxsize=32)(prepared.examples)
_own_examples = functools.lru_cache(maxsize=32)(prepared.own_examples)
_texts = functools.lru_cache(maxsize=32)(prepared.texts)


def _check_folder(folder: str) -> None:
    if not copies.is_remote(folder) and not Path(folder).exists():
        raise UserError(
            f"config.data.dataset={folder!r}: expected {TWEMOJI!r} or a folder that "
            "`lavit data prepare` wrote"
        )
    index = prepared.read_index(folder)
    if index["images"] < index["examples"]:
        raise UserError(
            f"config.data.dataset={folder!r} has {index['examples'] - index['images']} examples "
            "without an image: name text in config.data.sources"
        )


def in_memory_if_small(source: Sequence[Record], limit: int = IN_MEMORY_BYTES) -> Sequence[Record]:
    """Reads a source into a list if its decoded arrays take at most `limit` bytes."""
    if not len(source):
        return source
    each = sum(value.nbytes for value in source[0].values() if isinstance(value, np.ndarray))
    return list(source) if each * len(source) <= limit else source


def sentences(config: ConfigDict, data_dir: str | os.PathLike[str]) -> Iterator[str]:
    """What a text tokenizer trains on: the texts of training examples, evenly chosen."""
    if config.data.dataset == TWEMOJI:
        yield from twemoji.sentences(twemoji.source(TRAIN, data_dir, tuple(config.data.languages)))
        return
    stored = prepared.Prepared(here(config, config.data.dataset))
    split: Sequence[Any] = prepared.Split(stored, config.data.held_out, train=True)
    count = min(len(split), SENTENCES)
    for place in range(count):
        raw = split[place * len(split) // count]
        if not isinstance(raw, prepared.Broken):
            yield from raw.captions
            for question, answer in zip(raw.questions, raw.answers, strict=True):
                yield f"{question} {answer}"
