"""Our parameters on disk, written and read a piece at a time.

What is written is an orbax checkpoint (OCDBT) like any other. Orbax itself writes whole arrays
only, and a stacked kernel of a 7B model is 6 GB: here orbax lays out the checkpoint with a number
in each array's place, and the arrays then take these places block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lavit_jax import disk
from lavit_jax.convert.forms import Piece, Shape

DIRECTORY = "params"
CHUNK_BYTES = 16 << 20  # stored and read together; sharded restores read no more than they need
PENDING_BYTES = 128 << 20  # being written at a time


class ArrayInfo(NamedTuple):
    """Shape and dtype of one of our arrays."""

    shape: Shape
    dtype: str


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by path ("module/submodule/leaf") as a tree."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def numpy_dtype(name: str) -> np.dtype:
    """numpy's dtype of a name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Writer:
    """Arrays that come in pieces, to a checkpoint of them all; call `close` at the end.

    Args:
      directory: of the checkpoint; must not exist.
      arrays: what will come, by path.
    """

    def __init__(self, directory: Path, arrays: Mapping[str, ArrayInfo]) -> None:
        import orbax.checkpoint as ocp

        disk.hush_orbax()
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(
                directory.absolute(), nested(dict.fromkeys(arrays, np.zeros(1, np.float32)))
            )
        specs = {path: _creation(directory, path, array) for path, array in arrays.items()}
        self._arrays = _open_all(specs)
        self._chunks = {path: spec["metadata"]["chunks"] for path, spec in specs.items()}
        self._pending: list[Any] = []
        self._pending_bytes = 0

    def write(self, piece: Piece) -> None:
        """Starts writing a piece, converted to the dtype of its array."""
        array, chunk = self._arrays[piece.path], self._chunks[piece.path]
        if piece.block is not None:
            array, chunk = array[piece.block], chunk[1:]
        for part in slabs(piece.value.shape, chunk, array.dtype.numpy_dtype.itemsize):
            value = np.asarray(piece.value[part], array.dtype.numpy_dtype)
            if self._pending_bytes + value.nbytes > PENDING_BYTES:
                self.close()
            self._pending.append(array[part].write(value))
            self._pending_bytes += value.nbytes

    def close(self) -> None:
        """Blocks until everything is on disk, or whatever is not has failed."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        for error in [write.exception() for write in pending]:
            if error is not None:
                raise error


def slabs(shape: Shape, chunk: Sequence[int], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Indices of slabs along the axis with most chunks: whole chunks, `PENDING_BYTES` at most."""
    if not shape:
        yield ()
        return
    axis = max(range(len(shape)), key=lambda axis: -(-shape[axis] // chunk[axis]))
    step_bytes = itemsize * math.prod(shape) * chunk[axis] // shape[axis]
    step = max(1, PENDING_BYTES // step_bytes) * chunk[axis]
    before = (slice(None),) * axis
    for start in range(0, shape[axis], step):
        yield (*before, slice(start, min(start + step, shape[axis])))


def _creation(directory: Path, path: str, array: ArrayInfo) -> dict[str, Any]:
    dtype = numpy_dtype(array.dtype)
    metadata = {
        "shape": array.shape,
        "chunks": chunks(array.shape, dtype.itemsize),
        "dtype": "bfloat16" if array.dtype == "bfloat16" else dtype.str,
        "compressor": {"id": "zstd", "level": 1},
    }
    return _spec(directory, path) | {
        "metadata": metadata,
        "create": True,
        "delete_existing": True,
        "store_data_equal_to_fill_value": True,
    }


def _spec(directory: Path, path: str) -> dict[str, Any]:
    """Where orbax has an array."""
    return {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": f"file://{directory.absolute()}",
            "path": f"{path.replace('/', '.')}/",
        },
    }


def _open_all(specs: Mapping[str, Any]) -> dict[str, Any]:
    import tensorstore as ts

    context = ts.Context()
    opening = {path: ts.open(spec, context=context) for path, spec in specs.items()}
    return {path: array.result() for path, array in opening.items()}


def chunks(shape: Shape, itemsize: int) -> list[int]:
    """One block of a stack, and its longest axes halved until a chunk is small."""
    size = [1, *shape[1:]] if len(shape) > 2 else list(shape)
    while math.prod(size) * itemsize > CHUNK_BYTES:
        longest = max(range(len(size)), key=lambda axis: size[axis])
        size[longest] = -(-size[longest] // 2)
    return size


class Leaf:
    """An array on disk that is read when indexed by a block, or asked for as a numpy array."""

    def __init__(self, array: Any) -> None:
        self._array = array

    @property
    def shape(self) -> Shape:
        return tuple(self._array.shape)

    def __getitem__(self, block: int) -> np.ndarray:
        return self._array[block].read().result()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._array.read().result(), dtype)


def open_leaves(directory: Path, places: Mapping[str, str]) -> dict[str, Leaf]:
    """Arrays of a checkpoint, which read themselves, by any name of where they are in it."""
    specs = {name: _spec(directory, place) for name, place in places.items()}
    return {name: Leaf(array) for name, array in _open_all(specs).items()}
