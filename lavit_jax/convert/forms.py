"""How one published tensor becomes parameters of ours, exactly and invertibly.

A table is a tuple of `Entry`; `names.py` holds one per module. Everything here moves numbers
without changing them, so that writing back what was read gives the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """Cut along the first axis, view, permute, reshape: all a published tensor ever needs.

    Attributes:
      published: shape of the published tensor.
      parts: equal pieces it is cut into along its first axis (3 for a fused qkv).
      view: shape in which each piece's axes are permuted.
      order: the permutation.
      ours: shape of each of our arrays.
    """

    published: Shape
    parts: int
    view: Shape
    order: tuple[int, ...]
    ours: Shape

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The published tensor as our arrays."""
        pieces = np.split(tensor, self.parts) if self.parts > 1 else [tensor]
        return [
            piece.reshape(self.view).transpose(self.order).reshape(self.ours) for piece in pieces
        ]

    def join(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Exact inverse of `split`."""
        permuted = tuple(self.view[axis] for axis in self.order)
        back = np.argsort(self.order)
        piece = (self.published[0] // self.parts, *self.published[1:])
        pieces = [a.reshape(permuted).transpose(back).reshape(piece) for a in arrays]
        return np.ascontiguousarray(np.concatenate(pieces) if self.parts > 1 else pieces[0])


LinearForm = Callable[[int, int], Form]


def linear(inputs: int, outputs: int) -> Form:
    """torch's Linear weight [out, in] to a kernel [in, out]."""
    return Form((outputs, inputs), 1, (outputs, inputs), (1, 0), (inputs, outputs))


def pointwise(inputs: int, outputs: int) -> Form:
    """1x1 convolution [out, in, 1, 1] to a kernel [in, out]."""
    return Form((outputs, inputs, 1, 1), 1, (outputs, inputs), (1, 0), (inputs, outputs))


def convolution(inputs: int, outputs: int, size: int) -> Form:
    """Convolution [out, in, s, s] to a kernel [s, s, in, out]."""
    shape = (outputs, inputs, size, size)
    return Form(shape, 1, shape, (2, 3, 1, 0), (size, size, inputs, outputs))


def same(*shape: int) -> Form:
    """The tensor as it is."""
    return reshaped(shape, shape)


def reshaped(published: Shape, ours: Shape) -> Form:
    """The same numbers in the same order under another shape."""
    return Form(published, 1, published, tuple(range(len(published))), ours)


def heads(inputs: int, count: int, width: int, parts: int = 1) -> Form:
    """Linear weight [parts * H * d, in] to `parts` kernels [in, H, d]."""
    view = (count, width, inputs)
    ours = (inputs, count, width)
    return Form((parts * count * width, inputs), parts, view, (2, 0, 1), ours)


def head_bias(count: int, width: int, parts: int = 1) -> Form:
    """Bias [parts * H * d] to `parts` biases [H, d]."""
    view = (count, width)
    return Form((parts * count * width,), parts, view, (0, 1), view)


def merge(outputs: int, count: int, width: int) -> Form:
    """Linear weight [out, H * d] to a kernel [H, d, out]."""
    view = (outputs, count, width)
    return Form((outputs, count * width), 1, view, (1, 2, 0), (count, width, outputs))


def patches(outputs: int, patch: int, channels: int = 3) -> Form:
    """Convolution [out, C, p, p] to a kernel over flat patches [p * p * C, out], rows first."""
    shape = (outputs, channels, patch, patch)
    return Form(shape, 1, shape, (2, 3, 1, 0), (patch * patch * channels, outputs))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published name, or one in every block.

    Attributes:
      name: published name, `{i}` standing for the block.
      paths: where its pieces live in our tree, as "module/submodule/leaf".
      form: how it is transformed.
      blocks: how many blocks have it, stacked along a new leading axis; 0 when not in a block.
      group: entries of one optional group may be missing together; "" when required.
    """

    name: str
    paths: tuple[str, ...]
    form: Form
    blocks: int = 0
    group: str = ""

    @property
    def names(self) -> list[str]:
        """All published names this entry stands for."""
        if not self.blocks:
            return [self.name]
        return [self.name.format(i=i) for i in range(self.blocks)]

    @property
    def shape(self) -> Shape:
        """Shape of each of our arrays, stacked."""
        return (self.blocks, *self.form.ours) if self.blocks else self.form.ours


Table = tuple[Entry, ...]


def under(entries: Iterable[Entry], name: str = "", path: str = "", group: str = "") -> Table:
    """The same entries with a prefix before published names and our paths."""
    return tuple(
        dataclasses.replace(
            entry,
            name=name + entry.name,
            paths=tuple(path + p for p in entry.paths),
            group=group or entry.group,
        )
        for entry in entries
    )


def stacked(entries: Iterable[Entry], blocks: int, name: str, path: str) -> Table:
    """Entries of one block repeated over all; `name` holds the `{i}`."""
    return tuple(dataclasses.replace(entry, blocks=blocks) for entry in under(entries, name, path))


class Place(NamedTuple):
    """Where a published name stands in a table: its entry, and the block (None: not in one)."""

    entry: Entry
    block: int | None


def places(table: Table) -> dict[str, Place]:
    """Published name to its place."""
    return {
        name: Place(entry, i if entry.blocks else None)
        for entry in table
        for i, name in enumerate(entry.names)
    }


class Piece(NamedTuple):
    """One array of ours, or one block's slice of it, as it comes from the source."""

    path: str
    block: int | None
    value: np.ndarray


def pieces(table: Table, tensors: Iterable[tuple[str, np.ndarray]]) -> Iterator[Piece]:
    """Turns named published tensors into pieces of our tree, one tensor at a time.

    Args:
      table: holds every name in `tensors`.
      tensors: name and value, in whatever order the source has them.
    """
    where = places(table)
    for name, tensor in tensors:
        entry, block = where[name]
        for path, value in zip(entry.paths, entry.form.split(tensor)):
            yield Piece(path, block, value)


def assemble(table: Table, parts: Iterable[Piece], dtype: Any = np.float32) -> dict[str, Any]:
    """Pieces to a nested dict of whole arrays of one dtype."""
    shapes = {path: entry.shape for entry in table for path in entry.paths}
    tree: dict[str, Any] = {}
    for path, block, value in parts:
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if block is None:
            node[leaf] = np.ascontiguousarray(value, dtype)
            continue
        if leaf not in node:
            node[leaf] = np.empty(shapes[path], dtype)
        node[leaf][block] = value
    return tree


def published(table: Table, tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Our tree back to published names and tensors, one at a time; inverse of `assemble`.

    Entries of an optional group that the tree does not hold are left out.
    """
    for entry in table:
        arrays = [_find(tree, path) for path in entry.paths]
        if entry.group and all(array is None for array in arrays):
            continue
        absent = [p for p, array in zip(entry.paths, arrays) if array is None]
        if absent:
            raise ValueError(f"parameter tree: {absent[0]!r} is missing, needed for {entry.name!r}")
        for i, name in enumerate(entry.names):
            ours = [np.asarray(a[i] if entry.blocks else a) for a in arrays]
            yield name, entry.form.join(ours)


def _find(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("/"):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node
