"""Comparison with published outputs: lavit-mini, and checkpoints of quite other shapes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import published_math
import published_weights
from lavit_jax.convert import parity, published
from lavit_jax.errors import UserError
from published_weights import GROUPED, PUBLISHED_RATIO, Shapes

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
MINI = Shapes(
    width=64, heads=4, hidden=279, encoder_depth=2, merger_depth=2, decoder_depth=2,
    highres_depth=2, grid=4, patch=14, embed_dim=32, codes=128, code_dim=8, lowres=24,
    highres=(24, 40), llm_width=48, llm_depth=2, llm_heads=4, kv_heads=4, head_dim=12,
    llm_hidden=96, text_vocab=400, theta=10000.0, eps=1e-5,
)  # fmt: skip
GENERATED = ("greedy_ids", "beam2_caption_ids", "beam5_answer_ids", "t2i_greedy_ids")


def checkpoint(folder, shapes, seed=0, **changes):
    """A whole folder with reference_io.npz; `changes` replaces arrays."""
    states = published_weights.weights(shapes, seed)
    published_weights.write(folder, shapes, states)
    arrays = published_math.reference_arrays(states, shapes, seed) | changes
    np.savez(folder / parity.FILE, **arrays)
    return folder


def test_the_plain_reference_agrees_with_the_goldens():
    states = {
        component: {name: tensors.read(name) for name in tensors.infos}
        for component, tensors in published.open_sources(GOLDENS).items()
    }
    with np.load(GOLDENS / parity.FILE) as stored:
        goldens = {name: stored[name] for name in stored.files}
    inputs = ("image_nchw", "tok_image_nchw", "keep", "lm_ids", "lm_mask", "question_ids",
              "t2i_prompt_ids")  # fmt: skip
    ours = published_math.compute(states, MINI, {name: goldens[name] for name in inputs})
    assert len(ours) > 35
    for name, array in ours.items():
        assert array.shape == goldens[name].shape, name
    for name in ("tok_random_merged", "tok_all_merged", "tok_encoder_head", "llm_features",
                 "tok_decoder_highres_pooled", "tok_decoder_lowres_cond", "tok_greedy_keep",
                 "tok_tokenize_image_ids", "tok_selector_log_probs", *GENERATED):  # fmt: skip
        np.testing.assert_allclose(ours[name], goldens[name], atol=2e-5, err_msg=name)
    real = goldens["lm_mask"] > 0
    np.testing.assert_allclose(ours["lm_logits"][real], goldens["lm_logits"][real], atol=3e-5)
    # The stored scores carry the rounding of float32, seven times over under guidance.
    np.testing.assert_allclose(ours["t2i_scores"], goldens["t2i_scores"], atol=1e-4)


@pytest.mark.parametrize("shapes", [GROUPED, PUBLISHED_RATIO], ids=["grouped", "ratio"])
def test_other_shapes_agree(shapes, tmp_path):
    folder = checkpoint(tmp_path, shapes)
    rows = {row.name: row for row in parity.run(folder)}
    assert [row for row in rows.values() if not row.ok] == []
    assert {row.status for row in rows.values()} == {"checked", "input"}
    assert sum(row.status == "checked" for row in rows.values()) == 35
    assert rows.keys() >= {"t2i_scores", *GENERATED}


def test_a_wrong_number_is_found(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "mini")
    with np.load(GOLDENS / parity.FILE) as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["tok_random_merged"][0, 0, 3] += 1e-3  # a kept patch
    arrays["tok_random_codes"][0, 1] += 1  # a dropped patch: means nothing
    arrays["tok_all_codes"][0, 1] += 1
    arrays["lm_logits"][1, 0] = 9e9  # padding
    arrays["prompt_mask"] = arrays["prompt_mask"][:, 1:]  # another shape
    arrays["unheard_of"] = np.zeros(3)
    np.savez(tmp_path / "mini" / parity.FILE, **arrays)
    checks = (parity.check_tokenizer, parity.check_language_model, parity.check_condition)
    rows = {row.name: row for row in parity.run(tmp_path / "mini", checks)}
    # Later modules are fed the published output of the one before.
    wrong = {name for name, row in rows.items() if row.status == "checked" and not row.ok}
    assert wrong >= {"tok_random_merged", "tok_all_codes", "prompt_mask"}
    assert wrong <= {
        "tok_random_merged", "tok_all_codes", "prompt_mask", "tok_random_llm_features",
        "tok_random_code_features", "tok_all_quantized", "prompt_last_logits",
    }  # fmt: skip
    assert rows["tok_random_merged"].max_abs_diff == pytest.approx(1e-3, rel=0.1)
    assert rows["prompt_mask"].max_abs_diff == np.inf
    assert (rows["unheard_of"].status, rows["unheard_of"].ok) == ("not checked", False)


def test_a_nan_never_agrees():
    row = parity.compare(parity.Result("x", np.array([np.nan, 0])), np.zeros(2, np.float32))
    assert not row.ok


def test_what_is_impossible_on_both_sides_agrees():
    expected = np.array([-np.inf, 1.0], np.float32)
    assert parity.compare(parity.Result("x", expected.copy()), expected).ok
    assert not parity.compare(parity.Result("x", np.array([0.0, 1.0])), expected).ok
    assert not parity.compare(parity.Result("x", np.array([-np.inf, -np.inf])), expected).ok


def test_padding_is_not_compared():
    result = parity.Result("x", np.array([1.0, 5.0]), np.array([True, False]))
    assert parity.compare(result, np.array([1.0, 0.0])).ok


def test_ids_must_be_equal():
    row = parity.compare(parity.Result("x", np.array([1, 2])), np.array([1, 3]))
    assert (row.tolerance, row.max_abs_diff, row.ok) == (0, 1, False)


def test_the_decoders_may_be_missing(tmp_path):
    folder = checkpoint(tmp_path, GROUPED)
    for name in ("tokenizer_decoder", "highres_tokenizer_decoder"):
        (folder / "visual_tokenizer" / f"{name}.bin").unlink()
    rows = {row.name: row for row in parity.run(folder)}
    assert rows["tok_random_merged"].status == "checked"
    # What cannot be computed is no agreement.
    unknown = {name for name, row in rows.items() if row.status == "not checked"}
    assert unknown == {name for name, row in rows.items() if not row.ok}
    assert unknown == {
        "tok_decoder_lowres_reconstruction", "tok_decoder_lowres_cond",
        "tok_decoder_highres_pooled",
        "tok_decoder_highres_reconstruction", "tok_decoder_highres_prompt_embeds",
    }  # fmt: skip


def test_inputs_of_another_checkpoint_are_told(tmp_path):
    folder = checkpoint(tmp_path, GROUPED)
    shutil.copy(GOLDENS / parity.FILE, folder / parity.FILE)
    with pytest.raises(UserError, match="do not fit the checkpoint .check_encoder"):
        parity.run(folder)


def test_a_folder_without_outputs_is_told(tmp_path):
    published_weights.write(tmp_path, GROUPED, published_weights.weights(GROUPED))
    with pytest.raises(UserError, match="reference_io.npz: no such file"):
        parity.run(tmp_path)


def test_a_folder_of_something_else_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the published layout"):
        parity.run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        parity.run(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_damaged_outputs_are_told(damage, tmp_path):
    published_weights.write(tmp_path, GROUPED, published_weights.weights(GROUPED))
    path = tmp_path / parity.FILE
    if damage == "cut":
        path.write_bytes((GOLDENS / parity.FILE).read_bytes()[:5000])
    else:
        np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="truncated or not an npz of plain arrays"):
        parity.run(tmp_path)
