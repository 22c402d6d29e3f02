"""Programs compiled ahead of time, and what the compiler says about them."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lavit_jax.errors import UserError
from lavit_jax.parallel import collectives
from lavit_jax.parallel.collectives import Counts
from lavit_jax.parallel.mesh import placed

KERNEL = "tpu_custom_call"
# With less effort XLA:TPU takes half the CPU time. Its answers for stage two on v5p-128 beside
# those at full effort: flops and collectives the same, peak memory 0.7 % and time 4 % less.
QUICK = {"xla_optimization_level": "EFFORT_O1"}
# How XLA:TPU says what does not fit: beside the arguments, or all together.
BESIDE = re.compile(r"temporaries \((?P<number>[\d.]+)(?P<unit>[KMGT])\) exceeds available HBM")
TOGETHER = re.compile(r"Used (?P<number>[\d.]+)(?P<unit>[KMGT]) of [\d.]+[KMGT] hbm")
UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


@dataclasses.dataclass(frozen=True)
class Program:
    """A step with the shapes and shardings of its arguments.

    Attributes:
      function: what is compiled.
      args: `ShapeDtypeStruct`s with shardings.
      out_shardings: of the results.
      donate: arguments whose memory the results take over.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    out_shardings: Any
    donate: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip.

    Attributes:
      arguments: what the step is given.
      temporary: what it needs beside that.
      peak: the most at any time.
    """

    arguments: int
    temporary: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one step on each chip; loop bodies count once.

    Attributes:
      flops: of XLA's own operations.
      bytes: to and from memory.
      seconds: the compiler's estimate; negative where it has none for a kernel.
      kernels: calls of Pallas kernels, whose flops are not counted.
      sent: collectives.
    """

    flops: float
    bytes: float
    seconds: float
    kernels: float
    sent: Counts

    @staticmethod
    def combine(parts: list[tuple[float, Cost]]) -> Cost:
        """A weighted sum."""

        def total(name: str) -> float:
            return sum(weight * getattr(cost, name) for weight, cost in parts)

        counts = collectives.combine((weight, cost.sent) for weight, cost in parts)
        return Cost(total("flops"), total("bytes"), total("seconds"), total("kernels"), counts)


class OutOfMemory(UserError):
    """The compiler gave a program up, which needs more memory than a chip has."""

    def __init__(self, told: str) -> None:
        super().__init__(f"a chip has too little memory: {told.splitlines()[0]}")
        self._told = told

    def peak(self, arguments: int) -> int | None:
        """Bytes that the compiler wanted beside so many of arguments; None where it says none."""
        for pattern, more in ((BESIDE, arguments), (TOGETHER, 0)):
            if (found := pattern.search(self._told)) is not None:
                return more + int(float(found["number"]) * 2 ** UNITS[found["unit"]])
        return None


def build(program: Program, mesh: Mesh, options: Mapping[str, Any] | None = None) -> Any:
    """Compiles for the mesh's devices, which need not be here.

    Raises:
      OutOfMemory: the devices are too small.
    """
    with placed(mesh):
        lowered = jax.jit(
            program.function, donate_argnums=program.donate, out_shardings=program.out_shardings
        ).lower(*program.args)
        try:
            return lowered.compile(compiler_options=dict(options) if options else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(str(error)) from error


def _options(mesh: Mesh, quick: bool) -> dict[str, Any]:
    """Compiler options; other backends know none of ours."""
    return dict(QUICK) if quick and _for_tpu(mesh) else {}


def _for_tpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "tpu"


def memory(program: Program, mesh: Mesh, *, quick: bool = False) -> Memory:
    """What a program takes; where the compiler gives up for want of memory, what it wanted.

    Args:
      program: what is compiled.
      mesh: for these devices.
      quick: with less effort, see `QUICK`.

    Raises:
      OutOfMemory: it gave up without a figure.
    """
    try:
        return _memory(build(program, mesh, _options(mesh, quick)))
    except OutOfMemory as error:
        held = shard_bytes(program.args)
        peak = error.peak(held)
        if peak is None:
            raise
        return Memory(held, peak - held, peak)


def _memory(compiled: Any) -> Memory:
    analysis = compiled.memory_analysis()
    return Memory(
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
        analysis.peak_memory_in_bytes,
    )


def cost(program: Program, mesh: Mesh, *, quick: bool = False) -> Cost:
    """What a program does; arguments and errors as of `memory`."""
    return both(program, mesh, quick=quick)[1]


def both(program: Program, mesh: Mesh, *, quick: bool = False) -> tuple[Memory, Cost]:
    """What a program takes and what it does, of one compilation; arguments as of `memory`.

    Raises:
      OutOfMemory: the devices are too small.
    """
    compiled, text = _with_text(program, mesh, _options(mesh, quick))
    analysis = compiled.cost_analysis()
    return _memory(compiled), Cost(
        flops=analysis.get("flops", 0.0),
        bytes=analysis.get("bytes accessed", 0.0),
        seconds=analysis.get("optimal_seconds", 0.0),
        kernels=float(text.count(f'custom_call_target="{KERNEL}"')),
        sent=collectives.read(text, mesh.size, mesh.shape["slice"]),
    )


def _with_text(program: Program, mesh: Mesh, options: Mapping[str, Any]) -> tuple[Any, str]:
    """A compiled program and its text."""
    if not _for_tpu(mesh):
        compiled = build(program, mesh, options)
        return compiled, compiled.as_text()
    # The compiler writes the optimised program down itself: libtpu 0.0.52 cannot give those back
    # (`as_text`) that gather asynchronously.
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = build(program, mesh, {**options, **dump})
        found = list(Path(folder).glob("*after_optimizations.txt"))
        # There is none where a cache had the program.
        return compiled, found[0].read_text() if found else compiled.as_text()


def shard_bytes(tree: Any) -> int:
    """Bytes of each chip's parts of arrays (`ShapeDtypeStruct`s with shardings)."""
    return sum(
        leaf.dtype.itemsize * _size(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
