import gc
import json
import subprocess
import sys

import numpy as np
import pytest

from lavit_jax.data import images as image_data
from lavit_jax.data import packing, pipeline, views
from lavit_jax.data.pipeline import Readers
from lavit_jax.data.visual_ids import VisualIdCache
from lavit_jax.errors import UserError


@pytest.fixture
def open_batches(config, data_dir, tokenizer, cache):
    """Opens the batches of a phase; closes them at the end."""
    opened = []

    def open_kind(kind, batch_size=8, seed=0, **options):
        readers = Readers(**options)
        if kind == "images":
            made = pipeline.image_batches(config, data_dir, batch_size, seed, readers=readers)
        elif kind == "pairs":
            made = pipeline.pair_batches(
                config, data_dir, tokenizer, batch_size, seed, 16, readers=readers
            )
        else:
            made = pipeline.unified_batches(
                config, data_dir, tokenizer, cache, batch_size, seed, readers=readers
            )
        opened.append(made)
        return made

    yield open_kind
    for batches in opened:
        batches.close()


KINDS = ("images", "pairs", "unified")


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_image_batches_have_their_shapes(open_batches):
    batch = next(open_batches("images"))
    assert batch["images"].shape == (8, 32, 32, 3)
    assert batch["images"].dtype == np.uint8
    assert batch["index"].shape == (8,)
    assert batch["index"].dtype == np.int32


def test_pairs_have_a_caption_of_their_picture(open_batches, tokenizer, records):
    batches = open_batches("pairs", batch_size=32)
    canonical = 0
    for batch in take(batches, 10):
        assert batch["text"].shape == (32, 16)
        assert batch["text"].dtype == np.int32
        for index, ids in zip(batch["index"], batch["text"], strict=True):
            captions = records["train"][index]["captions"]
            end = ids.tolist().index(tokenizer.eos_id)
            assert not ids[end + 1 :].any()
            caption = tokenizer.decode(ids[:end].tolist())
            assert any(full.startswith(caption) for full in captions)
            canonical += caption == captions[0]
    assert 0.45 < canonical / 320 < 0.75


def test_a_long_text_loses_its_end_but_not_its_eos():
    assert views.ended([5, 6, 7, 8], 3).tolist() == [5, 6, 2]
    assert views.ended([5], 3).tolist() == [5, 2, 0]


def test_unified_batches_have_their_shapes(open_batches):
    batch = next(open_batches("unified", batch_size=4))
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "ids": ((4, 128), "int32"),
        "positions": ((4, 128), "int32"),
        "segment_ids": ((4, 128), "int32"),
        "loss": ((4, 128), "float32"),
        "feature": ((4, 128), "int32"),
        "images": ((4, 5, 32, 32, 3), "uint8"),
        "keep": ((4, 5, 16), "uint8"),
    }


def test_unified_features_point_at_kept_patches_of_their_slot(open_batches):
    for batch in take(open_batches("unified"), 3):
        for feature, keep in zip(batch["feature"], batch["keep"], strict=True):
            used = feature[feature >= 0]
            expected = [j * 16 + rank for j in range(5) for rank in range(keep[j].sum())]
            assert used.tolist() == expected


def test_unified_condition_images_are_the_variants(open_batches, config, data_dir, cache):
    images = pipeline.variants(config, data_dir, "train")
    known = {images[i].tobytes() for i in range(0, len(images))}
    batch = next(open_batches("unified"))
    used = batch["keep"].any(axis=-1)
    assert used.any()
    assert all(image.tobytes() in known for image in batch["images"][used])


def test_unified_rows_are_mostly_useful(open_batches, config):
    config.data.row_length, config.data.images_per_row = 256, 12
    shares = [packing.useful_share(b["segment_ids"]) for b in take(open_batches("unified"), 10)]
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_batches_depend_on_seed_and_step_only(open_batches, kind):
    straight = take(open_batches(kind), 4)
    for one, other in zip(straight, take(open_batches(kind, threads=0), 4), strict=True):
        assert_same(one, other)
    assert not np.array_equal(straight[0]["images"], next(open_batches(kind, seed=1))["images"])


