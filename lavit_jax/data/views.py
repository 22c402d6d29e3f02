"""What a batch shows of a picture: an augmented view, alone, at two sizes or with a caption.

Plain objects that worker processes can be given: nothing here needs jax or grain.

Legend: H = W = image side, P side of the painted picture, C channels, T text length.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lavit_jax.data import images as image_data
from lavit_jax.data.images import AugmentConfig
from lavit_jax.data.text import EOS_ID, PAD_ID, TextTokenizer

Record = dict[str, Any]
Images = Sequence[np.ndarray | None]  # None is one that cannot be read


@dataclasses.dataclass(frozen=True)
class ImageView:
    """{"images": uint8 [H, W, C], "index": int32 []} of a record, by chance.

    Attributes:
      records: decoded pictures.
      augment: how views differ.
      size: H.
    """

    # Grain names each step of a pipeline by its repr, which would write out every picture.
    records: Sequence[Record] = dataclasses.field(repr=False)
    augment: AugmentConfig
    size: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = augmented(self.records[index], rng, self.augment, self.size)
        return {"images": image, "index": np.array(index, np.int32)}


@dataclasses.dataclass(frozen=True)
class PixelView(ImageView):
    """The same with "pixels", uint8 [P, P, C]: the view at the side of the painted pictures.

    Attributes:
      pixel_size: P.
    """

    pixel_size: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pixels = augmented(self.records[index], rng, self.augment, self.pixel_size)
        return {
            "images": image_data.resize(pixels, self.size),
            "pixels": pixels,
            "index": np.array(index, np.int32),
        }


@dataclasses.dataclass(frozen=True)
class PairView(ImageView):
    """As `ImageView`, with "text", int32 [T]: one of the picture's captions.

    Attributes:
      text: text tokenizer.
      text_length: T.
      canonical_share: how often the first caption is taken.
    """

    text: TextTokenizer
    text_length: int
    canonical_share: float

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.records[index]
        ids = self.text.encode(choose_caption(record["captions"], rng, self.canonical_share))
        image = augmented(record, rng, self.augment, self.size)
        return {
            "images": image_data.soften(image, rng, self.augment),
            "text": ended(ids, self.text_length),
            "index": np.array(index, np.int32),
        }


class Drawn(NamedTuple):
    """A record and where the random numbers of its view begin; Philox needs no more.

    Attributes:
      record: its place.
      counter: of the generator.
      key: of the generator.
    """

    record: int
    counter: tuple[int, ...]
    key: tuple[int, ...]

    @classmethod
    def of(cls, record: int, rng: np.random.Generator) -> Drawn:
        """What grain drew."""
        state = rng.bit_generator.state["state"]
        return cls(int(record), tuple(map(int, state["counter"])), tuple(map(int, state["key"])))

    def rng(self) -> np.random.Generator:
        """A generator that goes on as grain's would have."""
        counter, key = np.array(self.counter, np.uint64), np.array(self.key, np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=key))


@dataclasses.dataclass(frozen=True)
class SeenAs:
    """The view of what was drawn.

    Attributes:
      view: makes it.
    """

    view: ImageView

    def __call__(self, drawn: Drawn) -> dict[str, np.ndarray]:
        return self.view(drawn.record, drawn.rng())


@dataclasses.dataclass(frozen=True)
class Shown:
    """One of a list of images, by its place, and whether it is lost.

    Attributes:
      images: the list.
      size: H.
    """

    images: Images
    size: int

    def __call__(self, image: int) -> dict[str, np.ndarray]:
        found = self.images[image]
        pixels = np.zeros((self.size, self.size, 3), np.uint8) if found is None else found
        return {"images": pixels, "lost": np.array(found is None)}


@dataclasses.dataclass(frozen=True)
class Stacks:
    """The arrays of several items, stacked by name.

    Attributes:
      make: the arrays of one item.
    """

    make: SeenAs | Shown

    def __call__(self, items: Sequence[Any]) -> dict[str, np.ndarray]:
        made = [self.make(item) for item in items]
        return {name: np.stack([each[name] for each in made]) for name in made[0]}


class Variants(Sequence[Any]):
    """The fixed images of the unified phase: `variants` of each picture, side by side.

    Item `picture * per_picture + v` is variant v of a picture: uint8 [H, W, 3]. Variant 0 is the
    plain picture; others are augmented, each always the same for a seed. None where the records
    have None.
    """

    def __init__(
        self,
        records: Sequence[Record | None],
        per_picture: int,
        size: int,
        augment: AugmentConfig,
        seed: int,
    ) -> None:
        self.records = records
        self.per_picture = per_picture
        self._size, self._augment, self._seed = size, augment, seed

    def __len__(self) -> int:
        return len(self.records) * self.per_picture

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.keyed(index)[1]

    def keyed(self, index: int) -> tuple[str, np.ndarray | None]:
        """The key of the record that an image is really of, and the image."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        picture, variant = divmod(int(index) % len(self), self.per_picture)
        record = self.records[picture]
        if record is None:
            return "", None
        key = record.get("key", "")
        if variant == 0:
            return key, image_data.resize(record["image"], self._size)
        rng = np.random.default_rng((self._seed, picture, variant))
        return key, augmented(record, rng, self._augment, self._size)


class Together(Sequence[Any]):
    """The images of all sources in one list."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = list(parts)
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


def augmented(
    record: Record, rng: np.random.Generator, augment: AugmentConfig, size: int
) -> np.ndarray:
    """A view of a drawing or of a photograph: uint8 [size, size, 3]."""
    if "alpha" not in record:
        return image_data.crop(record["image"], rng, augment, size)
    return image_data.augment(record["image"], record["alpha"][..., 0], rng, augment, size)


def choose_caption(
    captions: Sequence[str], rng: np.random.Generator, canonical_share: float
) -> str:
    """The first caption with probability `canonical_share`, else one of the others."""
    if len(captions) == 1 or rng.random() < canonical_share:
        return captions[0]
    return captions[1 + int(rng.integers(len(captions) - 1))]


def ended(ids: Sequence[int], length: int) -> np.ndarray:
    """Ids cut to fit, ended and padded: int32 [length]."""
    row = np.full(length, PAD_ID, np.int32)
    kept = [*ids[: length - 1], EOS_ID]
    row[: len(kept)] = kept
    return row
