"""What is made from the data set, once for all tests here."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from lavit_jax.data import text, twemoji
from lavit_jax.data.prepare import run
from lavit_jax.data.prepare.tasks import Job
from lavit_jax.data.sources import Options
from lavit_jax.data.text import TextTokenizer
from lavit_jax.data.visual_ids import VisualIdCache
from shards import tars

CODES = 64


@pytest.fixture
def config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "model": {"image_size": 32, "patch_size": 8, "quantizer": {"codes": CODES}},
            "data": {
                "dataset": "twemoji",
                "held_out": 64,
                "max_bad_share": 0.01,
                "visual_ids": "",
                "sources": {},
                "threads": 1,
                "workers": 0,
                "weigh_by": "examples",
                "curriculum": (),
                "languages": ("en",),
                "text_vocab_size": 500,
                "canonical_share": 0.6,
                "row_length": 128,
                "images_per_row": 5,
                "variants": 2,
                "text_drop": 0.1,
                "mixture": {"image_text": 0.35, "text_image": 0.45, "text": 0.05, "question": 0.15},
                "augment": {"shift": 0.06, "scale": 0.1, "background": 0.5},
            },
        }
    )


@pytest.fixture(scope="session")
def records(data_dir: Path) -> dict[str, list[dict]]:
    return {split: list(twemoji.source(split, data_dir)) for split in twemoji.SPLITS}


@pytest.fixture(scope="session")
def tokenizer(records: dict[str, list[dict]], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("text") / "text.model"
    text.train_tokenizer(twemoji.sentences(records["train"]), path, vocab_size=500)
    return TextTokenizer(path)


@pytest.fixture(scope="session")
def cache(records: dict[str, list[dict]]) -> VisualIdCache:
    rng = np.random.default_rng(0)
    images, patches = len(records["train"]) * 2, 16
    keep = (rng.random((images, patches)) < rng.uniform(0.1, 0.6, (images, 1))).astype(np.uint8)
    keep[:, 0] = 1
    return VisualIdCache(rng.integers(0, CODES, (images, patches)), keep)


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tars of thirty pictures each, prepared; to be left as it is."""
    where = tmp_path_factory.mktemp("prepared")
    job = Job(str(tars(where / "src", 4, 30)), str(where / "set"), Options(), 30_000)
    run.prepare(job, run.local_runner(1))
    return where / "set"
