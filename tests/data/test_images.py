import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lavit_jax.data import images
from lavit_jax.data.images import AugmentConfig
from lavit_jax.errors import UserError

WHITE = (255, 255, 255)
RED = (255, 0, 0)


def write_png(
    path: Path, width: int, height: int, depth: int, colour: int, rows: bytes, end: bool = True
) -> Path:
    """A PNG with any header, whatever its data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(data + (chunk(b"IEND", b"") if end else b""))
    return path


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def one_line_error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        images.load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_rgb_is_read_as_it_is(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = saved(Image.fromarray(array), tmp_path / "a.png")
    loaded = images.load_image(path)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, array)
    np.testing.assert_array_equal(images.load_image(str(path)), array)


def test_one_pixel_works(tmp_path):
    path = saved(Image.new("RGB", (1, 1), RED), tmp_path / "a.png")
    image = images.load_image(path)
    assert image.tolist() == [[list(RED)]]
    assert images.resize(image, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 100), ("LA", (100, 255))])
def test_grey_becomes_three_equal_channels(tmp_path, mode, colour):
    image = images.load_image(saved(Image.new(mode, (4, 3), colour), tmp_path / "a.png"))
    value = 255 if mode == "1" else 100
    np.testing.assert_array_equal(image, np.full((3, 4, 3), value))


def test_half_transparent_grey_is_on_white(tmp_path):
    image = images.load_image(saved(Image.new("LA", (2, 2), (0, 0)), tmp_path / "a.png"))
    np.testing.assert_array_equal(image, np.full((2, 2, 3), 255))


def test_transparent_pixels_are_on_white(tmp_path):
    rgba = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    left, middle, right = images.load_image(saved(rgba, tmp_path / "a.png"))[0].tolist()
    assert left == list(WHITE)
    assert middle == list(RED)
    assert right == [127, 127, 127]


def test_palette_with_transparency_is_on_white(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    path = saved(palette, tmp_path / "a.png", transparency=0)
    assert images.load_image(path)[0].tolist() == [list(WHITE), list(RED)]


def test_transparent_colour_key_is_on_white(tmp_path):
    path = saved(Image.new("RGB", (1, 1), RED), tmp_path / "a.png", transparency=RED)
    assert images.load_image(path)[0].tolist() == [list(WHITE)]


def test_cmyk_jpeg_is_converted(tmp_path):
    path = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg")
    red, green, blue = images.load_image(path).reshape(-1, 3).mean(axis=0)
    assert red > 240
    assert max(green, blue) < 15


def test_16_bit_grey_keeps_its_range(tmp_path):
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    path = saved(Image.fromarray(grey), tmp_path / "a.png")
    assert images.load_image(path)[0, :, 0].tolist() == [0, 100, 255]


def test_16_bit_colour_keeps_its_range(tmp_path):
    row = b"\x00" + struct.pack(">6H", 65535, 0, 257 * 100, 0, 0, 0)
    path = write_png(tmp_path / "a.png", 2, 1, depth=16, colour=2, rows=row)
    assert images.load_image(path)[0].tolist() == [[255, 0, 100], [0, 0, 0]]


def test_float_grey_is_read_by_its_range(tmp_path):
    path = saved(Image.fromarray(np.array([[0.0, 1.0]], np.float32)), tmp_path / "a.tiff")
    assert images.load_image(path)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    path = saved(frames[0], tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
    red, green, blue = images.load_image(path).reshape(-1, 3).mean(axis=0)
    assert red > 240
    assert max(green, blue) < 15


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.new("RGB", (8, 4), RED), tmp_path / "a.jpg", exif=exif)
    assert images.load_image(path).shape == (8, 4, 3)


def test_a_missing_file_is_named(tmp_path):
    assert "not found" in one_line_error(tmp_path / "nowhere.png")


def test_a_directory_is_named(tmp_path):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert "directory" in one_line_error(folder)


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    assert "0 bytes" in one_line_error(path)


def test_a_text_file_is_no_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("hello")
    assert "not an image" in one_line_error(path)


def test_postscript_is_not_run(tmp_path):
    path = tmp_path / "a.eps"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n")
    assert "not an image" in one_line_error(path)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{kind}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    one_line_error(path)


@given(
    st.binary(min_size=1, max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]),
)
@settings(max_examples=60, deadline=None)
def test_no_garbage_raises_anything_but_a_user_error(tmp_path_factory, body, magic):
    path = tmp_path_factory.mktemp("garbage") / "a.png"
    path.write_bytes(magic + body)
    try:
        images.load_image(path)
    except UserError as error:
        assert "a.png" in str(error)


@pytest.mark.parametrize("side", [10_001, 14_000, 60_000])
def test_a_huge_image_is_told_from_its_header(tmp_path, side):
    path = write_png(tmp_path / "a.png", side, side, depth=8, colour=0, rows=b"")
    assert "megapixels" in one_line_error(path)


def test_below_the_limit_pillow_does_not_warn(tmp_path):
    path = write_png(tmp_path / "a.png", 9_900, 9_900, depth=1, colour=0, rows=b"")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert "truncated" in one_line_error(path)
    assert not warned


def test_resize_is_pillows_antialiased_bicubic_without_crop():
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    expected = Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images.resize(image, 24), np.array(expected))


def test_normalize_uses_clips_statistics():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    normal = images.normalize(pixels)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal[0, 0, 0], -0.48145466 / 0.26862954, rtol=1e-6)
    np.testing.assert_allclose(normal[0, 1, 2], (1 - 0.40821073) / 0.27577711, rtol=1e-6)


def disc(side: int = 72) -> tuple[np.ndarray, np.ndarray]:
    """A red disc with soft edges on white, and its alpha."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    alpha = np.clip(side / 3 - np.hypot(x, y) + 0.5, 0, 1)[..., None]
    image = alpha * np.array(RED) + (1 - alpha) * 255
    return image.round().astype(np.uint8), (alpha[..., 0] * 255).round().astype(np.uint8)


