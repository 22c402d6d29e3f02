"""Adds what a trained diffusion decoder paints to the report of the run it started from."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from lavit_jax.data import pipeline
from lavit_jax.disk import read_json
from lavit_jax.evaluation import twemoji
from lavit_jax.inference import api, painting
from lavit_jax.report import galleries
from lavit_jax.report.html import add_gallery

SHOWN = 24  # drawings, and as many unseen pictures
SECTION = "both-decoders"


def add(workdir: Path) -> Path | None:
    """Paints held-out prompts and pictures by both decoders and adds them to the report.

    Several processes add nothing, as they write no samples: none has all of the parameters.

    Args:
      workdir: of a run that trained a pixel decoder.

    Returns:
      The path of the report; None where nothing is added: there is no report, the run has no pixel
      decoder, or there are several processes.
    """
    if jax.process_count() > 1:
        return None
    config = ConfigDict(read_json(workdir / "config.json"))
    report = Path(config.start_from) / "report" / "index.html"
    if not report.is_file() or "pixels" not in config.model:
        return None
    model = api.load(workdir)
    both = (painting.ONE_PASS, "lowres")
    if not set(both) <= set(painting.names(model)):
        return None
    size, seed = config.model.image_size, config.seed
    combo, new = (
        twemoji.load_pictures(pipeline.load_split(config, workdir / "data", split), size, SHOWN)
        for split in ("test_combo", "test_new")
    )
    prompts = [example["captions"][0] for example in combo.examples]
    pictures = list(new.images_MHWC)
    drawn = {name: [d[0] for d in model.draw(prompts, seed=seed, decoder=name)] for name in both}
    rebuilt = {name: model.reconstruct(pictures, decoder=name) for name in both}
    errors = {name: _error(pictures, made) for name, made in rebuilt.items()}
    intro = (
        "The same visual ids through the one-pass pixel head and through the diffusion decoder: "
        "first drawn from unseen prompts, then of unseen pictures. Mean error of a pixel's colour "
        f"over those pictures: {errors[painting.ONE_PASS]:.3f} in one pass, "
        f"{errors['lowres']:.3f} by diffusion (of 1), which samples details where the head "
        "averages them."
    )
    names = [f"again: {example['captions'][0]}" for example in new.examples]
    gallery = galleries.decoders(
        prompts + names,
        [None] * len(prompts) + pictures,
        drawn[painting.ONE_PASS] + rebuilt[painting.ONE_PASS],
        drawn["lowres"] + rebuilt["lowres"],
        intro,
    )
    add_gallery(report, SECTION, gallery)
    print(f"added to {report}", file=sys.stderr)
    return report


def _error(pictures: list[np.ndarray], made: list[np.ndarray]) -> float:
    """Mean absolute difference of pixels in [0, 1]."""
    difference = np.stack(pictures).astype(np.float64) - np.stack(made).astype(np.float64)
    return float(np.abs(difference).mean() / 255.0)
