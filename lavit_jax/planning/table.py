"""Plans for people: one table a plan, one line a plan of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from lavit_jax.parallel.mesh import AXES
from lavit_jax.planning.plan import Plan, by_kind

CONVENTION = (
    "MFU bound: 6 N D of trained and 2 N D of frozen modules, N without the table of words, useful "
    "tokens only, attention and recomputation not counted, over the step time below"
)


def rows(found: Plan) -> list[tuple[str, str]]:
    """(what, how much) of one plan."""
    job, chip, cost = found.job, found.topology.chip, found.cost
    peak = found.memory.peak
    mesh = ", ".join(f"{axis} {job.mesh.shape[axis]}" for axis in AXES if job.mesh.shape[axis] > 1)
    lines = [
        ("mesh", mesh or "one chip"),
        ("batch", ", ".join(f"{name} {value}" for name, value in job.settings.items())),
        ("parameters", _bytes(found.params)),
        ("optimizer", _bytes(found.optimizer)),
        ("activations", _bytes(peak - found.memory.arguments)),
        ("peak HBM", f"{_bytes(peak)} of {chip.hbm_bytes / 2**30:.1f} GiB "
         f"({peak / chip.hbm_bytes:.0%})" + ("" if found.fits else ": does not fit")),
    ]  # fmt: skip
    kernel = job.workload.kernel_flops / found.topology.chips
    inside = f" + {kernel / 1e12:.1f}e12 in attention kernels" if kernel else ""
    lines += [
        ("flops", f"{cost.flops / 1e12:.1f}e12{inside}"),
        ("HBM traffic", f"{cost.bytes / 1e9:.0f}e9 bytes"),
    ]
    for kind, crosses, count, sent in by_kind(found):
        where = f"{kind}{' between slices' if crosses else ''}"
        lines.append((where, f"{count:.0f} x, {sent / 1e9:.2f}e9 bytes sent"))
    bounds, work = found.bounds, job.workload
    lines += [
        ("roofline", f"compute {bounds.compute:.3f} s, HBM {bounds.memory:.3f} s, wires "
         f"{bounds.wires:.3f} s, slices {bounds.slices:.3f} s"),
        ("step", f"{found.seconds:.3f} s by the {found.seconds_by} "
         f"(bounds {bounds.at_least:.3f} to {bounds.at_most:.3f} s)"),
    ]  # fmt: skip
    if work.tokens:
        rate = f"{work.tokens / found.seconds:,.0f} ({work.useful:.1%} of a row is useful)"
        lines.append(("tokens/s", rate))
    if work.images:
        lines.append(("images/s", f"{work.images / found.seconds:,.0f}"))
    lines.append(("MFU bound", f"{found.mfu:.1%}"))
    if job.steps:
        hours = job.steps * found.seconds / 3600
        run = f"{job.steps:,} steps, {hours:,.1f} h, {found.chip_hours:,.0f} chip-hours"
        lines.append(("whole run", run))
    return lines


def table(found: Plan) -> Table:
    """One plan."""
    made = Table(
        title=f"{found.job.name} on {found.topology.title} ({found.topology.chips} chips)",
        box=None,
        pad_edge=False,
        show_header=False,
        title_justify="left",
    )
    made.add_column()
    made.add_column(overflow="fold")
    for what, much in rows(found):
        made.add_row(what, much)
    return made


def ranking(plans: Sequence[Plan]) -> Table:
    """Plans of a search, best first."""
    made = Table(box=None, pad_edge=False)
    for column in ("mesh", "rows/chip", "remat", "peak HBM", "step", "useful tokens/s/chip", "MFU"):
        made.add_column(column, justify="left" if column == "mesh" else "right")
    for found in plans:
        job, shape = found.job, found.job.mesh.shape
        made.add_row(
            " ".join(f"{axis}={shape[axis]}" for axis in AXES if shape[axis] > 1) or "1",
            f"{job.settings['rows_per_chip']:g}",
            str(job.settings.get("remat", "")),
            _bytes(found.memory.peak),
            f"{found.seconds:.3f} s",
            f"{_rate(found):,.0f}",
            f"{found.mfu:.1%}",
        )
    return made


def _rate(found: Plan) -> float:
    work: Any = found.job.workload
    return (work.tokens or work.images) / found.seconds / found.topology.chips


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"
