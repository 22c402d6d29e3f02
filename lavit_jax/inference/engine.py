"""What every ability of a model shares: pictures to arrays and features, prompts to batches.

Legend: B pictures, R rows, J pictures of a row, L kept (padded), N patches, E llm width.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lavit_jax.data import images as image_data
from lavit_jax.data.layout import SpecialIds
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference import prompts as layout
from lavit_jax.inference import selection as selections
from lavit_jax.inference.pixels import Decoders
from lavit_jax.inference.programs import programs
from lavit_jax.inference.prompts import Features, Row
from lavit_jax.inference.selection import Selection
from lavit_jax.models import llama
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.lavit import Modules
from lavit_jax.models.llama import Llama
from lavit_jax.models.quantizer import Codebook

Image = np.ndarray | str | os.PathLike[str]
Prompt = str | Sequence[str | np.ndarray | os.PathLike[str]]

ROWS = 64  # computed at a time at most


@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """A picture in the model's visual language.

    Attributes:
      ids: codes of the kept patches in raster order, int32 [kept].
      keep: which patches are kept, bool [N].
      kept: how many.
    """

    ids: np.ndarray
    keep: np.ndarray

    @property
    def kept(self) -> int:
        return len(self.ids)


class SeenPictures(NamedTuple):
    """Pictures as the language model reads them.

    Attributes:
      features_BLE: condition features; B is a bucket, the real pictures come first.
      kept: how many features each real picture has.
    """

    features_BLE: Float[Array, "B L E"]
    kept: list[int]


class PromptBatch(NamedTuple):
    """Prompts as a program reads them.

    Attributes:
      rows: how many are real; they come first.
      features_BLE: of all pictures in them; None without any.
      image_RJ: which of those each row's pictures are; None without any.
      arrays: the tokens.
    """

    rows: int
    features_BLE: Float[Array, "B L E"] | None
    image_RJ: Int[np.ndarray, "R J"] | None
    arrays: layout.Arrays


class Engine:
    """A model and its compiled programs.

    Programs are compiled once for each bucket of shapes: rows are padded to powers of two up to
    `ROWS`, prompts to multiples of 16.

    Attributes:
      config: sizes.
      modules: the Flax modules.
      params: their parameters by module; on a CPU the language model's are flattened.
      decoders: diffusion decoders by kind, beside the one-pass pixel head.
      special: where ids lie.
      programs: the compiled programs.
    """

    def __init__(
        self,
        modules: Modules,
        params: dict[str, Any],
        codebook: Codebook | None,
        text: TextTokenizer | None,
        decoders: Decoders | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.config: LavitConfig = modules.config
        if mesh is None:
            modules, params = _for_decoding(modules, params)
        self.modules, self.params, self._codebook, self._text = modules, params, codebook, text
        self.decoders = decoders or {}
        self.programs = programs(modules, mesh)
        self.special = SpecialIds(modules.config.llm.text_vocab, modules.config.llm.codes)

    @property
    def codebook(self) -> Codebook:
        """The codes ids stand for.

        Raises:
          UserError: the checkpoint came without a visual tokenizer.
        """
        if self._codebook is None:
            raise UserError("this model has no codebook: its checkpoint has no visual tokenizer")
        return self._codebook

    @property
    def text(self) -> TextTokenizer:
        """The text tokenizer.

        Raises:
          UserError: the checkpoint came without one.
        """
        if self._text is None:
            raise UserError("this model has no text tokenizer: its source had no tokenizer.model")
        return self._text

    def need(self, *names: str) -> None:
        """Raises UserError when the model lacks one of these modules."""
        missing = [name for name in names if name not in self.params]
        if missing:
            raise UserError(
                f"this model has no {missing[0]}: the checkpoint it was converted from has none, "
                "or its training has not come to the phase that makes it"
            )

    def selection(self, select: str | Selection) -> Selection:
        """Reads a selection that this model can carry out."""
        return selections.within(selections.parse(select), self.config.max_kept)

    def pixels(self, images: Sequence[Image]) -> list[np.ndarray]:
        """Pictures of the model's size."""
        size = self.config.encoder.image_size
        return [image_data.resize(_array(image), size) for image in images]

    def tokens(self, images: Sequence[Image], select: Selection, seed: int) -> list[VisualTokens]:
        """Pictures to visual ids."""
        self.need("encoder", "selector", "merger", "quantizer")
        found = []
        for rows, pixels, keys in self._batches(self.pixels(images), seed):
            tokens = self.programs.tokenize(self.params, self.codebook, pixels, select, keys)
            keep, valid, ids = jax.device_get((tokens.keep_BN, tokens.kept.valid_BL, tokens.ids_BL))
            found += [VisualTokens(ids[row, valid[row]], keep[row] > 0.5) for row in range(rows)]
        return found

    def see(
        self, images: Sequence[Image], select: Selection, seed: int, first: int = 0
    ) -> SeenPictures:
        """Pictures to condition features, at least one picture; the first's place is `first`."""
        self.need("encoder", "selector", "conditioner")
        features, kept = [], []
        for rows, pixels, keys in self._batches(self.pixels(images), seed, first):
            seen = self.programs.see(self.params, pixels, select, keys)
            features.append(seen.features_BLE)
            kept += (np.asarray(seen.keep_BN)[:rows] > 0.5).sum(axis=1).tolist()
        return SeenPictures(features[0] if len(features) == 1 else jnp.concatenate(features), kept)

    def condition_batches(
        self, prompts: Sequence[Sequence[Any]], select: Selection, seed: int, new: int
    ) -> Iterator[PromptBatch]:
        """Prompts of pictures as conditions, ids and text, as batches.

        Args:
          prompts: each a list of pictures, texts, and lists of ids.
          select: which patches of the pictures are kept.
          seed: of sampled selections, with a picture's place among all of them.
          new: tokens that will follow at most.
        """
        before = 0
        for start in range(0, len(prompts), ROWS):
            part = prompts[start : start + ROWS]
            images = [piece for row in part for piece in row if is_picture(piece)]
            seen = self.see(images, select, seed, before) if images else None
            before += len(images)
            yield self.lay_conditions(part, seen, range(len(images)), new)

    def lay_conditions(
        self,
        prompts: Sequence[Sequence[Any]],
        seen: SeenPictures | None,
        images: Sequence[int],
        new: int,
    ) -> PromptBatch:
        """One batch of prompts whose pictures, in order, are `images` of those seen."""
        height = layout.bucket(len(prompts), ROWS)
        start, end = self.special.image_start, self.special.image_end
        upcoming, rows, used = iter(images), [], []
        for prompt in prompts:
            row: list[int | Features] = []
            mine: list[int] = []
            for piece in prompt:
                if is_picture(piece):
                    assert seen is not None
                    image = next(upcoming)
                    row += [start, Features(len(mine), seen.kept[image]), end]
                    mine.append(image)
                else:
                    row += self._ids(piece)
            rows.append(row)
            used.append(mine)
        arrays = self.lay(rows, height, new)
        if seen is None:
            return PromptBatch(len(prompts), None, None, arrays)
        most = max(map(len, used))
        image_RJ = np.zeros((height, 1 << (most - 1).bit_length()), np.int32)
        for number, mine in enumerate(used):
            image_RJ[number, : len(mine)] = mine
        return PromptBatch(len(prompts), seen.features_BLE, image_RJ, arrays)

    def _ids(self, piece: str | list[int]) -> list[int]:
        if not isinstance(piece, str):
            return piece
        return self.text.encode(piece) if piece else []

    def lay(self, rows: Sequence[Row], height: int, new: int) -> layout.Arrays:
        """Prompts as a left-padded batch with room for `new` tokens."""
        room = self.config.llm.max_length - new
        return layout.lay(rows, height, self.config.patches, room)

    def _batches(
        self, pixels: Sequence[np.ndarray], seed: int, first: int = 0
    ) -> Iterator[tuple[int, np.ndarray, Array]]:
        """Stacks of pictures, each with how many of it are real, and a key for every picture."""
        for start in range(0, len(pixels), ROWS):
            part = list(pixels[start : start + ROWS])
            height = layout.bucket(len(part), ROWS)
            stacked = np.stack(part + [part[-1]] * (height - len(part)))
            yield len(part), stacked, selections.keys(seed, first + start, height)


def _for_decoding(modules: Modules, params: dict[str, Any]) -> tuple[Modules, dict[str, Any]]:
    """On a CPU, the form of the language model that decodes fastest there."""
    sizes = modules.llm.config
    if jax.default_backend() != "cpu" or "llm" not in params or not sizes.stacked:
        return modules, params
    modules = dataclasses.replace(modules, llm=Llama(dataclasses.replace(sizes, stacked=False)))
    return modules, params | {"llm": llama.flattened(params["llm"])}


def as_picture(image: Image) -> np.ndarray | os.PathLike[str]:
    """An image as it stands in a prompt, where a str is words."""
    return Path(image) if isinstance(image, str) else image


def is_picture(piece: Any) -> bool:
    """Whether a piece of a prompt is a picture."""
    return isinstance(piece, np.ndarray | os.PathLike)


def _array(image: Image) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return image_data.load_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"an image is a path or a uint8 array [H, W, 3], got {image.dtype} {list(image.shape)}"
        )
    return image


def nonblank(text: str, what: str) -> str:
    """The text, if it says something.

    Raises:
      UserError: it does not.
    """
    if not text.strip():
        raise UserError(f"the {what} is empty")
    return text
