"""Our modules give what the published ones gave, array by array."""

from pathlib import Path

import numpy as np
import pytest

from lavit_jax.convert import parity

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
INPUTS = {
    "tok_image_nchw",
    "tok_random_keep",
    "tok_all_keep",
    "tok_decoder_in",
    "tok_decoder_token_nums",
}
LANGUAGE = ("lm_logits", "llm_features", "prompt_embeds", "prompt_mask", "prompt_last_logits")
GENERATION = (
    "greedy_ids",
    "beam2_caption_ids",
    "beam5_answer_ids",
    "t2i_greedy_ids",
    "t2i_scores",
)
with np.load(GOLDENS / parity.FILE) as arrays:
    TOKENIZER = tuple(n for n in arrays.files if n.startswith("tok_") and n not in INPUTS)


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in parity.run(GOLDENS)}


@pytest.mark.parametrize("name", [*TOKENIZER, *LANGUAGE, *GENERATION])
def test_array_agrees_with_the_published_one(rows, name):
    row = rows[name]
    assert row.status == "checked"
    exact = "codes" in name or name.endswith(("ids", "mask"))
    assert row.tolerance == (0 if exact else 2e-5)
    assert row.ok, f"{name} {row.shape}: differs by {row.max_abs_diff}"
    assert row.max_abs_diff <= row.tolerance


def test_every_array_has_one_row(rows):
    with np.load(GOLDENS / parity.FILE) as arrays:
        assert list(rows) == arrays.files
    assert {name for name, row in rows.items() if row.status == "input"} >= INPUTS
