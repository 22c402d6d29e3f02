"""A converted checkpoint goes straight into a mesh, and into inference."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import lavit_jax
import published_weights
from lavit_jax.cli.main import main
from lavit_jax.convert.convert import convert
from lavit_jax.convert.load import load_converted, text_tokenizer
from lavit_jax.convert.pixel_infer import FOLDERS
from lavit_jax.convert.published import load_published
from lavit_jax.errors import UserError
from lavit_jax.inference import pixels
from lavit_jax.inference.api import Lavit
from lavit_jax.models import lavit
from lavit_jax.parallel.mesh import make_mesh
from published_weights import GROUPED

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A published checkpoint and what it was converted to."""
    path = tmp_path_factory.mktemp("load")
    states = published_weights.weights(GROUPED)
    src = published_weights.write(path / "src", GROUPED, states)
    convert(src, path / "ours")
    return src, path / "ours"


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    path = tmp_path_factory.mktemp("goldens") / "ours"
    convert(GOLDENS, path)
    return path


def test_it_is_what_was_published(both):
    src, ours = both
    expected, found = load_published(src), load_converted(ours)
    assert found.config == expected.config
    assert found.extra.conditions == expected.extra.conditions
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.codebook is not None and expected.codebook is not None
    np.testing.assert_array_equal(found.codebook.codes_KC, expected.codebook.codes_KC)


def test_every_device_holds_its_own_share(both):
    found = load_converted(both[1], mesh=make_mesh(data=1, fsdp=4, tensor=2))
    query = found.params["llm"]["blocks"]["query"]["kernel"]  # [layers, embed, heads, head_dim]
    assert query.sharding.shard_shape(query.shape) == (3, 32 // 4, 4 // 2, 6)
    embedding = found.params["llm"]["embedding"]  # 75 ids: no multiple of 2, so replicated
    assert embedding.sharding.shard_shape(embedding.shape) == (75, 32 // 4)
    for name in ("decoder", "highres_decoder"):
        up = found.params[name]["blocks"]["mlp"]["fc1"]["kernel"]
        assert up.sharding.shard_shape(up.shape)[1] == up.shape[1] // 4
    expected = load_published(both[0]).params
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)


def test_pixel_decoders_are_split_as_training_splits_them(goldens):
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    params = load_converted(goldens, mesh, parts=["pixel_decoding"]).params
    for name, path in (
        ("lowres_unet", "middle_residual0"),
        ("lowres_autoencoder/encoder", "middle_residual0"),
    ):
        node = params
        for key in (*name.split("/"), path):
            node = node[key]
        kernel = node["conv1"]["kernel"]  # [3, 3, embed, mlp]
        inputs, outputs = kernel.shape[2:]
        assert kernel.sharding.shard_shape(kernel.shape) == (3, 3, inputs // 4, outputs // 2)


def test_arrays_of_no_module_are_split_by_their_shapes(goldens):
    mesh = make_mesh(data=1, fsdp=8)
    params = load_converted(goldens, mesh, parts=["pixel_decoding"]).params
    (stored,) = params["lowres_uncond"].values()  # [1, 8, 24]
    assert stored.sharding.shard_shape(stored.shape) == (1, 8, 3)


def test_parts_and_dtype_may_be_chosen(both):
    found = load_converted(both[1], parts=["language_model"], dtype="bfloat16")
    assert set(found.params) == {"llm", "conditioner"}
    assert found.codebook is None
    assert found.params["llm"]["embedding"].dtype == "bfloat16"
    visual = load_converted(both[1], parts=["visual_tokenizer"], dtype="bfloat16")
    assert visual.params["encoder"]["pos_embed"].dtype == "bfloat16"
    assert visual.codebook is not None and visual.codebook.codes_KC.dtype == "float32"
    with pytest.raises(UserError, match="no pixel_decoding in it, only visual_tokenizer, lang"):
        load_converted(both[1], parts=["pixel_decoding"])
    with pytest.raises(UserError, match="part 'unet' is unknown"):
        load_converted(both[1], parts=["unet"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "model.json: no such file, expected a folder made by `lavit convert`"),
        ('{"format": 1', "truncated or not a converted model's"),
        ('{"format": 1}', "truncated or not a converted model's .*KeyError"),
        ('{"format": 99}', "has format 99, expected 1"),
    ],
)
def test_a_damaged_record_is_told(content, told, tmp_path):
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=told):
        load_converted(tmp_path)


