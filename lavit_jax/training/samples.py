"""Sample pictures and captions while training, under `WORKDIR/samples`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lavit_jax.data import images as image_data
from lavit_jax.data import pipeline
from lavit_jax.inference.api import Lavit
from lavit_jax.inference.pixels import trained
from lavit_jax.report import figures
from lavit_jax.training.optimizer import averaged
from lavit_jax.training.schedule import Phase
from lavit_jax.training.state import TrainState

if TYPE_CHECKING:
    from lavit_jax.training.run import Run

COUNT = 8
SPLIT = "test_combo"


def drawn(phase: Phase) -> bool:
    """Whether a phase has sheets: it has pictures to show, and this process all parameters."""
    return phase.config["objective"] != "contrastive" and jax.process_count() == 1


def write(run: Run, phase: Phase, current: TrainState, step: int) -> None:
    """Writes `STEP-PHASE.png`, made from pictures that are never trained on.

    Tokenizer phases: pictures, the patches they keep, and what comes back from their ids (which
    means something once the run quantizes). Unified phases: pictures above the captions
    they get, and drawings of the pictures' own captions. Diffusion phases: pictures, and what
    the averaged weights paint from their ids. The contrastive phase has nothing to show. Runs of
    several processes write none: no process has all of the parameters.
    """
    if not drawn(phase):
        return
    objective = phase.config["objective"]
    records = _records(run)
    size = run.config.model.image_size
    pictures = [image_data.resize(record["image"], size) for record in records]
    params = {**current.params, **averaged(current.opt_state)}
    mesh = run.mesh if run.mesh.size > 1 else None
    decoders = trained(run.modules, params, current.codebook, mesh)
    model = Lavit(run.modules, params, current.codebook, run.text, decoders=decoders, mesh=mesh)
    if objective == "tokenizer":
        cells, labels = _tokenized(model, pictures)
    elif objective == "diffusion":
        cells, labels = _painted(model, pictures)
    else:
        cells, labels = _said_and_drawn(model, pictures, [r["captions"][0] for r in records])
    folder = run.workdir / "samples"
    folder.mkdir(exist_ok=True)
    sheet = figures.contact_sheet(cells, labels, columns=COUNT)
    figures.save_png(folder / f"{step:07d}-{phase.name}.png", sheet)


def _tokenized(model: Lavit, pictures: list[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    tokens = model.tokenize(pictures)
    kept = [figures.kept_overlay(p, t.keep) for p, t in zip(pictures, tokens, strict=True)]
    rows = [pictures, kept, model.reconstruct(pictures)]
    labels = [""] * COUNT + [f"{t.kept} of {len(t.keep)}" for t in tokens] + [""] * COUNT
    return [cell for row in rows for cell in row], labels


def _painted(model: Lavit, pictures: list[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    ids = [tokens.ids for tokens in model.tokenize(pictures)]
    return [*pictures, *model.paint(ids, "lowres")], [""] * (2 * COUNT)


def _said_and_drawn(
    model: Lavit, pictures: list[np.ndarray], names: list[str]
) -> tuple[list[np.ndarray], list[str]]:
    said = [f"says: {text}" for text in model.caption(pictures)]
    drawn = [drawings[0] for drawings in model.draw(names)]
    return [*pictures, *drawn], said + [f"drawn: {name}" for name in names]


def _records(run: Run) -> list[dict[str, Any]]:
    split = pipeline.load_split(run.config, run.data_dir, SPLIT)
    return [split[int(index)] for index in np.linspace(0, len(split) - 1, COUNT)]
