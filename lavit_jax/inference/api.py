"""The Python API of a trained model: pictures and words in, pictures and words out.

Legend: H height, W width, N patches.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lavit_jax.convert import record
from lavit_jax.data.layout import QUESTION, plain_question
from lavit_jax.data.text import TextTokenizer
from lavit_jax.errors import UserError
from lavit_jax.inference import drawing, painting, pixels, presets, scoring, writing
from lavit_jax.inference.engine import (
    Engine,
    Image,
    Prompt,
    VisualTokens,
    as_picture,
    nonblank,
)
from lavit_jax.inference.pixels import PixelDecoder, Settings
from lavit_jax.inference.presets import DrawChanges, TextChanges
from lavit_jax.inference.scoring import Score
from lavit_jax.inference.selection import Selection
from lavit_jax.inference.writing import Said
from lavit_jax.models.lavit import Modules, build_modules
from lavit_jax.models.quantizer import Codebook
from lavit_jax.parallel.mesh import AXES, make_mesh

__all__ = ["Image", "Lavit", "Prompt", "Said", "Score", "VisualTokens", "load"]

if TYPE_CHECKING:
    from lavit_jax.convert.published import Published
    from lavit_jax.convert.record import Record

Select = str | Selection


class Lavit(Engine):
    """A trained model. Every method takes and gives lists, and computes them in batches.

    Images are paths or uint8 [H, W, 3] arrays of any size. What a batch holds may differ in every
    way: lengths, the number of pictures and where they stand.

    Every method that reads pictures takes `select`, which patches become tokens: "greedy" (those
    likelier kept than dropped), "threshold=T" (those of a keep probability above T), "sample"
    (by that probability, as the published code does at inference; needs a `seed` to repeat) or
    "top=K" (the K of highest score: a token budget).

    Settings that are not given come from a preset; see `inference.presets`. `preset` names it,
    None is the model's own. Fields of `TextOptions` or `DrawOptions` may be given by name.

    Attributes:
      preset: name of the preset used when none is named: "own" for what is trained here,
        "published" for converted weights.
    """

    def __init__(
        self,
        modules: Modules,
        params: dict[str, Any],
        codebook: Codebook | None,
        text: TextTokenizer | None,
        preset: str = "own",
        decoders: pixels.Decoders | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(modules, params, codebook, text, decoders, mesh)
        presets.preset(preset)
        self.preset = preset

    def tokenize(
        self, images: Sequence[Image], select: Select = "greedy", seed: int = 0
    ) -> list[VisualTokens]:
        """Turns pictures into visual ids.

        Args:
          images: paths or uint8 [H, W, 3].
          select: which patches become tokens.
          seed: of a sampled selection.

        Returns:
          For each its ids, int32 [kept], and which patches are kept, bool [N].

        Raises:
          UserError: an image that cannot be read, or a bad selection.
        """
        return self.tokens(images, self.selection(select), seed)

    def caption(
        self,
        images: Sequence[Image],
        prompt: str = "",
        *,
        select: Select = "greedy",
        seed: int = 0,
        preset: str | None = None,
        **changes: Unpack[TextChanges],
    ) -> list[str]:
        """Says what is in pictures.

        Args:
          images: paths or uint8 [H, W, 3].
          prompt: how every caption begins.
          select: which patches the model sees.
          seed: of sampling.
          preset: where settings come from.
          changes: fields of `TextOptions`, such as beams=5, max_new=20 or temperature=0.7.

        Returns:
          A caption for each picture, `prompt` not repeated.

        Raises:
          UserError: an image that cannot be read, a prompt longer than the context, or settings
            that do not fit together.
        """
        prompts = [[image, prompt] for image in map(as_picture, images)]
        said = self.complete(prompts, select=select, seed=seed, preset=preset, **changes)
        return [texts[0].text for texts in said]

    def answer(
        self,
        images: Sequence[Image],
        questions: Sequence[str],
        *,
        select: Select = "greedy",
        seed: int = 0,
        preset: str | None = None,
        **changes: Unpack[TextChanges],
    ) -> list[str]:
        """Answers a question about each picture.

        Args:
          images: paths or uint8 [H, W, 3].
          questions: one for each picture.
          select: which patches the model sees.
          seed: of sampling.
          preset: where settings come from.
          changes: fields of `TextOptions`.

        Returns:
          An answer to each question.

        Raises:
          UserError: as `caption`; a question of no words, or another number of them than of
            images.
        """
        if len(images) != len(questions):
            raise UserError(f"{len(images)} images and {len(questions)} questions")
        self.need("llm", "conditioner")
        options = presets.changed(presets.preset(preset or self.preset).answer, changes)
        plain = plain_question if options.plain_question else str
        asked = [QUESTION.format(nonblank(plain(question), "question")) for question in questions]
        prompts = [[as_picture(image), words] for image, words in zip(images, asked)]
        said = writing.write(self, prompts, options, select=self.selection(select), seed=seed)
        return [texts[0].text for texts in said]

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        n_best: int = 1,
        select: Select = "greedy",
        seed: int = 0,
        preset: str | None = None,
        **changes: Unpack[TextChanges],
    ) -> list[list[Said]]:
        """Goes on with words after prompts of words and pictures, with the settings of captions.

        Args:
          prompts: words; or a list of words and pictures in any order, a path being a `Path`.
          n_best: texts of each prompt, at most as many as there are beams.
          select: which patches the model sees.
          seed: of sampling.
          preset: where settings come from.
          changes: fields of `TextOptions`.

        Returns:
          For each prompt its texts with their scores, best first.

        Raises:
          UserError: as `caption`; an empty prompt.
        """
        self.need("llm", "conditioner")
        rows = [[prompt] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        for row in rows:
            if not any(isinstance(p, np.ndarray | os.PathLike) or p.strip() for p in row):
                raise UserError("the prompt is empty")
        options = presets.changed(presets.preset(preset or self.preset).caption, changes)
        selection = self.selection(select)
        return writing.write(self, rows, options, n_best=n_best, select=selection, seed=seed)

    def draw(
        self,
        prompts: Sequence[Prompt],
        images: Sequence[Image] | None = None,
        n: int = 1,
        *,
        select: Select = "greedy",
        seed: int = 0,
        preset: str | None = None,
        **changes: Unpack[DrawChanges],
    ) -> list[list[np.ndarray]]:
        """Draws pictures.

        Args:
          prompts: words; or a list of words and pictures in any order, a path being a `Path`.
          images: pictures that go before every prompt.
          n: pictures of each prompt.
          select: which patches of the prompts' pictures the model sees.
          seed: the same seed gives the same pictures.
          preset: where settings come from.
          changes: fields of `DrawOptions`, such as guidance=6.0, temperature=0, top_k=None,
            best_of=4 (rank that many candidates of each picture by `score`),
            decoder="highres" or decoder_size=(768, 1344).

        Returns:
          For each prompt n pictures, uint8 [H, W, 3].

        Raises:
          UserError: an empty prompt, one longer than the context, an image that cannot be read,
            a decoder the model does not have, or settings that do not fit together.
        """
        options = presets.changed(presets.preset(preset or self.preset).draw, changes)
        how = pixels.settings_of(
            options.decoder_size,
            options.decoder_guidance,
            options.decoder_steps,
            options.decoder_solver,
            options.decoder_tile,
        )
        paint = painting.choose(self, options.decoder, how)
        selection = self.selection(select)
        read = drawing.read_prompts(self, prompts, images or (), selection, seed)
        return drawing.draw(self, read, n, options, paint, seed)

    def reconstruct(
        self,
        images: Sequence[Image],
        decoder: str | None = None,
        *,
        select: Select = "greedy",
        seed: int = 0,
        decoder_guidance: float | None = None,
        decoder_steps: int | None = None,
        decoder_size: tuple[int, int] | None = None,
        decoder_solver: str | None = None,
        decoder_tile: bool = False,
    ) -> list[np.ndarray]:
        """Draws pictures again from nothing but their visual ids.

        Args:
          images: paths or uint8 [H, W, 3].
          decoder: "onepass", "lowres" or "highres"; None is the first the model has.
          select: which patches become tokens.
          seed: of a sampled selection and of a decoder that samples.
          decoder_guidance: of a decoder that has it.
          decoder_steps: of a decoder that has them.
          decoder_size: height and width, of a decoder that paints at any size.
          decoder_solver: "ddim" or "dpm++", of a decoder that has steps.
          decoder_tile: whether latents are decoded tile by tile, for less memory.

        Returns:
          uint8 [H, W, 3] each.

        Raises:
          UserError: an image that cannot be read, a decoder the model does not have, or settings
            it cannot follow.
        """
        how = pixels.settings_of(
            decoder_size, decoder_guidance, decoder_steps, decoder_solver, decoder_tile
        )
        paint = painting.choose(self, decoder, how)
        found = self.tokenize(images, select, seed)
        return paint([tokens.ids for tokens in found], seed)

    def paint(
        self,
        ids: Sequence[np.ndarray],
        decoder: str | None = None,
        seed: int = 0,
        settings: Settings | None = None,
    ) -> list[np.ndarray]:
        """Paints pictures from their visual ids.

        Args:
          ids: codes of each picture, as `tokenize` finds them.
          decoder: "onepass", "lowres" or "highres"; None is the first the model has.
          seed: of a diffusion decoder's noise.
          settings: of a diffusion decoder; what is not given is its own.

        Returns:
          A picture for each, uint8 [H, W, 3].

        Raises:
          UserError: a decoder the model does not have, or settings it cannot follow.
        """
        return painting.choose(self, decoder, settings or Settings())(ids, seed)

    def score(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        select: Select = "greedy",
        seed: int = 0,
    ) -> list[Score]:
        """Says how likely texts are given pictures, and pictures given texts.

        Args:
          images: paths or uint8 [H, W, 3].
          texts: one for each image; or one image for all texts, or one text for all images.
          select: which patches become tokens.
          seed: of a sampled selection.

        Returns:
          Log-likelihoods of each pair in both directions; an empty text gives the picture's own.

        Raises:
          UserError: an image that cannot be read, numbers that do not pair, or a pair longer than
            the context.
        """
        return scoring.score(self, images, texts, select=self.selection(select), seed=seed)


def load(workdir: str | os.PathLike[str], mesh: Mapping[str, int] | None = None) -> Lavit:
    """Loads a training run's newest checkpoint, or a converted one.

    The diffusion decoders of a converted one are read when they are first used.

    Args:
      workdir: the run's directory, or one made by `lavit convert`; also `gs://BUCKET/FOLDER`.
      mesh: sizes of axes of `parallel.mesh.AXES` over this process's devices, such as
        `{"tensor": 4}`, "data" taking what the others leave; parameters are created split over
        them. By default one device does all.

    Raises:
      UserError: no such directory, it has no readable checkpoint, or a mesh that the devices
        cannot form.
    """
    where = _mesh(mesh)
    shared = where if where.size > 1 else None
    directory = epath.Path(workdir)
    if (directory / record.FILE).is_file():
        return _load_converted(directory, where, shared)
    from lavit_jax.training.restore import restore

    found = restore(workdir, where)
    decoders = pixels.trained(found.modules, found.params, found.codebook, shared)
    return Lavit(
        found.modules, found.params, found.codebook, found.text, decoders=decoders, mesh=shared
    )


def _mesh(sizes: Mapping[str, int] | None) -> Mesh:
    devices = jax.local_devices()
    if sizes is None:
        return make_mesh(data=1, devices=devices[:1])
    if unknown := set(sizes) - set(AXES):
        raise UserError(f"mesh has no axis {min(unknown)!r}; its axes are {', '.join(AXES)}")
    left = 1 if -1 in sizes.values() else -1
    try:
        return make_mesh(**{"data": left, **sizes}, devices=devices)
    except UserError as error:
        raise UserError(str(error).replace("config.mesh", "mesh")) from error


def _load_converted(directory: epath.Path, where: Mesh, shared: Mesh | None) -> Lavit:
    """The parts of a converted checkpoint that inference uses."""
    from lavit_jax.convert import load as converted
    from lavit_jax.convert.published import PARTS

    stored = record.load(directory)
    parts = [part for part in stored.parts if part in PARTS]
    found = converted.load_converted(directory, where, parts)
    text = converted.text_tokenizer(directory)
    decoders = _converted_decoders(directory, stored, found, where, shared)
    modules = build_modules(found.config)
    return Lavit(modules, found.params, found.codebook, text, "published", decoders, shared)


def _converted_decoders(
    directory: epath.Path, stored: Record, found: Published, where: Mesh, shared: Mesh | None
) -> pixels.Decoders:
    """The diffusion decoders that are whole, each with its condition head."""
    from lavit_jax.convert import load as converted
    from lavit_jax.convert.pixel_infer import FOLDERS

    there = {module for modules in stored.parts.values() for module in modules}

    def reader(kind: str) -> Callable[[], PixelDecoder]:
        # Nothing but the heads is held on to: the language model has another form by then.
        heads = {name: found.params[name] for name in pixels.NEEDED[kind] if name in found.params}
        headed = found._replace(params=heads)

        @functools.cache
        def read() -> PixelDecoder:
            more = converted.load_converted(directory, where, [FOLDERS[kind]]).params
            whole = headed._replace(params={**headed.params, **more})
            return pixels.published(whole, shared)[kind]

        return read

    return {
        kind: reader(kind)
        for kind, needed in pixels.NEEDED.items()
        if found.codebook is not None and there.issuperset(needed)
    }