def test_a_damaged_array_is_told(tmp_path):
    states = published_weights.weights(GROUPED)
    src = published_weights.write(tmp_path / "src", GROUPED, {"encoder": states["encoder"]})
    convert(src / "visual_tokenizer" / "eva_vitg_psz14.bin", tmp_path / "ours", heads=3)
    for file in (tmp_path / "ours" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="params: damaged or incomplete"):
        load_converted(tmp_path / "ours")


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def test_inference_from_it_says_what_the_published_weights_say(goldens, picture):
    ours = lavit_jax.load(goldens)
    source = load_published(GOLDENS)
    text = text_tokenizer(goldens)
    published = Lavit(lavit.build_modules(source.config), source.params, source.codebook, text)
    (tokens,), (expected,) = ours.tokenize([picture]), published.tokenize([picture])
    np.testing.assert_array_equal(tokens.ids, expected.ids)
    assert ours.caption([picture]) == published.caption([picture])


def test_inference_takes_it_from_a_bucket(goldens, monkeypatch):
    local = lambda url: epath.Path(str(url).replace("gs://bucket", str(goldens.parent)))  # noqa: E731
    for module in ("lavit_jax.inference.api", "lavit_jax.convert.load", "lavit_jax.data.text"):
        monkeypatch.setattr(f"{module}.epath", types.SimpleNamespace(Path=local))
    model = lavit_jax.load(f"gs://bucket/{goldens.name}")
    assert model.text is not None and model.text.vocab_size == 400


def test_the_commands_take_it(goldens, picture, tmp_path, capsys):
    workdir = ["--workdir", str(goldens), "--json"]
    assert main(["tokenize", picture, "--out", str(tmp_path), *workdir]) == 0
    (tokens,) = json.loads(capsys.readouterr().out)["images"]
    assert len(tokens["ids"]) == tokens["kept"] > 0
    assert main(["caption", picture, *workdir]) == 0
    (caption,) = json.loads(capsys.readouterr().out)["captions"]
    assert caption["caption"]
    assert main(["answer", picture, "what is this?", *workdir]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert isinstance(answer["answer"], str)


@pytest.mark.parametrize("decoder", ["lowres", "highres"])
def test_it_paints_by_both_published_decoders(decoder, goldens, picture):
    ours = lavit_jax.load(goldens)
    quick = {"decoder": decoder, "decoder_steps": 2}
    (again,) = ours.reconstruct([picture], **quick)
    source = load_published(GOLDENS, ["visual_tokenizer", FOLDERS[decoder]])
    (tokens,) = ours.tokenize([picture])
    (expected,) = pixels.published(source)[decoder].paint(
        [tokens.ids], settings=pixels.Settings(steps=2)
    )
    assert np.abs(again.astype(int) - expected.astype(int)).max() <= 1
    ((drawn,),) = ours.draw(["a cat"], **quick)
    assert drawn.shape == again.shape == (16, 16, 3)


def test_it_paints_in_bfloat16_where_it_was_converted_to_that(tmp_path):
    convert(GOLDENS, tmp_path / "half", dtype="bfloat16")
    found = load_converted(tmp_path / "half", parts=["pixel_decoding"])
    for part in found.pixels.values():
        assert part.config.unet.dtype == part.config.autoencoder.dtype == "bfloat16"
    decoder = found.extra.conditions.highres_decoder
    assert decoder is not None and decoder.dtype == "bfloat16"
    settings = pixels.Settings(steps=1, guidance=1.0)
    painted = lavit_jax.load(tmp_path / "half").paint([np.arange(5)], "highres", 0, settings)
    assert painted[0].shape == (16, 16, 3)
    assert painted[0].std() > 1


def test_what_was_never_converted_is_told(both, goldens, picture, tmp_path, capsys):
    convert(GOLDENS, tmp_path / "llm", "language_model")
    assert main(["caption", picture, "--workdir", str(tmp_path / "llm")]) == 2
    assert "this model has no encoder: the checkpoint it was converted" in capsys.readouterr().err
    assert main(["draw", "a cat", "--workdir", str(tmp_path / "llm")]) == 2
    assert "this model has no decoder: the checkpoint it was" in capsys.readouterr().err
    draw = ["draw", "a cat", "--workdir", str(goldens), "--decoder", "onepass"]
    assert main(draw) == 2
    assert "no onepass decoder; it has: highres, lowres" in capsys.readouterr().err
    with pytest.raises(UserError, match="no text tokenizer: its source had no tokenizer.model"):
        lavit_jax.load(both[1]).caption([picture], prompt="a")