def test_the_number_of_threads_does_not_matter(open_batches):
    for one, other in zip(
        take(open_batches("pairs", threads=1), 6),
        take(open_batches("pairs", threads=3), 6),
        strict=True,
    ):
        assert_same(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("done", [0, 1, 5])
def test_going_on_from_a_saved_state_gives_the_same_batches(open_batches, kind, done):
    batches = open_batches(kind, batch_size=4)
    take(batches, done)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 3)
    fresh = open_batches(kind, batch_size=4)
    for other in (fresh, batches):
        other.set_state(state)
        for one, again in zip(expected, take(other, 3), strict=True):
            assert_same(one, again)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("done", [0, 3])
def test_processes_share_one_global_batch_and_go_on_where_one_stood(open_batches, kind, done):
    def rows(batch):
        return [
            b"".join(batch[name][i].tobytes() for name in sorted(batch))
            for i in range(len(batch["images"]))
        ]

    alone, shares = open_batches(kind), [open_batches(kind, index=p, count=2) for p in range(2)]
    take(alone, done)
    state = json.loads(json.dumps(alone.get_state()))
    for share in shares:
        share.set_state(state)
    for _ in range(2):
        whole, first, second = next(alone), *map(next, shares)
        assert len(first["images"]) == 4
        assert sorted(rows(first) + rows(second)) == sorted(rows(whole))


def test_an_epoch_shows_every_picture_once(open_batches):
    batches = open_batches("images", batch_size=3509 // 29, threads=0)
    epochs = [np.concatenate([b["index"] for b in take(batches, 29)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(3509))
    assert (epochs[0] != epochs[1]).any()


def test_variants_are_fixed_and_the_first_is_the_plain_picture(config, data_dir, records):
    images = pipeline.variants(config, data_dir, "test_new")
    assert len(images) == 400
    np.testing.assert_array_equal(images[6], image_data.resize(records["test_new"][3]["image"], 32))
    np.testing.assert_array_equal(images[7], pipeline.variants(config, data_dir, "test_new")[7])
    assert (images[7] != images[6]).any()
    np.testing.assert_array_equal(images[-1], images[399])
    assert len(images[2:5]) == 3
    with pytest.raises(IndexError):
        images[400]
    config.seed = 1
    assert (pipeline.variants(config, data_dir, "test_new")[7] != images[7]).any()


def test_visual_ids_of_other_images_are_refused(config, data_dir, tokenizer, cache):
    fewer = VisualIdCache(cache.codes_ML[:10], cache.keep_MN[:10])
    with pytest.raises(UserError, match=r"visual_ids\.npz"):
        pipeline.unified_batches(config, data_dir, tokenizer, fewer, 4, 0)


def test_too_short_a_row_names_the_field_when_batches_are_asked_for(open_batches, config):
    config.data.row_length = 8
    with pytest.raises(UserError, match=r"config\.data\.row_length=8"):
        take(open_batches("unified"), 5)


def test_wrong_settings_are_named(open_batches, config, data_dir):
    with pytest.raises(UserError, match="batch_size=7 does not divide over 2"):
        open_batches("images", batch_size=7, count=2)
    config.data.variants = 0
    with pytest.raises(UserError, match=r"config\.data\.variants"):
        pipeline.variants(config, data_dir, "train")
    config.data.dataset = "cifar"
    with pytest.raises(UserError, match=r"config\.data\.dataset='cifar'"):
        open_batches("images")


def test_closed_batches_say_so(open_batches):
    batches = open_batches("unified")
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    gc.collect()


@pytest.mark.subprocess
def test_leaving_with_batches_open_says_nothing(data_dir):
    program = """
import sys
from lavit_jax.data.batches import Batches
from lavit_jax.data.packing import Limits, PackedRows
from lavit_jax.data.layout import plain_text, SpecialIds
import grain.python as grain
class Examples:
    def __getitem__(self, index):
        return plain_text(SpecialIds(10, 1), [3] * (index % 5))
rows = PackedRows(Examples(), Limits(16, 1)).map(len)
ahead = Batches(iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=2)))
next(ahead)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
