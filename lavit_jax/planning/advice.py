"""What would fit in place of a plan that does not."""

from __future__ import annotations

from collections.abc import Sequence

from lavit_jax.errors import UserError
from lavit_jax.parallel.mesh import batch_parts
from lavit_jax.planning.plan import SPARE, Plan

# Where the policy of the blocks that an objective trains is set, and to what to keep least.
REMAT = {
    "unified": 'config.model.llm.remat="full"',
    "tokenizer": 'config.model.merger.remat and config.model.decoder.remat="full"',
    "contrastive": 'config.model.encoder.remat and config.model.text_tower.remat="full"',
    "diffusion": "config.model.pixels.unet.remat=True",
}


def check_fits(plans: Sequence[Plan]) -> None:
    """Raises a `UserError` that says what would fit, for the first plan that does not."""
    for found in plans:
        if found.fits:
            continue
        chip, name = found.topology.chip, found.job.name
        limit = chip.hbm_bytes * (1 - SPARE)
        advice = _generation if found.job.objective == "generation" else _training
        raise UserError(
            f"{name} on {found.topology.title} needs {found.memory.peak / 1e9:.1f} GB of "
            f"{chip.hbm_bytes / 1e9:.0f} GB HBM ({SPARE:.0%} must stay free): "
            f"{advice(found, limit)}"
        )


def _training(found: Plan, limit: float) -> str:
    """By what takes the memory: the state, many rows, or each single one."""
    held, settings = found.memory.arguments, found.job.settings
    if held > 0.8 * limit:
        return (
            f"parameters and optimizer take {held / 1e9:.1f} GB a chip: "
            f"{_times(held, limit)} times as many chips along config.mesh.fsdp would fit"
        )
    share = (limit - held) / (found.memory.peak - held)
    rows = settings.get("rows_per_chip", 1)
    if rows * share >= 1:
        return f"{int(rows * share)} rows a chip instead of {rows:g} would fit"
    if settings.get("remat") != "full":
        return f"it is too much for one row a chip; {REMAT[found.job.objective]} takes less"
    if found.job.objective == "diffusion":  # convolutions are not split
        return "it is too much for one row a chip; chips with more memory would fit"
    return (
        "it is too much for one row a chip; config.mesh.tensor twice as large takes less, with "
        f"config.phases.{found.job.name}.batch_size half as large"
    )


def _generation(found: Plan, limit: float) -> str:
    """Beside the parameters everything grows with rows: keys and values most of all."""
    rows, parts = found.job.settings["rows"], batch_parts(found.job.mesh)
    share = (limit - found.params) / (found.memory.peak - found.params)
    fitting = int(rows // parts * share) * parts
    if fitting > 0:
        return f"config.generation.rows={fitting} instead of {rows} would fit"
    return (
        f"beside {found.params / 1e9:.1f} GB of parameters one row for each copy is too much; "
        f"config.generation.mesh.tensor {_times(found.params, limit)} times as large would fit"
    )


def _times(held: int, limit: float) -> int:
    """Over how many times as many chips to split what may take half of the memory."""
    return max(2, -(-held * 2 // int(limit)))
