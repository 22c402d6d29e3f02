"""What every source of examples gives, and how it is cut into pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from lavit_jax.data.sources import files

NOT_DOWNLOADED = "not downloaded"  # what img2dataset could not get; nobody's fault


@dataclasses.dataclass(frozen=True)
class Raw:
    """An example as a source has it, not yet checked.

    Attributes:
      key: its name in the source.
      origin: the file and place it comes from, for messages.
      image: the bytes of an image file; None for text alone.
      captions: of the image, the first the best; or the text. Bytes where the source has bytes.
      questions: about the image.
      answers: one to each question.
    """

    key: str
    origin: str
    image: bytes | None = None
    captions: tuple[str | bytes, ...] = ()
    questions: tuple[str | bytes, ...] = ()
    answers: tuple[str | bytes, ...] = ()


@dataclasses.dataclass(frozen=True)
class Broken:
    """Something that should have been an example.

    Attributes:
      reason: in a word or two, the same for all of its kind: what is counted.
      origin: the file and place.
      detail: what exactly is wrong.
      count: examples that are missing, about: more than one where a shard breaks off.
    """

    reason: str
    origin: str
    detail: str = ""
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a source: some of the examples of one file.

    Attributes:
      place: the file, or the split of a data set.
      start: where the piece begins, in whatever the kind of source counts in.
      stop: where it ends; -1 is at the end.
      size: bytes, roughly.
      fingerprint: changes when the file does.
    """

    place: str
    start: int = 0
    stop: int = -1
    size: int = 0
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read a source.

    Attributes:
      split: of a TFDS data set.
      data_dir: of a TFDS data set; "" is TFDS's own.
      image_field: the field or column with the image; "" finds it.
      caption_field: likewise with captions or text.
    """

    split: str = "train"
    data_dir: str = ""
    image_field: str = ""
    caption_field: str = ""


class Source(Protocol):
    """Examples in pieces that can be read in any order, by any process, again and again."""

    def parts(self) -> list[Part]:
        """The pieces, always the same while the source does not change."""

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The examples of a piece, always in one order; what is broken stands in its place."""

    def fingerprint(self, place: str) -> str:
        """What the fingerprint of a part of this place would be now."""

    def files(self) -> dict[str, str]:
        """All files with their fingerprints, by a look at their folder alone."""


class FileSource:
    """What is the same for all sources that are files."""

    suffixes: tuple[str, ...] = ()

    def __init__(self, spec: str, options: Options) -> None:
        self._spec, self._options = spec, options

    def fingerprint(self, place: str) -> str:
        """As `Source.fingerprint`."""
        return files.size_of(place, anew=True)[1]

    def files(self) -> dict[str, str]:
        """As `Source.files`."""
        return {url: files.size_of(url)[1] for url in files.expand(self._spec, self.suffixes)}


IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "image_path", "file_name", "path")
CAPTION_FIELDS = ("captions", "caption", "text", "txt", "sentences", "TEXT")
KEY_FIELDS = ("key", "__key__", "id", "uid")


def find_field(names: Sequence[str], asked: str, usual: Sequence[str]) -> str | None:
    """The field that was asked for, else the first usual one there is."""
    if asked:
        return asked if asked in names else None
    return next((name for name in usual if name in names), None)


def texts(value: Any) -> tuple[str | bytes, ...]:
    """One text or a list of them as a tuple; of anything else, what text it can be shown as."""
    if value is None:
        return ()
    if isinstance(value, str | bytes):
        return (value,)
    if isinstance(value, dict):
        name = find_field(list(value), "", ("raw", "text", "caption", "sentence"))
        return texts(value[name]) if name else ()
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in texts(item))
    return ()
