"""Settings of captions, answers and drawings, and the presets that fill in what is not given.

`own` suits any model trained here. `published` is what the released weights were run with, and
`fid` and `fid-appendix` are their drawings for the MS-COCO FID, as the code and as the paper's
appendix have it (SPEC 9).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict, TypeVar

from lavit_jax.errors import UserError


def _at_least(name: str, value: float | None, low: float, *, above: bool = False) -> None:
    if value is None or (value > low if above else value >= low):
        return
    raise UserError(f"{name} is {value}, expected {'more than' if above else 'at least'} {low}")


def _sampling(top_k: int | None, top_p: float | None, repetition_penalty: float) -> None:
    _at_least("top_k", top_k, 1)
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}, expected a share in (0, 1]")
    _at_least("repetition_penalty", repetition_penalty, 0, above=True)


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How text is written.

    Attributes:
      beams: W of the beam search; 1 is greedy.
      max_new: the most new tokens, the one that ends the text included.
      min_new: tokens there are before the text may end.
      length_penalty: of the beam search: scores are divided by length to this power.
      early_stopping: the beam search ends once W beams have ended.
      repetition_penalty: divides scores of ids written before; 1 is none.
      temperature: samples instead of searching beams; None is no sampling.
      top_k: samples among the k likeliest ids; None is all.
      top_p: samples among the fewest ids of this probability together; None is all.
      cut: the text ends before the first of these.
      plain_question: of answers: questions are put in lower case, without .!"()*#:;~ and with 50
        words at most.
    """

    beams: int = 2
    max_new: int = 36
    min_new: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    repetition_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    cut: tuple[str, ...] = ()
    plain_question: bool = False

    def __post_init__(self) -> None:
        _at_least("beams", self.beams, 1)
        _at_least("max_new", self.max_new, 1)
        _at_least("min_new", self.min_new, 0)
        _at_least("temperature", self.temperature, 0, above=True)
        _sampling(self.top_k, self.top_p, self.repetition_penalty)
        if self.temperature is not None and self.beams > 1:
            raise UserError(f"sampling takes one beam, got beams={self.beams}")
        if self.temperature is None and (self.top_k or self.top_p):
            raise UserError("top_k and top_p need a temperature: without one nothing is sampled")


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """How visual ids are sampled, and decoded to pixels.

    Attributes:
      guidance: s of classifier-free guidance (Paper: Eq. 7); 1 is none.
      mixed_guidance: the same for prompts with pictures in them.
      temperature: of sampling; 0 is greedy.
      top_k: samples among the k likeliest ids; None is all.
      top_p: samples among the fewest ids of this probability together; None is all.
      repetition_penalty: divides scores of ids drawn before; 1 is none.
      min_ids: ids of a drawing at least; None is 20 in 256 patches.
      max_ids: ids of a drawing at most; None is 200 in 256 patches, or what the model keeps.
      first_suppressed: text ids from this one on are never drawn. Published: 3, which leaves
        three ids of text; where one of them is drawn it is dropped.
      best_of: candidates of each picture; the one whose words are likeliest is kept.
      decoder: "onepass", "lowres" or "highres"; None is the first the model has.
      decoder_guidance: of a decoder that has it; None is its own.
      decoder_steps: of a decoder that has them; None is its own.
      decoder_size: height and width in pixels, of a decoder that paints at any size; None is the
        one it was trained at.
      decoder_solver: "ddim" or "dpm++", of a decoder that has steps; None is its own.
      decoder_tile: whether latents are decoded tile by tile, for less memory.
    """

    guidance: float = 4.0
    mixed_guidance: float = 5.0
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = None
    repetition_penalty: float = 1.0
    min_ids: int | None = None
    max_ids: int | None = None
    first_suppressed: int = 0
    best_of: int = 1
    decoder: str | None = None
    decoder_guidance: float | None = None
    decoder_steps: int | None = None
    decoder_size: tuple[int, int] | None = None
    decoder_solver: str | None = None
    decoder_tile: bool = False

    def __post_init__(self) -> None:
        _at_least("temperature", self.temperature, 0)
        _at_least("guidance", self.guidance, 0)
        _at_least("min_ids", self.min_ids, 0)
        _at_least("max_ids", self.max_ids, 1)
        _at_least("best_of", self.best_of, 1)
        _sampling(self.top_k, self.top_p, self.repetition_penalty)


class TextChanges(TypedDict, total=False):
    """Fields of `TextOptions` to set."""

    beams: int
    max_new: int
    min_new: int
    length_penalty: float
    early_stopping: bool
    repetition_penalty: float
    temperature: float | None
    top_k: int | None
    top_p: float | None
    cut: tuple[str, ...]
    plain_question: bool


class DrawChanges(TypedDict, total=False):
    """Fields of `DrawOptions` to set; `guidance` sets that of mixed prompts too."""

    guidance: float
    mixed_guidance: float
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    min_ids: int | None
    max_ids: int | None
    first_suppressed: int
    best_of: int
    decoder: str | None
    decoder_guidance: float | None
    decoder_steps: int | None
    decoder_size: tuple[int, int] | None
    decoder_solver: str | None
    decoder_tile: bool


@dataclasses.dataclass(frozen=True)
class Preset:
    """The settings of one way to use a model."""

    caption: TextOptions = TextOptions()
    answer: TextOptions = TextOptions(beams=5, max_new=16, length_penalty=0.0, early_stopping=True)
    draw: DrawOptions = DrawOptions()


_PUBLISHED = Preset(
    caption=TextOptions(beams=2, min_new=8, max_new=36, cut=(".",)),
    answer=TextOptions(
        beams=5,
        min_new=2,
        max_new=10,
        length_penalty=0.0,
        early_stopping=True,
        cut=("\n", ",", "."),
        plain_question=True,
    ),
    draw=DrawOptions(top_k=50, guidance=4.0, mixed_guidance=5.0, first_suppressed=3),
)


def _fid(top_k: int, guidance: float) -> Preset:
    draw = dataclasses.replace(
        _PUBLISHED.draw,
        top_k=top_k,
        guidance=guidance,
        mixed_guidance=guidance,
        best_of=4,
        decoder="lowres",
        decoder_guidance=1.5,
        decoder_steps=50,
    )
    return dataclasses.replace(_PUBLISHED, draw=draw)


PRESETS: Mapping[str, Preset] = {
    "own": Preset(),
    "published": _PUBLISHED,
    "fid": _fid(top_k=300, guidance=1.5),
    "fid-appendix": _fid(top_k=200, guidance=2.0),
}


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
      UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


Options = TypeVar("Options", TextOptions, DrawOptions)


def changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """The options with some fields set by the user.

    Raises:
      UserError: an unknown field, or values that do not fit together.
    """
    known = {field.name for field in dataclasses.fields(options)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise UserError(
            f"unknown option {unknown[0]!r}, expected one of {', '.join(sorted(known))}"
        )
    changes = dict(changes)
    if changes.get("temperature") is not None and "beams" in known:
        changes.setdefault("beams", 1)
    if "guidance" in changes:
        changes.setdefault("mixed_guidance", changes["guidance"])
    least, most = ("min_ids", "max_ids") if "min_ids" in known else ("min_new", "max_new")
    made = dataclasses.replace(options, **changes)
    low, high = getattr(made, least), getattr(made, most)
    if low is None or high is None or low <= high:
        return made
    if least in changes and most in changes:
        raise UserError(f"{least} is {low}, more than {most}, {high}")
    # One of them is the user's; the preset's other one gives way.
    other = {most: low} if least in changes else {least: high}
    return dataclasses.replace(made, **other)
