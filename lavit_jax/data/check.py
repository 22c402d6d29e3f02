"""What an example must be to be trained on; anything else is counted by reason and left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lavit_jax.data import images
from lavit_jax.data.sources.base import Broken, Raw

MIN_SIDE = 8  # pixels
MAX_ASPECT = 20.0
MAX_CAPTION = 10_000  # characters
TEXT_PIECE = 4_000  # characters; longer documents are cut


def checked(raw: Raw | Broken) -> Iterator[Raw | Broken]:
    """An example fit for training, or why it is not; a long document becomes several examples.

    Of an example with several captions those that are unfit are dropped; with none left it is
    broken, for the first one's reason.
    """
    if isinstance(raw, Broken):
        yield raw
        return
    faults: list[str] = []
    captions: list[str] = []
    for caption in raw.captions:
        text = _text(caption)
        fault = _caption_fault(text, limit=MAX_CAPTION if raw.image is not None else None)
        if fault is None:
            captions.append(str(text).strip())
        else:
            faults.append(fault)
    if not captions:
        yield Broken(faults[0] if faults else "empty caption", raw.origin)
        return
    if raw.image is None:
        yield from _pieces(raw, captions)
        return
    unfit = _image_fault(raw.image, raw.origin)
    if unfit is not None:
        yield unfit
        return
    questions, answers = _pairs(raw)
    yield dataclasses.replace(
        raw,
        key=_key(raw.key),
        captions=tuple(captions),
        questions=questions,
        answers=answers,
    )


def _key(key: str) -> str:
    return key.encode("utf-8", "replace").decode()


def _text(text: str | bytes) -> str | None:
    """As text; None if it is not UTF-8."""
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")  # lone surrogates cannot be
    except UnicodeError:
        return None
    return text


def _caption_fault(text: str | None, limit: int | None) -> str | None:
    if text is None:
        return "not UTF-8"
    if "\0" in text:
        return "NUL in caption"
    if not text.strip():
        return "empty caption"
    if limit is not None and len(text) > limit:
        return "huge caption"
    return None


def _pairs(raw: Raw) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Questions with their answers, where both are sound."""
    pairs = [(_text(q), _text(a)) for q, a in zip(raw.questions, raw.answers)]
    sound = [
        (str(q).strip(), str(a).strip())
        for q, a in pairs
        if not _caption_fault(q, MAX_CAPTION) and not _caption_fault(a, MAX_CAPTION)
    ]
    return tuple(q for q, _ in sound), tuple(a for _, a in sound)


def _image_fault(image: bytes, origin: str) -> Broken | None:
    try:
        width, height = images.check_image(image, origin)
    except images.ImageError as error:
        return Broken(error.reason, origin, str(error))
    if min(width, height) < MIN_SIDE:
        return Broken("tiny image", origin, f"{width} x {height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        return Broken("extreme aspect", origin, f"{width} x {height}")
    return None


def _pieces(raw: Raw, captions: list[str]) -> Iterator[Raw]:
    """A document in pieces, cut at white space where there is some."""
    pieces = [piece for text in captions for piece in _cut(text)]
    for number, piece in enumerate(pieces):
        key = _key(raw.key) if len(pieces) == 1 else f"{_key(raw.key)}#{number}"
        yield dataclasses.replace(raw, key=key, captions=(piece,))


def _cut(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > TEXT_PIECE:
        end = start + TEXT_PIECE
        least = start + TEXT_PIECE // 2
        best = max(text.rfind("\n", least, end), -1)
        best = best if best >= 0 else text.rfind(" ", least, end)
        end = best + 1 if best >= 0 else end
        piece = text[start:end].strip()
        if piece:
            yield piece
        start = end
    if text[start:].strip():
        yield text[start:].strip()
