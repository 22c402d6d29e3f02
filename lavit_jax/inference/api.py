"""The Python API of a trained model: pictures and words in, pictures and words out.

Legend: H height, W width, N patches.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.convert import record
from lavit_jax.data import images as image_data
from lavit_jax.data.layout import QUESTION, SpecialIds
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference import prompts as layout
from lavit_jax.inference.beams import BeamConfig
from lavit_jax.inference.generate import SamplingConfig
from lavit_jax.inference.pixels import PixelDecoder, Settings, published, trained
from lavit_jax.inference.programs import banned_ids, programs
from lavit_jax.inference.prompts import Features, Row
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.lavit import Modules, build_modules
from lavit_jax.models.quantizer import Codebook

Image = np.ndarray | str | os.PathLike[str]
Prompt = str | Sequence[str | np.ndarray | os.PathLike[str]]

ONE_PASS = "onepass"
ROWS = 64  # computed at a time at most
# Published bounds on a drawing's ids, as shares of the patches: 20 and 200 of 256.
LEAST_DRAWN, MOST_DRAWN = 20 / 256, 200 / 256


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


class Lavit:
    """A trained model. Every method takes and gives lists, and computes them in batches.

    Images are paths or uint8 [H, W, 3] arrays of any size. Programs are compiled once for each
    bucket of shapes: rows are padded to powers of two up to `ROWS`, prompts to multiples of 16.

    Attributes:
      config: sizes.
      modules: the Flax modules.
      params: their parameters by module.
      pixels: diffusion decoders by kind, beside the one-pass pixel head.
    """

    def __init__(
        self,
        modules: Modules,
        params: dict[str, Any],
        codebook: Codebook | None,
        text: TextTokenizer | None,
        pixels: Mapping[str, PixelDecoder] | None = None,
    ) -> None:
        self.config: LavitConfig = modules.config
        self.modules, self.params, self._codebook, self._text = modules, params, codebook, text
        self.pixels = pixels or {}
        self._programs = programs(modules)
        self._special = SpecialIds(modules.config.llm.text_vocab, modules.config.llm.codes)

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

    def tokenize(self, images: Sequence[Image]) -> list[VisualTokens]:
        """Turns pictures into visual ids.

        Args:
          images: paths or uint8 [H, W, 3].

        Returns:
          For each its ids, int32 [kept], and which patches are kept, bool [N].

        Raises:
          UserError: an image that cannot be read.
        """
        self._need("encoder", "selector", "merger", "quantizer")
        found = []
        for rows, pixels in self._batches(self._pixels(images)):
            tokens = self._programs.tokenize(self.params, self.codebook, pixels)
            keep, valid, ids = jax.device_get((tokens.keep_BN, tokens.kept.valid_BL, tokens.ids_BL))
            found += [VisualTokens(ids[row, valid[row]], keep[row] > 0.5) for row in range(rows)]
        return found

    def caption(
        self, images: Sequence[Image], prompt: str = "", beams: int = 2, max_new: int = 36
    ) -> list[str]:
        """Says what is in pictures.

        Args:
          images: paths or uint8 [H, W, 3].
          prompt: how every caption begins.
          beams: of the beam search; 1 is greedy.
          max_new: the most tokens of a caption.

        Returns:
          A caption for each picture, `prompt` not repeated.

        Raises:
          UserError: an image that cannot be read, or a prompt longer than the context.
        """
        begun = self.text.encode(prompt) if prompt else []
        return self._say(images, [begun] * len(images), BeamConfig(beams, max_new))

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], beams: int = 5, max_new: int = 16
    ) -> list[str]:
        """Answers a question about each picture.

        Args:
          images: paths or uint8 [H, W, 3].
          questions: one for each picture.
          beams: of the beam search; 1 is greedy.
          max_new: the most tokens of an answer.

        Returns:
          An answer to each question.

        Raises:
          UserError: an image that cannot be read, an empty question, one longer than the context,
            or another number of questions than images.
        """
        if len(images) != len(questions):
            raise UserError(f"{len(images)} images and {len(questions)} questions")
        asked = [
            self.text.encode(QUESTION.format(_nonblank(question, "question")))
            for question in questions
        ]
        search = BeamConfig(beams, max_new, length_penalty=0.0, early_stopping=True)
        return self._say(images, asked, search)

    def draw(
        self,
        prompts: Sequence[Prompt],
        images: Sequence[Image] | None = None,
        n: int = 1,
        guidance: float = 4.0,
        temperature: float = 1.0,
        top_k: int | None = 50,
        seed: int = 0,
        decoder: str = ONE_PASS,
    ) -> list[list[np.ndarray]]:
        """Draws pictures.

        Args:
          prompts: words; or a list of words and pictures in any order.
          images: pictures that go before every prompt.
          n: pictures of each prompt.
          guidance: s of classifier-free guidance (Paper: Eq. 7); 1 is none.
          temperature: of sampling ids; 0 is greedy.
          top_k: sample among the k likeliest ids; None is all.
          seed: the same seed gives the same pictures.
          decoder: what paints them: "onepass", or the kind of one of `pixels`.

        Returns:
          For each prompt n pictures, uint8 [H, W, 3].

        Raises:
          UserError: an empty prompt, one longer than the context, an image that cannot be read.
        """
        self._need("llm", "decoder")
        rows = self._drawing_rows(prompts, images or ())
        root = jax.random.key(seed)
        most = min(int(MOST_DRAWN * self.config.patches), self.config.max_kept) + 1
        config = SamplingConfig(
            max_new=most,
            min_new=int(LEAST_DRAWN * self.config.patches),
            temperature=temperature or None,
            top_k=top_k if temperature else None,
            guidance=None if guidance == 1 else guidance,
        )
        banned = banned_ids(self.modules, text=False)
        jobs = [(row, number) for row in range(len(rows)) for number in range(n)]
        # A drawing depends on the seed, its prompt's place and its own number only.
        fold = jax.random.fold_in
        keys = jax.vmap(lambda row, number: fold(fold(root, row), number))
        drawn: list[np.ndarray] = []
        for start in range(0, len(jobs), ROWS):
            part = jobs[start : start + ROWS]
            height = layout.bucket(len(part), ROWS)
            arrays = self._lay([rows[row] for row, _ in part], height, most)
            padded = np.array(part + [part[-1]] * (height - len(part)), np.uint32)
            found = self._programs.sample(
                self.params,
                None,
                *arrays,
                config,
                banned,
                jnp.full(height, self._special.image_end),
                keys(padded[:, 0], padded[:, 1]),
                jnp.full((height, 1), self._special.image_start),
            )
            ids, lengths = jax.device_get((found.ids_BM, found.lengths_B))
            codes = np.clip(ids - self._special.code(0), 0, self.config.quantizer.codes - 1)
            most = self.config.max_kept
            drawn += [codes[r, : min(lengths[r], most)] for r in range(len(part))]
        pictures = self.paint(drawn, decoder, seed)
        return [pictures[row * n : (row + 1) * n] for row in range(len(rows))]

    def reconstruct(self, images: Sequence[Image], decoder: str = ONE_PASS) -> list[np.ndarray]:
        """Draws pictures again from nothing but their visual ids.

        Args:
          images: paths or uint8 [H, W, 3].
          decoder: as in `draw`.

        Returns:
          A picture for each, uint8 [H, W, 3].

        Raises:
          UserError: an image that cannot be read.
        """
        return self.paint([tokens.ids for tokens in self.tokenize(images)], decoder)

    def paint(
        self,
        ids: Sequence[np.ndarray],
        decoder: str = ONE_PASS,
        seed: int = 0,
        settings: Settings | None = None,
    ) -> list[np.ndarray]:
        """Paints pictures from their visual ids.

        Args:
          ids: codes of each picture, as `tokenize` finds them.
          decoder: "onepass", or the kind of one of `pixels`.
          seed: of a diffusion decoder's noise.
          settings: of a diffusion decoder; default: its own.

        Returns:
          A picture for each, uint8 [H, W, 3].

        Raises:
          UserError: a decoder this model lacks, or settings it cannot follow.
        """
        if decoder != ONE_PASS:
            if decoder not in self.pixels:
                known = ", ".join([ONE_PASS, *self.pixels])
                raise UserError(f"this model has no decoder {decoder!r}, only {known}")
            return self.pixels[decoder].paint(ids, seed, settings)
        self._need("decoder", "pixel_head")
        painted: list[np.ndarray] = []
        for start in range(0, len(ids), ROWS):
            part = ids[start : start + ROWS]
            height = layout.bucket(len(part), ROWS)
            rows = np.zeros((height, self.config.max_kept), np.int32)
            counts = np.zeros(height, np.int32)
            for row, codes in enumerate(part):
                rows[row, : len(codes)], counts[row] = codes, len(codes)
            found = self._programs.paint(self.params, self.codebook, rows, counts)
            painted += list(np.asarray(found)[: len(part)])
        return painted

    def _say(
        self, images: Sequence[Image], after: Sequence[Sequence[int]], config: BeamConfig
    ) -> list[str]:
        """Text after each image and the ids that follow it."""
        self._need("encoder", "selector", "conditioner", "llm")
        banned = banned_ids(self.modules, text=True)
        special = self._special
        said: list[str] = []
        for rows, pixels in self._batches(self._pixels(images)):
            seen = self._programs.see(self.params, pixels)
            kept = (np.asarray(seen.keep_BN)[:rows] > 0.5).sum(axis=1)
            prompts: list[Row] = [
                [special.image_start, Features(0, int(count)), special.image_end, *ids]
                for count, ids in zip(kept, after[len(said) : len(said) + rows])
            ]
            arrays = self._lay(prompts, len(pixels), config.max_new)
            found = self._programs.search(
                self.params,
                seen.features_BLE[:, None],
                *arrays,
                config,
                banned,
                jnp.full(len(pixels), special.eos),
            )
            ids, lengths = np.asarray(found.ids_BWM[:, 0]), np.asarray(found.lengths_BW[:, 0])
            said += [self.text.decode(ids[r, : lengths[r]].tolist()).strip() for r in range(rows)]
        return said

    def _drawing_rows(self, prompts: Sequence[Prompt], before: Sequence[Image]) -> list[Row]:
        """Prompts as ids: pictures as [IMG] codes [/IMG], and [IMG] at the end."""
        parts: list[list[Any]] = []
        for prompt in prompts:
            if isinstance(prompt, str):
                _nonblank(prompt, "prompt")
            elif not prompt:
                raise UserError("the prompt is empty")
            parts.append([*before, *([prompt] if isinstance(prompt, str) else prompt)])
        pictures = [p for row in parts[:1] for p in row[: len(before)]]
        pictures += [p for row in parts for p in row[len(before) :] if not isinstance(p, str)]
        tokens = iter(self.tokenize(pictures) if pictures else [])
        shared = [i for _ in before for i in self._special.visual(next(tokens).ids)]
        rows: list[Row] = []
        for row in parts:
            ids = list(shared)
            for part in row[len(before) :]:
                if isinstance(part, str):
                    ids += self.text.encode(part)
                else:
                    ids += self._special.visual(next(tokens).ids)
            rows.append([*ids, self._special.image_start])
        return rows

    def _lay(self, rows: Sequence[Row], height: int, new: int) -> layout.Arrays:
        room = self.config.llm.max_length - new
        return layout.lay(rows, height, self.config.patches, room)

    def _pixels(self, images: Sequence[Image]) -> list[np.ndarray]:
        size = self.config.encoder.image_size
        return [image_data.resize(_array(image), size) for image in images]

    def _batches(self, pixels: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Stacks of pictures, each with how many of it are real."""
        for start in range(0, len(pixels), ROWS):
            part = list(pixels[start : start + ROWS])
            height = layout.bucket(len(part), ROWS)
            yield len(part), np.stack(part + [part[-1]] * (height - len(part)))

    def _need(self, *names: str) -> None:
        missing = [name for name in names if name not in self.params]
        if missing:
            raise UserError(
                f"this model has no {missing[0]}: the checkpoint it was converted from has none, "
                "or its training has not come to the phase that makes it"
            )


