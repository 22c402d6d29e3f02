"""`lavit quickstart`: trains everything, measures it and writes the report."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lavit_jax import console
from lavit_jax.clock import Clock
from lavit_jax.config import load_config
from lavit_jax.data import pipeline
from lavit_jax.data.datasets import TWEMOJI
from lavit_jax.errors import UserError
from lavit_jax.evaluation import twemoji
from lavit_jax.evaluation.twemoji import Evaluation, Pictures
from lavit_jax.inference import api
from lavit_jax.report import galleries
from lavit_jax.report.data import Gallery, ReportData, twemoji_bars
from lavit_jax.report.html import write_report
from lavit_jax.training import goodput, launches, storage
from lavit_jax.training.checks import check_config
from lavit_jax.training.metrics import read_metrics
from lavit_jax.training.run import claim_workdir, held, train

SHOWN = 48  # cards of a gallery at most


def run(workdir: Path, spec: str, overrides: Sequence[str] = ()) -> Path:
    """Goes on where it was; once all is done, only tells where the report is.

    Args:
      workdir: gets everything.
      spec: the config, "FILE.py" or "FILE.py:arg".
      overrides: "--config.field=value" strings.

    Returns:
      The path of the report's `index.html`.

    Raises:
      UserError: a config or work directory that cannot work.
    """
    config = load_config(spec, overrides)
    if config.data.dataset != TWEMOJI:
        raise UserError(
            f"the quickstart measures itself on twemoji, not on {config.data.dataset}: use "
            "`lavit train`"
        )
    if storage.is_bucket(workdir):
        raise UserError(f"--workdir {workdir}: the quickstart needs a directory of this machine")
    check_config(config)  # before anything is written
    place = storage.on_disk(workdir)
    with held(place):
        claim_workdir(config, place)
    report = workdir / "report" / "index.html"
    if report.is_file():
        console.say(f"finished before; delete {workdir} to start anew")
        return report
    with Clock(workdir / "clock.json") as clock:
        train(config, workdir)
        console.say("measuring")
        splits = _splits(config, workdir)
        found = twemoji.evaluate(
            api.load(workdir),
            *splits,
            train_captions=config.evaluation.train_captions,
            drawing={
                "best_of": config.evaluation.best_of,
                "guidance": config.evaluation.guidance,
                "temperature": config.evaluation.temperature,
            },
            seed=config.seed,
            say=console.say,
        )
        records = read_metrics(workdir / "metrics.jsonl")
        console.say("writing the report")
        shown = _galleries(found, *splits)
        metrics = {
            "minutes": clock.minutes,
            "peak_rss_gb": clock.peak_rss_gb,
            **found.metrics,
            "useful_token_share": _useful_token_share(records),
        }
        return write_report(
            workdir,
            ReportData(
                title=f"LaVIT from nothing: {config.name}",
                metrics=metrics,
                bars=twemoji_bars(_kept_share(config), config.evaluation.minutes),
                records=records,
                code_counts_K=found.code_counts_K,
                galleries=shown,
                config=config.to_dict(),
                facts=_facts(config, splits[0], workdir),
            ),
        )


def _splits(config: ConfigDict, workdir: Path) -> tuple[Pictures, Pictures, Pictures]:
    size, most = config.model.image_size, config.evaluation.most or None
    train, new, combo = (
        twemoji.load_pictures(pipeline.load_split(config, workdir / "data", split), size, most)
        for split in ("train", "test_new", "test_combo")
    )
    return train, new, combo


def _kept_share(config: ConfigDict) -> float:
    return next(
        phase.kept_share
        for phase in (config.phases[name] for name in config.schedule)
        if phase.objective == "tokenizer"
    )


def _useful_token_share(records: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([r["useful_tokens"] for r in records if "useful_tokens" in r]))


def _galleries(
    found: Evaluation, train: Pictures, new: Pictures, combo: Pictures
) -> tuple[Gallery, ...]:
    everything = [*train.examples, *new.examples, *combo.examples]
    images = np.concatenate([train.images_MHWC, new.images_MHWC, combo.images_MHWC])
    nearest = found.combo_neighbours[:SHOWN, 0]
    prompts = [example["captions"][0] for example in combo.examples[:SHOWN]]
    wanted = zip(found.combo_neighbours[:SHOWN], combo.examples[:SHOWN], strict=True)
    right = [any(everything[i]["base"] == example["base"] for i in row) for row, example in wanted]
    return (
        galleries.drawings(
            prompts,
            found.combo_drawings[:SHOWN],
            images[nearest],
            [everything[i]["captions"][0] for i in nearest],
            right,
        ),
        galleries.captions(
            combo.images_MHWC[:SHOWN],
            found.combo_captions[:SHOWN],
            [example["captions"] for example in combo.examples[:SHOWN]],
            title="Captions of unseen combinations",
        ),
        galleries.captions(
            new.images_MHWC[:SHOWN],
            found.new_captions[:SHOWN],
            [example["captions"] for example in new.examples[:SHOWN]],
        ),
        galleries.kept_patches(new.images_MHWC, found.new_kept_MN),
        galleries.reconstructions(
            new.images_MHWC[:SHOWN],
            found.new_reconstructions[:SHOWN],
            [int(kept.sum()) for kept in found.new_kept_MN[:SHOWN]],
        ),
    )


def _facts(config: ConfigDict, train: Pictures, workdir: Path) -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "training pictures": str(len(train.examples)),
        "training steps": str(sum(config.phases[name].steps for name in config.schedule)),
        "training time": goodput.describe(launches.total_seconds(workdir)),
        "Python": platform.python_version(),
        **launches.versions(),
    }
