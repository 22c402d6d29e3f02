"""Arrays written in pieces are what orbax itself reads."""

import math

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavit_jax.convert import store
from lavit_jax.convert.forms import Piece
from lavit_jax.convert.store import ArrayInfo, Writer

ARRAYS = {
    "a/blocks/kernel": ArrayInfo((3, 2, 4), "bfloat16"),
    "a/bias": ArrayInfo((5,), "float32"),
    "b/zeros": ArrayInfo((2, 2), "float32"),
    "b/scalar": ArrayInfo((), "float32"),
}


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    made = {path: np.float32(rng.normal(size=a.shape)) for path, a in ARRAYS.items()}
    return made | {"b/zeros": np.zeros((2, 2), np.float32)}


@pytest.fixture(params=[1, store.PENDING_BYTES])
def written(request, tmp_path, values, monkeypatch):
    monkeypatch.setattr(store, "PENDING_BYTES", request.param)
    writer = Writer(tmp_path / "params", ARRAYS)
    for block in (1, 2, 0):
        writer.write(Piece("a/blocks/kernel", block, values["a/blocks/kernel"][block]))
    writer.write(Piece("b/zeros", None, values["b/zeros"]))
    writer.write(Piece("a/bias", None, values["a/bias"]))
    writer.write(Piece("b/scalar", None, np.asarray(values["b/scalar"])))
    writer.close()
    return tmp_path / "params"


def test_orbax_reads_what_was_written(written, values):
    found = ocp.PyTreeCheckpointer().restore(written)
    kernel = values["a/blocks/kernel"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found["a"]["blocks"]["kernel"], kernel)
    np.testing.assert_array_equal(found["a"]["bias"], values["a/bias"])
    np.testing.assert_array_equal(found["b"]["zeros"], values["b/zeros"])
    assert found["b"]["scalar"] == values["b/scalar"]


def test_leaves_are_read_by_block_and_whole(written, values):
    tree = store.nested(store.open_leaves(written, {path: path for path in ARRAYS}))
    kernel = values["a/blocks/kernel"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(tree["a"]["blocks"]["kernel"][1], kernel[1], strict=True)
    np.testing.assert_array_equal(np.asarray(tree["a"]["blocks"]["kernel"]), kernel, strict=True)


@given(
    shape=st.lists(st.integers(1, 20000), min_size=1, max_size=4),
    itemsize=st.sampled_from([2, 4]),
)
def test_chunks_are_small_and_never_span_blocks(shape, itemsize):
    chunk = store.chunks(tuple(shape), itemsize)
    assert math.prod(chunk) * itemsize <= store.CHUNK_BYTES
    assert all(1 <= part <= whole for part, whole in zip(chunk, shape, strict=True))
    if len(shape) > 2:
        assert chunk[0] == 1


@given(
    shape=st.lists(st.integers(1, 20000), min_size=1, max_size=3),
    itemsize=st.sampled_from([2, 4]),
)
def test_slabs_are_whole_chunks_and_cover_everything_once(shape, itemsize):
    chunk = store.chunks((1, *shape), itemsize)[1:] if len(shape) > 1 else [shape[0]]
    found = list(store.slabs(tuple(shape), chunk, itemsize))
    axis = len(found[0]) - 1
    ranges = [slab[axis] for slab in found]
    assert [r.start for r in ranges] == [0, *(r.stop for r in ranges[:-1])]
    assert ranges[-1].stop == shape[axis]
    assert all(r.start % chunk[axis] == 0 for r in ranges)
    others = itemsize * math.prod(shape) // shape[axis]
    for r in ranges:
        assert (r.stop - r.start) * others <= max(store.PENDING_BYTES, chunk[axis] * others)


def test_the_slabs_of_a_language_models_head_are_small():
    head = (4096, 48386)
    for slab in store.slabs(head, store.chunks(head, 4), 4):
        assert np.broadcast_to(np.float32(0), head)[slab].nbytes <= store.PENDING_BYTES