def _array(image: Image) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return image_data.load_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(
            f"an image is a path or a uint8 array [H, W, 3], got {image.dtype} {list(image.shape)}"
        )
    return image


def _nonblank(text: str, what: str) -> str:
    if not text.strip():
        raise UserError(f"the {what} is empty")
    return text


def load(workdir: str | os.PathLike[str], decoders: Sequence[str] = ()) -> Lavit:
    """Loads a training run's newest checkpoint, or a converted one.

    Args:
      workdir: the run's directory, or one made by `lavit convert`.
      decoders: kinds of pixel decoders to load of a converted one, "lowres" and "highres"; what
        a run trained is always there.

    Raises:
      UserError: no such directory, or it has no readable checkpoint.
    """
    if (Path(workdir) / record.FILE).is_file():
        return _load_converted(Path(workdir), decoders)
    from lavit_jax.training.restore import restore

    found = restore(Path(workdir))
    pixels = trained(found.modules, found.params, found.codebook)
    return Lavit(found.modules, found.params, found.codebook, found.text, pixels)


def _load_converted(directory: Path, decoders: Sequence[str]) -> Lavit:
    """The parts of a converted checkpoint that inference uses."""
    from lavit_jax.convert import load as converted
    from lavit_jax.convert.pixel_infer import FOLDERS
    from lavit_jax.convert.published import PARTS

    unknown = [kind for kind in decoders if kind not in FOLDERS]
    if unknown:
        raise UserError(f"decoder {unknown[0]!r} is unknown, expected some of {', '.join(FOLDERS)}")
    parts = [part for part in record.load(directory).parts if part in PARTS]
    parts += [FOLDERS[kind] for kind in decoders]
    found = converted.load_converted(directory, parts=parts)
    text = converted.text_tokenizer(directory)
    pixels = published(found) if decoders else {}
    return Lavit(build_modules(found.config), found.params, found.codebook, text, pixels)
