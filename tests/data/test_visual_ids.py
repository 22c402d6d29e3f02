import numpy as np
import pytest

from lavit_jax.data.visual_ids import VisualIdCache
from lavit_jax.errors import UserError

KEEP = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], np.uint8)
CODES = np.array([[5, 7, 0], [9, 0, 0]])


def test_codes_of_an_image_are_those_of_its_kept_patches():
    cache = VisualIdCache(CODES, KEEP)
    assert cache.counts_M.tolist() == [2, 1]
    assert cache.codes(0).tolist() == [5, 7]
    assert cache.codes(1).tolist() == [9]
    assert len(cache) == 2


def test_saving_and_loading_keeps_everything(tmp_path):
    path = tmp_path / "visual_ids.npz"
    VisualIdCache(CODES, KEEP, "stamp", ("é", "b\0")).save(path)
    cache = VisualIdCache.load(path)
    np.testing.assert_array_equal(cache.codes_ML, CODES)
    np.testing.assert_array_equal(cache.keep_MN, KEEP)
    assert cache.stamp == "stamp"
    assert [cache.key(image) for image in (0, 1)] == ["é", "b\0"]
    assert [file.name for file in tmp_path.iterdir()] == ["visual_ids.npz"]


def test_small_codes_are_stored_small_and_large_ones_kept():
    assert VisualIdCache(CODES, KEEP).codes_ML.dtype == np.uint16
    large = VisualIdCache(CODES + 70_000, KEEP)
    assert large.codes(1).tolist() == [70_009]


def test_more_kept_patches_than_codes_are_refused():
    with pytest.raises(ValueError, match="keeps 2 patches but has 1 codes"):
        VisualIdCache(CODES[:, :1], KEEP)


def test_arrays_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="expected codes"):
        VisualIdCache(CODES[:1], KEEP)
    with pytest.raises(ValueError, match="a key for each of 2 images, got 1"):
        VisualIdCache(CODES, KEEP, "stamp", ("a",))
    with pytest.raises(ValueError, match="0 or 1"):
        VisualIdCache(CODES, KEEP * 2)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    path = tmp_path / "visual_ids.npz"
    with pytest.raises(UserError, match="not found"):
        VisualIdCache.load(path)
    VisualIdCache(CODES, KEEP).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"damaged.*visual_ids\.npz"):
        VisualIdCache.load(path)