def test_no_augmentation_is_just_resizing():
    image, alpha = disc()
    still = images.augment(image, alpha, np.random.default_rng(0), AugmentConfig(0, 0, 0), 64)
    np.testing.assert_array_equal(still, images.resize(image, 64))


def test_the_background_changes_colour_and_the_picture_does_not():
    image, alpha = disc()
    coloured = images.augment(image, alpha, np.random.default_rng(0), AugmentConfig(0, 0, 1), 72)
    corner = coloured[0, 0]
    assert corner.min() >= 200
    assert corner.tolist() != list(WHITE)
    assert coloured[36, 36].tolist() == list(RED)
    through = 1 - alpha[..., None] / 255
    expected = image - through * (255 - corner.astype(float))
    assert np.abs(coloured - expected).max() <= 1.5


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_shifted_picture_moves_by_what_the_config_allows(seed):
    image, alpha = disc()
    config = AugmentConfig(shift=0.1, scale=0.2, background=0)
    moved = images.augment(image, alpha, np.random.default_rng(seed), config, 72)
    again = images.augment(image, alpha, np.random.default_rng(seed), config, 72)
    np.testing.assert_array_equal(moved, again)
    ink = 255.0 - moved[..., 1]
    y, x = np.mgrid[:72, :72]
    for axis in (x, y):
        assert abs((ink * axis).sum() / ink.sum() - 35.5) <= 0.1 * 72 + 0.1
    area = ink.sum() / (255.0 - image[..., 1].astype(float)).sum()
    assert 0.8**2 - 0.02 <= area <= 1.2**2 + 0.02
    assert tuple(moved[0, 0]) == WHITE


def test_a_softened_picture_keeps_its_colours_and_loses_its_edges():
    image, _ = disc()
    soft = images.soften(image, np.random.default_rng(0), AugmentConfig(blur=1.0))
    assert soft.shape == image.shape
    np.testing.assert_allclose(soft.mean((0, 1)), image.mean((0, 1)), atol=2)

    def edges(picture):
        return np.abs(np.diff(picture.astype(int), axis=0)).max()

    assert edges(soft) < 0.7 * edges(image)


def test_pictures_are_softened_as_often_as_the_config_says():
    image, _ = disc()
    rng, config = np.random.default_rng(0), AugmentConfig(blur=0.3)
    changed = [(images.soften(image, rng, config) != image).any() for _ in range(500)]
    assert abs(np.mean(changed) - 0.3) < 0.07
    assert not (images.soften(image, rng, AugmentConfig()) != image).any()


def test_augmentation_settings_are_checked():
    with pytest.raises(UserError, match=r"config\.data\.augment\.shift"):
        AugmentConfig(shift=2.0)
    with pytest.raises(UserError, match=r"augment\.scale"):
        AugmentConfig(scale=1.0)


def png_with(path: Path, kind: bytes, body: bytes) -> Path:
    """A sound PNG with one more chunk before its pixels."""
    chunk = struct.pack(">I", len(body)) + kind + body
    chunk += struct.pack(">I", zlib.crc32(kind + body))
    data = saved(Image.new("RGB", (9, 8), RED), path).read_bytes()
    path.write_bytes(data[:33] + chunk + data[33:])
    return path


@pytest.mark.parametrize("body", [b"\0", b"junk", b"II*\0\xff\xff", b"MM\0*\0\0\0\x08" * 3])
def test_exif_that_cannot_be_read_turns_nothing(tmp_path, body):
    path = png_with(tmp_path / "a.png", b"eXIf", body)
    assert images.check_image(path.read_bytes(), "a") == (9, 8)
    assert (images.load_image(path) == RED).all()
    assert images.load_image(path).shape == (8, 9, 3)


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_undone_as_pillow_does_it(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(images.load_image(path), expected)


def test_what_is_checked_is_all_that_reading_does(monkeypatch):
    """A fault of any of its steps is found when a data set is prepared."""

    def broken(_):
        raise ValueError("broken")

    buffer = io.BytesIO()
    Image.new("I;16", (9, 8)).save(buffer, "PNG")
    monkeypatch.setattr(images, "_grey_to_8_bits", broken)
    for read in (images.check_image, images.decode_image):
        with pytest.raises(images.ImageError, match="broken"):
            read(buffer.getvalue(), "a")
