"""Image files to arrays: loading, resizing, normalizing and meaning-preserving augmentation.

Legend: H height, W width.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image

from lavit_jax.errors import UserError

MAX_PIXELS = 100_000_000

# CLIP's statistics of RGB in 0..1 (SPEC 1).
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# Formats that Pillow hands to an outside program are not opened.
_UNSAFE_FORMATS = frozenset({"EPS"})
# These are looked for first: there are over 40, and some are only told by trying.
_USUAL_FORMATS = ("JPEG", "PNG", "WEBP")
# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    RuntimeError,
    AssertionError,
    AttributeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
_LIGHTEST = 200  # background colours are drawn from _LIGHTEST..255 in each channel

# What undoes each of EXIF's orientations but 1.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

T = TypeVar("T")
Rgb = UInt8[np.ndarray, "H W 3"]
Alpha = UInt8[np.ndarray, "H W"]


class ImageError(UserError):
    """An image that cannot be used.

    Attributes:
      reason: in a word or two, the same for all that have the same fault.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def load_image(path: str | os.PathLike[str]) -> Rgb:
    """Reads an image of any kind Pillow knows as 8-bit RGB.

    Greyscale, palette, CMYK and 16-bit images are converted, EXIF rotation is applied, what is
    transparent is shown on white, of an animation the first frame is taken.

    Args:
      path: the image file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: no such file, not an image, truncated or otherwise damaged, or over
        `MAX_PIXELS` pixels (told from its header, without decoding it).
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"image not found: {path}")
    if path.is_dir():
        raise UserError(f"expected an image file, got a directory: {path}")
    try:
        if path.stat().st_size == 0:
            raise ImageError("zero bytes", f"image file is empty (0 bytes): {path}")
        return _read(path, str(path), _to_rgb)
    except PermissionError as error:
        raise UserError(f"no permission to read image: {path}") from error


def decode_image(data: bytes, name: str, least: int = 0) -> Rgb:
    """The image in the bytes of a file, as `load_image` reads it.

    Args:
      data: of the file.
      name: for messages.
      least: a JPEG of over twice this many pixels each way is decoded at a half, a quarter or an
        eighth of its size, never under this; 0 is full size.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ImageError: as `load_image`.
    """
    if not data:
        raise ImageError("zero bytes", f"image is empty (0 bytes): {name}")

    def read(image: Image.Image) -> Rgb:
        if least:
            image.draft("RGB", (least, least))
        return _to_rgb(image)

    return _read(io.BytesIO(data), name, read)


def check_image(data: bytes, name: str) -> tuple[int, int]:
    """Decodes an image for nothing but its faults, a JPEG at an eighth of its size.

    Args:
      data: of the file.
      name: for messages.

    Returns:
      Width and height.

    Raises:
      ImageError: as `decode_image`.
    """
    if not data:
        raise ImageError("zero bytes", f"image is empty (0 bytes): {name}")

    def read(image: Image.Image) -> tuple[int, int]:
        size = image.size
        image.draft("RGB", (1, 1))
        _to_rgb(image)  # all that training does, for any of it may fail
        return size

    return _read(io.BytesIO(data), name, read)


def _read(file: Path | io.BytesIO, name: str, read: Callable[[Image.Image], T]) -> T:
    try:
        with warnings.catch_warnings():
            # Pillow warns of big images from 89 megapixels on; the limit here is our own.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_formats()) as image:
                _check_size(name, image.size)
                return read(image)
    except (UserError, PermissionError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too large", f"image has over {MAX_PIXELS // 10**6} megapixels: {name}"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("wrong type", f"not an image of a known format: {name}") from error
    except _DAMAGE as error:
        shown = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "truncated" if "truncated" in shown else "undecodable"
        raise ImageError(reason, f"image is truncated or damaged ({shown}): {name}") from error


@functools.cache
def _formats() -> list[str]:
    Image.init()
    known = [name for name in Image.ID if name not in _UNSAFE_FORMATS]
    return sorted(known, key=lambda name: name not in _USUAL_FORMATS)


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too large",
            f"image has {width} x {height} = {width * height / 1e6:.0f} megapixels, "
            f"at most {MAX_PIXELS // 10**6} are read: {name}",
        )
    if width * height == 0:
        raise ImageError("undecodable", f"image has no pixels ({width} x {height}): {name}")


def _to_rgb(image: Image.Image) -> Rgb:
    image.load()
    turned = _UPRIGHT.get(_orientation(image))
    if turned is not None:
        image = image.transpose(turned)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey_to_8_bits(np.asarray(image))[..., None], 3, axis=-1)
    if "transparency" in image.info or "A" in image.mode or "a" in image.mode:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> Any:
    """EXIF's; 1, which is upright, where EXIF cannot be read: the pixels may be sound."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1


def _grey_to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Integers by their full 16-bit range, floats by 0..1 or, where they exceed it, 0..255."""
    values = grey.astype(np.float64)
    if np.issubdtype(grey.dtype, np.integer):
        values = values / 257.0
    elif np.nanmax(values) <= 1.0:
        values = values * 255.0
    return np.nan_to_num(values, nan=0.0).clip(0, 255).round().astype(np.uint8)


def resize(image_HWC: Rgb, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes to a square without cropping: bicubic, antialiased, as Pillow does it (SPEC 1)."""
    return np.array(Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BICUBIC))


