"""Pictures made of pictures: kept-patch overlays and contact sheets, uint8 in, uint8 out.

Legend: H height, W width, N patches in raster order.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from lavit_jax import disk

Picture = UInt8[np.ndarray, "_ _ 3"]

INK = (38, 42, 51)
BORDER = np.array((37, 99, 235), np.float32)  # around kept patches
WASH = 232.0  # the grey that dropped patches fade to
FADE = 0.82  # how far they fade
LINES = 2  # of a label
LARGEST = 1600  # an overlay's longer side, at most, for pictures that are larger


def kept_overlay(
    image_HW3: Picture, keep_N: Shaped[np.ndarray, " N"], min_side: int = 448
) -> Picture:
    """The picture with dropped patches washed out and kept ones as they are, thinly framed.

    Args:
      image_HW3: of any size; the patches divide it into a square grid, as the model saw it.
      keep_N: nonzero where a patch is kept.
      min_side: the shorter side of the result, at least.

    Raises:
      ValueError: N is no square number.
    """
    grid = math.isqrt(keep_N.size)
    if grid * grid != keep_N.size:
        raise ValueError(f"patches form a square grid; got {keep_N.size} keep decisions")
    height, width = image_HW3.shape[:2]
    scale = max(min_side / min(height, width), min(1.0, LARGEST / max(height, width)))
    # Whole pixels for every patch, so that all frames are alike.
    rows, columns = (max(1, math.ceil(side * scale / grid)) for side in (height, width))
    large = _resize(image_HW3, grid * rows, grid * columns).astype(np.float32)

    keep = np.kron(keep_N.reshape(grid, grid) != 0, np.ones((rows, columns), bool))
    grey = large @ np.array((0.299, 0.587, 0.114), np.float32)
    faded = grey + FADE * (WASH - grey)
    shown = np.where(keep[..., None], large, faded[..., None])
    thick = max(1, round(min(rows, columns) / 28))
    shown[_inner_border(keep, thick)] = BORDER
    return np.clip(shown + 0.5, 0, 255).astype(np.uint8)


def _inner_border(area_HW: np.ndarray, thick: int) -> np.ndarray:
    """The pixels of an area within `thick` pixels of its outline or of the picture's edge."""
    inside = area_HW
    for _ in range(thick):
        padded = np.pad(inside, 1)
        inside = (
            inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        )
    return area_HW & ~inside


def contact_sheet(
    images: Sequence[Picture],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int = 192,
    gap: int = 16,
) -> Picture:
    """Pictures in a grid on white, each fitted into a square cell, with labels below if given.

    Args:
      images: at least one, of any sizes.
      labels: as many as there are images; two lines at most.
      columns: default: as square as it goes.
      cell: side of a picture's cell.
      gap: between cells and around all.

    Raises:
      ValueError: no images, or a different number of labels.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one picture")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} pictures and {len(labels)} labels")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    font = ImageFont.load_default(size=max(11, cell // 14))
    assert isinstance(font, ImageFont.FreeTypeFont)
    texts = [_wrap(label, cell, font) for label in labels or []]
    line = math.ceil(font.size * 1.3)
    below = line * max(map(len, texts), default=0) + (line // 2 if texts else 0)
    size = (columns * (cell + gap) + gap, rows * (cell + gap + below) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = gap + column * (cell + gap), gap + row * (cell + gap + below)
        height, width = image.shape[:2]
        share = cell / max(height, width)
        fitted = _resize(image, max(1, round(height * share)), max(1, round(width * share)))
        offset = (left + (cell - fitted.shape[1]) // 2, top + (cell - fitted.shape[0]) // 2)
        sheet.paste(Image.fromarray(fitted), offset)
        for number, text in enumerate(texts[index] if texts else ()):
            place = (left + cell / 2, top + cell + line * (number + 0.9))
            draw.text(place, text, fill=INK, font=font, anchor="mm")
    return np.asarray(sheet).copy()


def _wrap(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines of at most `width` pixels; what does not fit on `LINES` is cut off."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < LINES:
            lines.append(word)
        else:
            lines[-1] = f"{longer}…"
            break
    return [_cut(line, width, font) for line in lines]


def _cut(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    text = text.removesuffix("…")
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _resize(image_HW3: Picture, height: int, width: int) -> Picture:
    if image_HW3.shape[:2] == (height, width):
        return image_HW3
    resized = Image.fromarray(image_HW3).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def to_png(image_HW3: Picture) -> bytes:
    """The picture as a PNG file's content."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(image_HW3, np.uint8)).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def save_png(path: Path, image_HW3: Picture) -> None:
    """Writes a PNG file; nobody ever sees half of it."""
    disk.write_bytes(path, to_png(image_HW3))
