"""What a compiled program sends between chips, read from its text."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip

_OP = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<type>.*?) "
    r"(?P<kind>" + "|".join(KINDS) + r"|ragged-all-to-all)(?P<start>-start)?\((?P<rest>.*)$"
)
_SHAPE = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")
_NAME = re.compile(r'op_name="([^"]*)"')
# Between slices TPUs send through their hosts, each chip its part of what its slice has summed.
_SEND = re.compile(
    r"^\s*(?:ROOT )?%[\w.\-]+ = (?P<type>.*?) send\(.*xla_megascale_runtime.*"
    r'_xla_host_transfer_rendezvous="(?P<kind>' + "|".join(KINDS) + r")"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange of one array.

    Attributes:
      kind: of `KINDS`.
      array: dtype and shape of the whole: gathered, summed or exchanged; axes of one left out.
      size: its bytes.
      group: chips that take part together.
      between_slices: whether it leaves a slice.
      what: where in the model, as XLA names it; of several places, all of them.
    """

    kind: str
    array: str
    size: int
    group: int
    between_slices: bool
    what: str

    @property
    def sent(self) -> float:
        """Bytes that each chip sends, by the usual ring."""
        if self.kind == "collective-permute":
            return float(self.size)
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.size * (self.group - 1) / self.group


Counts = dict[Collective, float]


def read(text: str, chips: int, slices: int = 1) -> Counts:
    """Collectives of a program's text and how often each stands there (loop bodies count once)."""
    found: collections.Counter[Collective] = collections.Counter()
    computation = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened[1]
        if sending := _SEND.match(line):
            for array, size in _arrays(sending["type"], gathered=False):
                found[Collective(sending["kind"], array, size, slices, True, "")] += 1
        match = _OP.match(line)
        if match is None:
            continue
        group, crosses = _group(match["rest"], chips, slices)
        if group == 1:
            continue
        kind = match["kind"].removeprefix("ragged-")
        parts = group if kind == "reduce-scatter" else 1  # its result is one part of the whole
        # TPUs sum and scatter by a fusion of this name around an all-reduce.
        if kind == "all-reduce" and "reduce-scatter" in computation:
            kind = "reduce-scatter"
        name = _NAME.search(line)
        what = _what(name[1] if name else "")
        for array, size in _arrays(match["type"], gathered=bool(match["start"])):
            whole = array if parts == 1 else f"{array} x {parts}"
            found[Collective(kind, whole, size * parts, group, crosses, what)] += 1
    return dict(found)


def _arrays(text: str, *, gathered: bool) -> Iterable[tuple[str, int]]:
    """Arrays of a result type; of an asynchronous start, the results alone."""
    arrays = []
    for dtype, listed in _SHAPE.findall(text):
        # Gradients of a stack of one layer have an axis of one that those of more layers have not.
        dims = [int(dim) for dim in listed.split(",") if dim not in ("", "1")]
        arrays.append((f"{dtype}[{','.join(map(str, dims))}]", BYTES[dtype] * math.prod(dims)))
    arrays = [(name, size) for name, size in arrays if size > 16]
    if gathered and len(arrays) > 1:
        arrays = arrays[len(arrays) // 2 :]  # operands come first, as many as results
    return arrays


def _group(rest: str, chips: int, slices: int) -> tuple[int, bool]:
    """Chips of one group, and whether they are of different slices (the outermost mesh axis)."""
    if listed := _LISTED.search(rest):
        ids = np.array([int(i) for i in listed[1].split(",")])
    elif iota := _IOTA.search(rest):
        dims = [int(i) for i in iota[3].split(",")]
        order = np.arange(math.prod(dims)).reshape(dims)
        if iota[4]:
            order = order.transpose([int(i) for i in iota[4].split(",")])
        ids = order.reshape(int(iota[1]), int(iota[2]))[0]
    elif mesh := _MESH.search(rest):
        axes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])]
        named = re.findall(r"'(\w+)'", mesh[2])
        order = np.arange(math.prod(size for _, size in axes)).reshape([size for _, size in axes])
        ids = order[tuple(slice(None) if name in named else 0 for name, _ in axes)].ravel()
    elif pair := _PAIRS.search(rest):
        ids = np.array([int(pair[1]), int(pair[2])])
    else:
        ids = np.arange(chips)
    return len(ids), len(set(ids // max(chips // slices, 1))) > 1


def _what(name: str) -> str:
    """The parts of an operation's name that a reader of the model knows."""
    steps = [step for step in name.split("/") if step and not step.startswith(("jit(", "while"))]
    backward = any("transpose(" in step for step in steps)
    plain = [
        step
        for step in steps
        if "(" not in step and step not in ("body", "checkpoint", "closed_call")
    ]
    return ("grad of " if backward else "") + "/".join(plain[-3:])


def combine(parts: Iterable[tuple[float, Counts]]) -> Counts:
    """A weighted sum of counts; what comes out as nothing is left out.

    Summed by array, for XLA names the same exchange differently in programs of different depth.
    """
    total: collections.defaultdict[Collective, float] = collections.defaultdict(float)
    places: collections.defaultdict[Collective, dict[str, float]] = collections.defaultdict(dict)
    for weight, counts in parts:
        for collective, count in counts.items():
            array = dataclasses.replace(collective, what="")
            total[array] += weight * count
            places[array][collective.what] = places[array].get(collective.what, 0) + weight * count
    found = {}
    for array, count in total.items():
        if count > 0:
            named = sorted(name for name, times in places[array].items() if name and times > 0)
            found[dataclasses.replace(array, what=", ".join(named))] = count
    return found


def sent(counts: Counts, *, between_slices: bool) -> float:
    """Bytes each chip sends, within slices or between them."""
    return sum(
        collective.sent * count
        for collective, count in counts.items()
        if collective.between_slices == between_slices
    )
