"""The unified phase's examples: four kinds from the same pictures, mixed in fixed shares."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import grain.python as grain
import numpy as np
from ml_collections import ConfigDict

from lavit_jax.data import layout
from lavit_jax.data.layout import Condition, Example, SpecialIds
from lavit_jax.data.sources.base import Broken
from lavit_jax.data.stored_ids import LostIds
from lavit_jax.data.tally import Watch
from lavit_jax.data.text import TextTokenizer
from lavit_jax.data.views import choose_caption
from lavit_jax.data.visual_ids import VisualIds
from lavit_jax.errors import UserError

Record = dict[str, Any]

KINDS = ("image_text", "text_image", "text", "question")
SEEING = ("image_text", "question")  # those whose images the encoder sees in the step
TRIES = 100  # neighbours tried in place of a picture whose stored ids are lost


class ExampleMaker:
    """Makes an example of each kind from a picture, by chance in caption, question and variant.

    The methods are named as the `KINDS` in `config.data.mixture`.
    """

    def __init__(
        self,
        config: ConfigDict,
        records: Sequence[Record],
        text: TextTokenizer,
        cache: VisualIds | None,
        first_image: int = 0,
    ) -> None:
        """Makes examples of one source.

        Args:
          config: the experiment.
          records: of the source.
          text: text tokenizer.
          cache: visual ids of the records' variants; None where there are no images.
          first_image: place of the source's first image in the list of all sources' images.
        """
        self._records, self._text, self._cache = records, text, cache
        self._first_image = first_image
        self._row_length = config.data.row_length
        self._special = SpecialIds(text.vocab_size, config.model.quantizer.codes)
        self._variants = config.data.variants
        self._canonical_share = config.data.canonical_share
        self._text_drop = config.data.text_drop
        self._watch = Watch(config.data.max_bad_share)

    def make(self, kind: str, picture: int, rng: np.random.Generator) -> Example:
        """An example of a picture, or of the next one whose stored ids are its own and whole.

        Raises:
          UserError: more than `config.data.max_bad_share` of the stored ids read are lost.
        """
        for step in range(TRIES):
            place = (picture + step) % len(self._records)
            try:
                if kind != "text":
                    self._check_key(place)
                example: Example = getattr(self, kind)(place, rng)
            except LostIds as error:
                self._watch.broken(place, Broken("lost ids", f"visual ids {place}", str(error)))
                continue
            self._watch.good()
            return example
        raise UserError(
            f"{TRIES} visual ids on end are lost: {self._watch.tally.describe()}; make them anew"
        )

    def _check_key(self, picture: int) -> None:
        """A record that was replaced, or ids of one that was, would pair two examples."""
        stored = self._ids.key(picture * self._variants)
        key = self._records[picture].get("key", stored)
        if stored and stored != key:
            raise LostIds(f"of {stored!r}, beside the text of {key!r}")

    def image_text(self, picture: int, rng: np.random.Generator) -> Example:
        """[image, text]."""
        caption = self._caption(picture, rng)
        condition = self._condition(picture, rng)
        return layout.image_text(self._special, condition, self._cut(caption, condition.kept))

    def text_image(self, picture: int, rng: np.random.Generator) -> Example:
        """[text, plain image]; the text is dropped now and then, for guidance (ours, SPEC 8)."""
        caption = self._caption(picture, rng)
        if rng.random() < self._text_drop:
            caption = []
        # Augmented variants are pictures nobody asks for: background and place are chance.
        codes = self._ids.codes(picture * self._variants)
        return layout.text_image(self._special, self._cut(caption, len(codes)), codes)

    def text(self, picture: int, rng: np.random.Generator) -> Example:
        """Plain text; of one longer than a row some row's worth."""
        ids = self._caption(picture, rng)
        room = self._row_length - 1
        if len(ids) > room:
            start = room * int(rng.integers(-(-len(ids) // room)))
            ids = ids[start : start + room]
        return layout.plain_text(self._special, ids)

    def question(self, picture: int, rng: np.random.Generator) -> Example:
        """An image, a question about it and its answer; [image, text] without a question that fits
        a row. Answers are cut to what is left of it."""
        record = self._records[picture]
        if not record["questions"]:
            return self.image_text(picture, rng)
        which = int(rng.integers(len(record["questions"])))
        asked = self._text.encode(layout.QUESTION.format(record["questions"][which]))
        condition = self._condition(picture, rng)
        beside = condition.kept + len(asked)
        if beside + 3 >= self._row_length:
            return self.image_text(picture, rng)
        answer = self._cut(self._text.encode(record["answers"][which]), beside)
        return layout.question(self._special, condition, asked, answer)

    def _caption(self, picture: int, rng: np.random.Generator) -> list[int]:
        captions = self._records[picture]["captions"]
        return self._text.encode(choose_caption(captions, rng, self._canonical_share))

    def _cut(self, caption: list[int], patches: int) -> list[int]:
        """As much of a caption as fits a row beside so many patches, [IMG], [/IMG] and </s>."""
        room = self._row_length - patches - 3
        return caption[:room] if room > 0 else caption

    @property
    def _ids(self) -> VisualIds:
        if self._cache is None:
            raise UserError("a source without images has no kinds but text")
        return self._cache

    def _image(self, picture: int, rng: np.random.Generator) -> int:
        return picture * self._variants + int(rng.integers(self._variants))

    def _condition(self, picture: int, rng: np.random.Generator) -> Condition:
        image = self._image(picture, rng)
        return Condition(self._first_image + image, self._ids.keep(image))


def check_shares(
    shares: Mapping[str, float],
    name: str = "config.data.mixture",
    known: Sequence[str] = KINDS,
) -> None:
    """Checks shares of something.

    Args:
      shares: by what they are of.
      name: their field.
      known: what they may be of.

    Raises:
      UserError: shares that are negative, not numbers, all zero, or of something unknown.
    """
    for kind, share in shares.items():
        if kind not in known:
            raise UserError(f"{name}.{kind}: expected only {', '.join(known)}")
        if not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise UserError(f"{name}.{kind} must be a share of 0 or more, got {share}")
    if not any(shares.values()):
        raise UserError(f"{name} needs a share above 0, got {dict(shares.items())}")


def check_room(shares: Mapping[str, float], images: int, name: str = "config.data.mixture") -> None:
    """Checks that rows have room for the images of all kinds.

    Args:
      shares: by kind.
      images: slots of a row.
      name: the shares' field.

    Raises:
      UserError: there is none.
    """
    seeing = [kind for kind in SEEING if shares.get(kind)]
    if seeing and not images:
        raise UserError(
            f"config.data.images_per_row=0 leaves no room for the images of {name}.{seeing[0]}="
            f"{shares[seeing[0]]}: expected 1 or more, or that share 0"
        )


def mixed(
    config: ConfigDict, maker: ExampleMaker, pictures: int, seed: int
) -> grain.MapDataset[Example]:
    """Endless examples of all kinds; each kind goes through all pictures, shuffled every time.

    Raises:
      UserError: shares that cannot work.
    """
    shares = config.data.mixture
    check_shares(shares)
    used = [(kind, place) for place, kind in enumerate(KINDS) if shares.get(kind)]
    streams = [
        grain.MapDataset.range(pictures)
        .seed((seed * len(KINDS) + place) % 2**32)
        .shuffle()
        .repeat()
        .random_map(functools.partial(maker.make, kind))
        for kind, place in used
    ]
    return grain.MapDataset.mix(streams, weights=[shares[kind] for kind, _ in used])
