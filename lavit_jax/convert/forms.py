"""How one published tensor becomes parameters of ours, exactly and invertibly.

A table is a tuple of `Entry`; `names.py` holds one per module. Everything here moves numbers
without changing them, so that writing back what was read gives the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Shape = tuple[int, ...]


class Transform(Protocol):
    """How a published tensor becomes arrays of ours, and back."""

    @property
    def published(self) -> Shape:
        """Shape of the published tensor."""
        ...

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of each of our arrays."""
        ...

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The published tensor as our arrays."""
        ...

    def join(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Exact inverse of `split`."""
        ...


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

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (self.ours,) * self.parts

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        pieces = np.split(tensor, self.parts) if self.parts > 1 else [tensor]
        return [
            piece.reshape(self.view).transpose(self.order).reshape(self.ours) for piece in pieces
        ]

    def join(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        permuted = tuple(self.view[axis] for axis in self.order)
        back = np.argsort(self.order)
        piece = (self.published[0] // self.parts, *self.published[1:])
        pieces = [a.reshape(permuted).transpose(back).reshape(piece) for a in arrays]
        return np.ascontiguousarray(np.concatenate(pieces) if self.parts > 1 else pieces[0])


@dataclasses.dataclass(frozen=True)
class Tied:
    """An embedding [V, E] that is the head too: as it is, and as a kernel [E, V].

    Attributes:
      published: shape of the embedding.
    """

    published: Shape

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.published, self.published[::-1]

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        return [tensor, tensor.T]

    def join(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(arrays[0])


@dataclasses.dataclass(frozen=True)
class Grown:
    """A vocabulary that gains rows for what the published model has no words for.

    Attributes:
      rows: of the published tensor; those after them are created.
      form: of the tensor with all rows.
      seed: of the created rows.
    """

    rows: int
    form: Transform
    seed: int

    @property
    def published(self) -> Shape:
        return (self.rows, *self.form.published[1:])

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self.form.shapes

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        whole = np.empty(self.form.published, np.float32)
        whole[: self.rows] = tensor
        whole[self.rows :] = created_rows(whole[: self.rows], len(whole) - self.rows, self.seed)
        return self.form.split(whole)

    def join(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.ascontiguousarray(self.form.join(arrays)[: self.rows])


def created_rows(rows_TE: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random rows with the mean and the spread of those there, each dimension by itself.

    Args:
      rows_TE: float32 [T, E].
      count: how many to create.
      seed: the same seed gives the same rows.

    Returns:
      float32 [count, E].
    """
    mean = rows_TE.mean(axis=0, dtype=np.float64)
    # Some rows at a time: a float64 copy of a 7B model's embedding is 1 GB.
    square = sum(
        ((rows_TE[start : start + 1024] - mean) ** 2).sum(axis=0)
        for start in range(0, len(rows_TE), 1024)
    )
    spread = np.sqrt(square / len(rows_TE))
    made = np.random.default_rng(seed).standard_normal((count, len(mean)), np.float32)
    made *= spread.astype(np.float32)
    made += mean.astype(np.float32)
    return made


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
    form: Transform
    blocks: int = 0
    group: str = ""

    @property
    def names(self) -> list[str]:
        """All published names this entry stands for."""
        if not self.blocks:
            return [self.name]
        return [self.name.format(i=i) for i in range(self.blocks)]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of each of our arrays, stacked."""
        if not self.blocks:
            return self.form.shapes
        return tuple((self.blocks, *shape) for shape in self.form.shapes)


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


def arrays_of(table: Table) -> dict[str, Shape]:
    """Path of each of our arrays to its shape, stacked."""
    return {path: shape for e in table for path, shape in zip(e.paths, e.shapes)}


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
    shapes = arrays_of(table)
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
    for name, place in places(table).items():
        if place.entry.group and all(_find(tree, path) is None for path in place.entry.paths):
            continue
        yield name, tensor(name, place, tree)


def tensor(name: str, place: Place, tree: Mapping[str, Any]) -> np.ndarray:
    """One published tensor from our tree, whose leaves may read themselves when indexed.

    Raises:
      ValueError: the tree lacks an array it is made of.
    """
    entry, block = place
    arrays = [_find(tree, path) for path in entry.paths]
    absent = [p for p, array in zip(entry.paths, arrays) if array is None]
    if absent:
        raise ValueError(f"parameter tree: {absent[0]!r} is missing, needed for {name!r}")
    return entry.form.join([np.asarray(a if block is None else a[block]) for a in arrays])


def _find(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("/"):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node
