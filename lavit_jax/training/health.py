"""Signs of a run that has gone wrong, told while it can still be stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping

# A collapsed codebook shows as few codes in use and a cosine loss that stays high: users of the
# published model who got stuck at 0.3 had under 2,000 of 16,384 codes in use (SPEC 6).
MIN_IN_USE = 0.15
MAX_KEPT, MIN_KEPT = 0.95, 0.03
SETTLE_STEPS = 100


class Health:
    """Watches metrics step by step and gives each warning once per phase."""

    def __init__(self) -> None:
        self._given: set[tuple[str, str]] = set()

    def check(self, phase: str, step_in_phase: int, metrics: Mapping[str, float]) -> list[str]:
        """Warnings that are new at this step, one line each."""
        found = {}
        if not math.isfinite(metrics["loss"]):
            found["loss"] = f"the loss is {metrics['loss']}: lower the learning rate"
        if step_in_phase >= SETTLE_STEPS:
            in_use = metrics.get("codebook_in_use", 1.0)
            if in_use < MIN_IN_USE:
                found["codebook"] = (
                    f"the codebook looks collapsed: {in_use:.0%} of the codes in use, cosine loss "
                    f"{metrics.get('cosine_loss', math.nan):.2f}; see docs/training.md"
                )
            kept = metrics.get("kept_mean", 0.5)
            if not MIN_KEPT < kept < MAX_KEPT:
                found["selector"] = (
                    f"the selector looks collapsed: it keeps {kept:.0%} of the patches; "
                    "raise share_weight"
                )
        fresh = {kind: text for kind, text in found.items() if (phase, kind) not in self._given}
        self._given |= {(phase, kind) for kind in fresh}
        return [f"warning: phase {phase!r}: {text}" for text in fresh.values()]
