"""The XLA:TPU flags that training runs with, and why: the only place that names any.

    python -m lavit_jax.parallel.xla_flags         one line, for LIBTPU_INIT_ARGS
    python -m lavit_jax.parallel.xla_flags --why   each with its reason

The launch scripts and `lavit plan` put the line into LIBTPU_INIT_ARGS unless the user has set that
variable. libtpu reads it once, when it is loaded, so training has to have it before Python starts;
it ends the process at a flag it does not know (libtpu 0.0.52 takes all of these and compiles with
them for v4, v5e, v5p and v6e). Most are its defaults already: named here, they stay when a default
changes. Flags that change numbers, such as faster random bits that differ from mesh to mesh, are
left out on purpose; so is `xla_tpu_enable_async_collective_fusion_fuse_all_gather`, with which the
compiler refuses programs for anything but v5e, where it is the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
      name: without the leading hyphens.
      value: as libtpu parses it.
      why: what it does for our steps.
    """

    name: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


FLAGS: tuple[Flag, ...] = (
    Flag(
        "xla_tpu_enable_latency_hiding_scheduler",
        "true",
        "Latency hiding: starts a collective as early and ends it as late as its data allow, with "
        "the arithmetic that does not need it in between.",
    ),
    Flag(
        "xla_enable_async_all_gather",
        "true",
        "Parameters are sharded over `fsdp`: every layer gathers its own before it runs, forward "
        "and backward. As two instructions, start and done, that can overlap the layer before.",
    ),
    Flag(
        "xla_enable_async_collective_permute",
        "true",
        "The same for the shifts that XLA makes of a matmul over `tensor` and of halos.",
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion",
        "true",
        "Runs a collective inside the fusion that computes at the same time: both share a core, so "
        "a start and a done alone would not overlap it with a matmul.",
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "true",
        "Lets one collective stretch over several fusions; gathering a 7B layer takes longer than "
        "any one of its matmuls.",
    ),
    Flag(
        "xla_tpu_overlap_compute_collective_tc",
        "true",
        "Lets the two above overlap collectives with matmuls on the tensor core.",
    ),
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "true",
        "Several slices: gradients are summed between them over the data-centre network, far "
        "slower than inside a slice. Moves those sums out of the backward pass's way.",
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "true",
        "Several slices: the same for gradients of different sizes, which layers of encoder and "
        "language model have.",
    ),
)


def line() -> str:
    """All flags as LIBTPU_INIT_ARGS takes them."""
    return " ".join(str(flag) for flag in FLAGS)


def use() -> None:
    """Has this process compile as launched ones do; to be called before libtpu is loaded."""
    os.environ.setdefault("LIBTPU_INIT_ARGS", line())


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m lavit_jax.parallel.xla_flags", description="XLA:TPU flags of our training."
    )
    parser.add_argument("--why", action="store_true", help="each flag with its reason")
    if parser.parse_args(argv).why:
        print("\n".join(f"{flag}\n    {flag.why}" for flag in FLAGS))
    else:
        print(line())


if __name__ == "__main__":
    main()
