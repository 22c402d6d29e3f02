"""The codebook's start: k-means over real features when a run first quantizes (SPEC 4)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import jax
import numpy as np

from lavit_jax.data import pipeline
from lavit_jax.models import lavit, quantizer, selector
from lavit_jax.parallel import feed, rules
from lavit_jax.training.interruption import Interruption
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

FEATURES_PER_CODE = 24
ITERATIONS = 10  # borrowed (BEiT-2)


def begin(run: Run, phase: Phase, current: TrainState, interruption: Interruption) -> TrainState:
    """The state with a k-means codebook, if this is the first phase that quantizes."""
    quantizes = [p.index for p in run.phases if p.config.get("quantize", False)]
    if not quantizes or phase.index != quantizes[0]:
        return current
    features = _features(run, phase, current, interruption)
    key = jax.random.fold_in(jax.random.key(run.config.seed), 4)
    codes = run.modules.config.quantizer.codes
    book = jax.jit(
        lambda z: quantizer.kmeans(z, codes, key, ITERATIONS),
        out_shardings=rules.replicated(run.mesh),
    )(features)
    return current.replace(codebook=book)  # type: ignore[attr-defined]


def _features(
    run: Run, phase: Phase, current: TrainState, interruption: Interruption
) -> np.ndarray:
    """L2-normalised features of kept patches of real pictures, [M, C]."""
    m = run.modules

    def project(params: lavit.Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = lavit.encode_image(m, params, images)
        keep, kept = lavit.select(m, params, x, selector.greedy_keep)
        merged = lavit.run(m, params, "merger", x, keep, kept, method="kept_features")
        z = lavit.run(m, params, "quantizer", merged)
        return quantizer.l2_normalize(z), kept.valid_BL

    # Whole on every process, so that all of them start from the same codes.
    compiled = jax.jit(project, out_shardings=rules.replicated(run.mesh))
    batches = pipeline.image_batches(
        run.config, run.data_dir, phase.config["batch_size"], run.config.seed * 1000 + 999
    )
    wanted = FEATURES_PER_CODE * m.config.quantizer.codes
    found: list[np.ndarray] = []
    with contextlib.closing(batches):
        while sum(map(len, found)) < wanted:
            interruption.stop_if_requested()
            images = feed.to_mesh(next(batches), run.mesh)["images"]
            z, valid = jax.device_get(compiled(current.params, images))
            found.append(z[valid])
    return np.concatenate(found)[:wanted]