def normalize(image: UInt8[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """8-bit RGB to the encoder's input: float32, CLIP's mean and deviation (SPEC 1)."""
    return (image.astype(np.float32) / np.float32(255) - MEAN) / STD


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Changes that keep what a picture shows, and so its captions, true.

    Attributes:
      shift: largest shift either way, as a share of the side.
      scale: largest relative change of size either way.
      background: probability of a light colour instead of white behind the picture.
      blur: in stage zero, probability of a picture that lost its fine detail (`soften`).
    """

    shift: float = 0.06
    scale: float = 0.1
    background: float = 0.5
    blur: float = 0.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise UserError(f"config.data.augment.{name} must lie in 0..1, got {value}")
        if self.scale >= 1:
            raise UserError(f"config.data.augment.scale must be under 1, got {self.scale}")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> AugmentConfig:
        """From `config.data.augment`."""
        return cls(**dict(fields.items()))


def augment(
    image_HWC: Rgb,
    alpha_HW: Alpha,
    rng: np.random.Generator,
    config: AugmentConfig,
    size: int,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Shifts and scales a picture a little, resizes it and may colour its background.

    Args:
      image_HWC: uint8 [H, W, 3], composited on white.
      alpha_HW: uint8 [H, W], 255 where the picture is opaque.
      rng: decides; the same number of draws whatever the config.
      config: how much.
      size: side of the result.

    Returns:
      uint8 [size, size, 3].
    """
    zoom, right, down, coloured = rng.uniform((-1, -1, -1, 0), (1, 1, 1, 1))
    colour = rng.integers(_LIGHTEST, 256, 3)
    height, width = alpha_HW.shape
    zoomed = 1.0 + config.scale * zoom
    box = _box(width, height, zoomed, config.shift * right, config.shift * down)
    # One resampling moves, scales and resizes colours and alpha together. The mode RGBX keeps
    # Pillow from multiplying by alpha: these colours are composited already.
    margin = math.ceil(max(0.0, -min(box), box[2] - width, box[3] - height))
    padded = np.zeros((height + 2 * margin, width + 2 * margin, 4), np.uint8)
    padded[..., :3] = 255
    inner = padded[margin : margin + height, margin : margin + width]
    inner[..., :3] = image_HWC
    inner[..., 3] = alpha_HW
    source = Image.frombuffer("RGBX", padded.shape[1::-1], padded, "raw", "RGBX", 0, 1)
    moved = source.resize(
        (size, size),
        Image.Resampling.BICUBIC,
        box=tuple(edge + margin for edge in box),  # type: ignore[arg-type]
    )
    result = np.array(moved)
    if coloured >= config.background:
        return np.ascontiguousarray(result[..., :3])
    return _recolour(result[..., :3], result[..., 3], colour)


def crop(
    image_HWC: Rgb, rng: np.random.Generator, config: AugmentConfig, size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes a photograph's greater part: nothing but the photograph is ever seen.

    Args:
      image_HWC: uint8 [H, W, 3].
      rng: decides; the same number of draws whatever the config.
      config: how much: up to `scale` of each side is cut off, anywhere.
      size: side of the result.

    Returns:
      uint8 [size, size, 3].
    """
    cut, x, y = rng.uniform(size=3)
    height, width = image_HWC.shape[:2]
    kept = 1.0 - config.scale * cut
    left, upper = (1 - kept) * width * x, (1 - kept) * height * y
    box = (left, upper, left + kept * width, upper + kept * height)
    image = Image.fromarray(image_HWC)
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def soften(
    image_HWC: Rgb, rng: np.random.Generator, config: AugmentConfig
) -> UInt8[np.ndarray, "H W 3"]:
    """Takes fine detail off some pictures, so that an embedding rests on what a drawing shows.

    Args:
      image_HWC: uint8 [H, W, 3].
      rng: decides; the same number of draws whatever the config.
      config: `blur`, the probability.

    Returns:
      The picture, or what is left of it after a size of a fifth to a half.
    """
    chance, share = rng.uniform((0, 0.2), (1, 0.5))
    if chance >= config.blur:
        return image_HWC
    height, width = image_HWC.shape[:2]
    less = (max(1, round(width * share)), max(1, round(height * share)))
    small = Image.fromarray(image_HWC).resize(less, Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def _box(
    width: int, height: int, zoomed: float, right: float, down: float
) -> tuple[float, float, float, float]:
    """The part of the picture's plane that fills the result: left, upper, right, lower."""
    x, y = width * (0.5 - right / zoomed), height * (0.5 - down / zoomed)
    half_x, half_y = width / zoomed / 2, height / zoomed / 2
    return x - half_x, y - half_y, x + half_x, y + half_y


def _recolour(white_HWC: Rgb, alpha_HW: Alpha, colour: np.ndarray) -> Rgb:
    """Takes a picture off white and puts it on `colour`: exact, for compositing is linear."""
    through = 255 - alpha_HW.astype(np.uint32)
    taken = (through[..., None] * (255 - colour).astype(np.uint32) + 127) // 255
    return (white_HWC - np.minimum(taken, white_HWC)).astype(np.uint8)
