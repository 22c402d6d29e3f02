"""Loading: sizes inferred from any shape and layout; every fault named."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

import published_weights
from lavit_jax.convert import infer, published
from lavit_jax.convert.published import infer_config, load_published
from lavit_jax.errors import UserError
from published_weights import GROUPED, PUBLISHED_RATIO

LAYOUTS = ("safetensors", "safetensors-sharded", "torch", "torch-sharded")


@pytest.fixture(scope="module")
def states():
    return published_weights.weights(GROUPED)


def folder_of(tmp_path, states, edit=None, **options):
    """A checkpoint whose state dicts `edit` may change first."""
    states = {component: dict(state) for component, state in states.items()}
    if edit is not None:
        edit(states)
    return published_weights.write(tmp_path, GROUPED, states, **options)


def edit_settings(folder, **changes):
    path = folder / "language_model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("shapes", [GROUPED, PUBLISHED_RATIO], ids=["grouped", "ratio"])
@pytest.mark.parametrize("old", [False, True])
def test_every_size_is_inferred(shapes, old, tmp_path):
    if old:  # such files cannot tell another head width than width / heads by config
        shapes = dataclasses.replace(shapes, head_dim=shapes.llm_width // shapes.llm_heads)
    states = published_weights.weights(shapes)
    folder = published_weights.write(tmp_path, shapes, states, old=old)
    sizes = infer_config(folder)
    s, c = shapes, sizes.config
    assert (c.encoder.image_size, c.encoder.patch_size) == (s.grid * s.patch, s.patch)
    assert (c.encoder.width, c.encoder.depth, c.encoder.heads) == (
        s.width,
        s.encoder_depth,
        s.heads,
    )
    assert c.encoder.embed_dim == s.embed_dim
    assert c.merger.attention == "published"
    assert (c.merger.depth, c.decoder.depth) == (s.merger_depth, s.decoder_depth)
    assert c.encoder.hidden == c.merger.hidden == c.decoder.hidden == s.hidden
    assert (c.quantizer.codes, c.quantizer.code_dim) == (s.codes, s.code_dim)
    assert (c.decoder.patches, c.decoder.code_dim) == (s.patches, s.code_dim)
    assert c.llm.text_vocab == s.text_vocab
    assert (c.llm.width, c.llm.depth, c.llm.hidden) == (s.llm_width, s.llm_depth, s.llm_hidden)
    assert (c.llm.heads, c.llm.kv_heads, c.llm.head_dim) == (s.llm_heads, s.kv_heads, s.head_dim)
    assert (c.llm.rope_theta, c.llm.norm_eps, c.llm.max_length) == (s.theta, s.eps, 99)
    assert sizes.conditions.lowres == s.lowres
    assert sizes.conditions.highres == s.highres
    assert sizes.conditions.highres_decoder.depth == s.highres_depth


def test_the_head_width_may_differ_from_width_by_heads(tmp_path, states):
    folder = folder_of(tmp_path, states, old=True)
    assert infer_config(folder).config.llm.head_dim == GROUPED.head_dim


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_language_model_reads_the_same(layout, tmp_path, states):
    folder = folder_of(tmp_path, states, layout=layout)
    embedding = load_published(folder).params["llm"]["embedding"]
    np.testing.assert_array_equal(embedding, states["llm"]["model.embed_tokens.weight"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_reads_exactly(layout, dtype, tmp_path, states):
    import torch

    half = {name: value.astype(dtype) for name, value in states["llm"].items()}
    folder = folder_of(tmp_path, states)
    for file in (folder / "language_model").glob("model*"):
        file.unlink()
    if layout.startswith("torch"):
        kind = torch.float16 if dtype == np.float16 else torch.bfloat16
        tensors = {k: torch.from_numpy(v.astype(np.float32)).to(kind) for k, v in half.items()}
        torch.save(tensors, folder / "language_model" / "pytorch_model.bin")
    else:
        published_weights.write_llm(folder / "language_model", half, layout)
    loaded = load_published(folder, ["language_model"], codes=GROUPED.codes)
    expected = half["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(loaded.params["llm"]["embedding"], expected, strict=True)


def test_parameters_may_be_asked_for_in_bfloat16(tmp_path, states):
    loaded = load_published(folder_of(tmp_path, states), dtype=ml_dtypes.bfloat16)
    assert loaded.params["llm"]["blocks"]["query"]["kernel"].dtype == ml_dtypes.bfloat16
    assert loaded.codebook.codes_KC.dtype == np.float32


def test_parts_load_alone(tmp_path, states):
    folder = folder_of(tmp_path, states)
    visual = load_published(folder, ["visual_tokenizer"])
    assert "llm" not in visual.params
    assert visual.codebook.codes_KC.shape == (GROUPED.codes, GROUPED.code_dim)
    language = load_published(folder, ["language_model"], codes=GROUPED.codes)
    assert set(language.params) == {"llm", "conditioner"}
    assert language.codebook is None
    assert language.config.llm == load_published(folder).config.llm
    with pytest.raises(UserError, match="part 'unet' is unknown"):
        load_published(folder, ["unet"])


def test_the_number_of_codes_is_in_the_visual_tokenizer_beside_or_has_to_be_given(tmp_path, states):
    folder = folder_of(tmp_path, states)
    alone = load_published(folder, ["language_model"])
    assert alone.config.llm.text_vocab == GROUPED.text_vocab
    (folder / "visual_tokenizer" / "tokenizer_encoder.bin").unlink()
    with pytest.raises(UserError, match="the number of codes is not in a language model; give it"):
        load_published(folder, ["language_model"])


def test_the_instruction_tuned_language_model_is_another_folder(tmp_path, states):
    folder = folder_of(tmp_path, states)
    (folder / "language_model").rename(folder / "language_model_sft")
    assert "llm" not in load_published(folder).params
    assert "llm" in load_published(folder, llm_dir="language_model_sft").params
    with pytest.raises(FileNotFoundError, match="no language_model_v3/ in it"):
        load_published(folder, llm_dir="language_model_v3")


def test_a_tied_head_is_the_embedding(tmp_path, states):
    folder = folder_of(tmp_path, states, edit=lambda s: s["llm"].pop("lm_head.weight"))
    with pytest.raises(UserError, match="'lm_head.weight' is missing"):
        load_published(folder)
    edit_settings(folder, tie_word_embeddings=True)
    llm = load_published(folder).params["llm"]
    np.testing.assert_array_equal(llm["lm_head"]["kernel"], llm["embedding"].T)


def test_a_release_without_the_last_block_has_one_block_less(tmp_path, states):
    def edit(states):
        last = f"blocks.{GROUPED.encoder_depth - 1}."
        states["encoder"] = {k: v for k, v in states["encoder"].items() if not k.startswith(last)}

    loaded = load_published(folder_of(tmp_path, states, edit))
    assert loaded.config.encoder.depth == GROUPED.encoder_depth - 1


def test_rotary_frequencies_of_old_files_are_told_and_left(tmp_path, states):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit = lambda s: s["llm"].update({name: np.ones(3, np.float32)})  # noqa: E731
    loaded = load_published(folder_of(tmp_path, states, edit))
    assert [ignored.endswith(name) for ignored in loaded.extra.ignored] == [True]


def test_wrapped_tensors_are_found(tmp_path, states):
    import torch

    folder = folder_of(tmp_path, states)
    path = folder / "visual_tokenizer" / "eva_vitg_psz14.bin"
    torch.save({"model": torch.load(path, weights_only=True)}, path)
    assert load_published(folder).config.encoder.depth == GROUPED.encoder_depth


class TestHeads:
    def test_are_taken_from_the_reference_config(self, tmp_path, states):
        assert infer_config(folder_of(tmp_path, states)).config.encoder.heads == GROUPED.heads

    def test_may_be_given(self, tmp_path, states):
        folder = folder_of(tmp_path, states)
        assert load_published(folder, heads=6).config.merger.heads == 6

    def test_are_of_88_as_published_otherwise(self, tmp_path):
        shapes = dataclasses.replace(PUBLISHED_RATIO, width=176, heads=2, hidden=100)
        folder = published_weights.write(tmp_path, shapes, published_weights.weights(shapes))
        (folder / "reference_config.json").unlink()
        assert infer_config(folder).config.encoder.heads == 2

    def test_cannot_be_guessed_for_other_widths(self, tmp_path, states):
        folder = folder_of(tmp_path, states)
        (folder / "reference_config.json").unlink()
        with pytest.raises(UserError, match="number of heads is not in the weights"):
            infer_config(folder)

    def test_must_divide_the_width(self, tmp_path, states):
        with pytest.raises(UserError, match="7 heads do not divide the width 24"):
            infer_config(folder_of(tmp_path, states), heads=7)

    @pytest.mark.parametrize("content", ['{"heads": "three"}', "[3]", '{"heads"'])
    def test_a_bad_reference_config_is_told(self, content, tmp_path, states):
        folder = folder_of(tmp_path, states)
        (folder / "reference_config.json").write_text(content)
        with pytest.raises(UserError, match="reference_config.json"):
            infer_config(folder)


@pytest.mark.parametrize("width", [7, 64, 1408])
def test_a_ratio_always_gives_the_hidden_width(width):
    for hidden in range(1, 6 * width, 7):
        assert int(width * infer.mlp_ratio(width, hidden)) == hidden
    assert infer.mlp_ratio(1408, 6144) == 4.3637


def _rename(component, old, new):
    return lambda states: states[component].update({new: states[component].pop(old)})


def _replace(component, name, value):
    return lambda states: states[component].update({name: value})


F32 = np.float32
FAULTS = {
    "renamed": (
        _rename("tokenizer_encoder", "causal_encoder.norm.bias", "causal_encoder.norm.beta"),
        ["'causal_encoder.norm.bias' is missing, expected shape (24,)",
         "'causal_encoder.norm.beta' is not expected", "tokenizer_encoder.bin"],
    ),
    "renamed where sizes are read off": (
        _rename("encoder", "pos_embed", "pos_embedding"),
        ["eva_vitg_psz14.bin: tensor 'pos_embed' is missing; the closest there: 'pos_embedding'"],
    ),
    "several": (
        lambda s: (_rename("llm", "model.norm.weight", "model.norm.scale")(s),
                   _replace("encoder", "norm.bias", np.zeros(5, F32))(s)),
        ["'norm.bias' has shape (5,), expected (24,)", "'model.norm.weight' is missing",
         "'model.norm.scale' is not expected"],
    ),
    "misshapen": (
        _replace("conditioner", "vit_proj.weight", np.zeros((32, 23), F32)),
        ["visual_weight.bin: 'vit_proj.weight' has shape (32, 23), expected (32, 24)"],
    ),
    "of another rank": (
        _replace("tokenizer_encoder", "quantize.embedding.weight", np.zeros(9, F32)),
        ["'quantize.embedding.weight' has shape (9,), expected [K, C]"],
    ),
    "whole numbers": (
        _replace("tokenizer_decoder", "norm.weight", np.zeros(24, np.int64)),
        ["'norm.weight' has dtype int64, expected float32 or"],
    ),
    "a missing block": (
        lambda s: s["llm"].pop("model.layers.1.mlp.up_proj.weight"),
        ["'model.layers.1.mlp.up_proj.weight' is missing, expected shape (40, 32)"],
    ),
    "half a head": (
        lambda s: s["encoder"].pop("head.bias"),
        ["'head.bias' is missing, expected shape (10,)"],
    ),
    "no square of patches": (
        _replace("encoder", "pos_embed", np.zeros((1, 9, 24), F32)),
        ["'pos_embed' has 9 positions, expected [CLS] and a square number"],
    ),
    "too few ids": (
        lambda s: s["llm"].update({n: v[:15] for n, v in s["llm"].items() if len(v) == 75}),
        ["15 ids leave no text beside [IMG], [/IMG] and 20 codes"],
    ),
    "no blocks": (
        lambda s: s.update(encoder={k: v for k, v in s["encoder"].items() if "blocks" not in k}),
        ["eva_vitg_psz14.bin: tensor 'blocks.0.mlp.fc1.weight' is missing"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(fault, tmp_path, states):
    edit, told = FAULTS[fault]
    with pytest.raises(UserError) as raised:
        load_published(folder_of(tmp_path, states, edit))
    message = str(raised.value)
    assert "\n" not in message
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope type 'llama3' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
        ({"rms_norm_eps": [1]}, "config.json: has a value that cannot be used"),
        ({"rope_parameters": "linear"}, "config.json: has a value that cannot be used"),
        ({"num_attention_heads": 0}, "config.json: 'num_attention_heads' is 0, expected a pos"),
        ({"num_attention_heads": "4"}, "config.json: 'num_attention_heads' is '4', expected"),
        ({"head_dim": 0.5}, "config.json: 'head_dim' is 0.5, expected a positive whole"),
        ({"num_attention_heads": 8}, "expected"),
        ({"num_key_value_heads": 3}, "kv_heads must divide heads"),
    ],
)
def test_an_unfit_language_model_config_is_told(changes, told, tmp_path, states):
    folder = folder_of(tmp_path, states)
    edit_settings(folder, **changes)
    with pytest.raises(UserError, match=told):
        load_published(folder)


def test_missing_files_are_named(tmp_path, states):
    folder = folder_of(tmp_path, states)
    (folder / "language_model" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file"):
        load_published(folder)
    (folder / "visual_tokenizer" / "tokenizer_encoder.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer_encoder.bin: no such file"):
        load_published(folder)
    (folder / "language_model" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no .*safetensors and no pytorch_model"):
        load_published(folder, ["language_model"])


def test_the_published_sizes_need_no_folder():
    sizes = infer.published_sizes(encoder=None, merger=None, quantizer=None, decoder=None, llm=None)
    assert sizes.encoder.hidden == 6144
    assert sizes.llm.vocab == 32000 + 2 + 16384
    assert published.PARTS == ("visual_tokenizer", "language_model")
