import numpy as np
import pytest
from PIL import Image

from lavit_jax.report import figures


def checkerboard(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def keep_only(index: int, patches: int = 64) -> np.ndarray:
    keep = np.zeros(patches, np.uint8)
    keep[index] = 1
    return keep


@pytest.mark.parametrize("size", [(64, 64), (72, 72), (30, 500), (500, 30), (900, 700)])
def test_overlay_is_large_enough_and_keeps_the_pictures_shape(size):
    overlay = figures.kept_overlay(checkerboard(*size), keep_only(3))
    assert overlay.dtype == np.uint8
    assert min(overlay.shape[:2]) >= 448
    assert overlay.shape[0] / overlay.shape[1] == pytest.approx(size[0] / size[1], rel=0.1)


def test_overlay_of_a_huge_picture_is_shrunk():
    assert max(figures.kept_overlay(checkerboard(4000, 2000), keep_only(0)).shape) < 1700


def test_kept_patch_stays_as_it_is_inside_its_frame():
    image = np.full((448, 448, 3), (200, 30, 60), np.uint8)
    overlay = figures.kept_overlay(image, keep_only(9))  # second row, second column
    inside, frame, dropped = overlay[84, 84], overlay[56, 84], overlay[28, 28]
    np.testing.assert_array_equal(inside, (200, 30, 60))
    np.testing.assert_array_equal(frame, figures.BORDER)
    assert len(set(dropped.tolist())) == 1, "dropped patches are grey"
    assert dropped[0] > 150, "dropped patches are washed out"


def test_neighbouring_kept_patches_share_one_frame():
    image = np.zeros((448, 448, 3), np.uint8)
    overlay = figures.kept_overlay(image, keep_only(0) + keep_only(1))
    np.testing.assert_array_equal(overlay[28, 56], (0, 0, 0))


def test_overlay_shows_nothing_kept_and_all_kept():
    image = checkerboard(448, 448)
    assert (figures.kept_overlay(image, np.zeros(64)) != image).any()
    everything = figures.kept_overlay(image, np.ones(64, bool))
    np.testing.assert_array_equal(everything[10:-10, 10:-10], image[10:-10, 10:-10])


def test_patches_must_form_a_square():
    with pytest.raises(ValueError, match="got 60"):
        figures.kept_overlay(checkerboard(64, 64), np.ones(60))


def test_contact_sheet_holds_every_picture():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [np.full((20, 20, 3), colour, np.uint8) for colour in colours]
    sheet = figures.contact_sheet(pictures, cell=40, gap=4)
    assert sheet.shape == (2 * 44 + 4, 2 * 44 + 4, 3)
    for row, column, colour in ((24, 24, 0), (24, 68, 1), (68, 24, 2)):
        np.testing.assert_array_equal(sheet[row, column], colours[colour])
    np.testing.assert_array_equal(sheet[68, 68], (255, 255, 255))


def test_contact_sheet_fits_pictures_without_stretching():
    sheet = figures.contact_sheet([np.zeros((10, 40, 3), np.uint8)], cell=80, gap=0)
    dark = (sheet < 128).all(axis=-1)
    assert (dark.any(axis=1).sum(), dark.any(axis=0).sum()) == (20, 80)


def test_long_labels_wrap_and_are_cut():
    pictures = [checkerboard(8, 8)] * 2
    short = figures.contact_sheet(pictures, ["a", "b"])
    long = figures.contact_sheet(pictures, ["word " * 40, "unbreakable" * 30])
    assert short.shape[1] == long.shape[1]
    assert short.shape[0] < long.shape[0] < short.shape[0] + 60


def test_contact_sheet_refuses_what_makes_none():
    with pytest.raises(ValueError, match="at least one"):
        figures.contact_sheet([])
    with pytest.raises(ValueError, match="1 pictures and 2 labels"):
        figures.contact_sheet([checkerboard(8, 8)], ["a", "b"])


def test_saved_picture_reads_back_and_leaves_nothing_beside_it(tmp_path):
    image = checkerboard(9, 5)
    figures.save_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
