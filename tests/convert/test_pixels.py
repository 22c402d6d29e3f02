"""Pixel decoders in the published layout: loading, parity, and what cannot be loaded."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import pixel_math
import pixel_weights
import published_weights
from lavit_jax.convert import convert, load, parity, parity_pixels, pixel_infer, published
from lavit_jax.errors import UserError
from published_weights import GROUPED

GOLDENS = Path(__file__).parents[1] / "goldens" / "lavit-mini"
CHECKS = (
    parity_pixels.check_unets,
    parity_pixels.check_autoencoder,
    parity_pixels.check_sampling,
)
ROWS = (
    "lowres_eps", "highres_eps", "vae_decoded_nchw", "vae_mean", "vae_logvar", "ddim_timesteps",
    "ddim_trajectory_nchw", "ddim_image_nchw", "uncond_embeddings",
)  # fmt: skip
PARTS = ("pixel_decoding", "highres_pixel_decoding")
ALL = ("visual_tokenizer", "language_model", *PARTS)
UNCONDITIONAL = np.linspace(-1, 1, 4 * 7, dtype=np.float32).reshape(1, 4, 7)


def write_decoders(folder):
    """Both, each with an autoencoder of its own."""
    pixel_weights.write(
        folder / "pixel_decoding", pixel_weights.LOWRES,
        pixel_weights.AUTOENCODER | {"scaling_factor": 0.2}, seed=40, unconditional=UNCONDITIONAL,
    )  # fmt: skip
    pixel_weights.write(
        folder / "highres_pixel_decoding", pixel_weights.HIGHRES, pixel_weights.AUTOENCODER
    )
    return folder


def write_all(folder):
    published_weights.write(folder, GROUPED, published_weights.weights(GROUPED))
    return write_decoders(folder)


def edit(path, **changes):
    """Changes keys of a config; None takes one out."""
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def test_every_pixel_array_of_the_goldens_agrees():
    rows = {row.name: row for row in parity.run(GOLDENS, CHECKS)}
    assert {name: rows[name].status for name in ROWS} == dict.fromkeys(ROWS, "checked")
    assert [name for name in ROWS if not rows[name].ok] == []
    assert rows["lowres_eps"].tolerance == 2e-5
    # The walk reaches 28.6: judged relative to that, as documented.
    assert rows["ddim_trajectory_nchw"].tolerance == pytest.approx(28.6 * 2e-5, rel=0.01)


def test_a_wrong_number_of_a_pixel_array_is_found(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "mini")
    with np.load(GOLDENS / parity.FILE) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name in ("lowres_eps", "vae_mean", "ddim_trajectory_nchw"):
        arrays[name].flat[5] += 1e-3
    np.savez(tmp_path / "mini" / parity.FILE, **arrays)
    rows = parity.run(tmp_path / "mini", CHECKS)
    assert {row.name for row in rows if not row.ok and row.status == "checked"} == {
        "lowres_eps", "vae_mean", "ddim_trajectory_nchw",
    }  # fmt: skip


def reference_arrays(folder, autoencoder=PARTS[1]):
    """What plain torch computes, in the names of the goldens; `vae_...` by one autoencoder."""
    rng = np.random.default_rng(7)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, t = draw(2, 3, 8, 16), np.array([5, 740])
    arrays = {
        "unet_latents_nchw": x, "unet_t": t, "lowres_cond": draw(2, 9, 7),
        "lowres_cond_mask": np.arange(9) < np.array([[9], [4]]), "highres_cond": draw(2, 9, 20),
        "highres_pooled": draw(2, 11), "highres_time_ids": rng.integers(0, 64, (2, 6)) * 1.0,
        "vae_image_nchw": draw(1, 3, 16, 8),
    }  # fmt: skip
    arrays["highres_time_ids"] = arrays["highres_time_ids"].astype(np.float32)
    tensors = {name: torch.as_tensor(value) for name, value in arrays.items()}
    states = {
        (part, name): load_file(folder / part / name / "diffusion_pytorch_model.safetensors")
        for part in PARTS
        for name in ("unet", "vae")
    }
    x, t = tensors["unet_latents_nchw"], tensors["unet_t"]
    arrays["lowres_eps"], _ = pixel_math.unet(
        states[PARTS[0], "unet"], pixel_weights.LOWRES, x, t, tensors["lowres_cond"],
        tensors["lowres_cond_mask"],
    )  # fmt: skip
    highres = [tensors[f"highres_{n}"] for n in ("cond", "pooled", "time_ids")]

    def wide(x, t, cond, pooled, sizes):
        state = states[PARTS[1], "unet"]
        return pixel_math.unet(state, pixel_weights.HIGHRES, x, t, cond, None, pooled, sizes)[0]

    arrays["highres_eps"] = wide(x, t, *highres)
    vae, settings = states[autoencoder, "vae"], pixel_weights.AUTOENCODER
    arrays["vae_decoded_nchw"], _ = pixel_math.decode(vae, settings, x)
    arrays["vae_mean"], arrays["vae_logvar"], _ = pixel_math.encode(
        vae, settings, tensors["vae_image_nchw"]
    )
    # Three guided DDIM steps by hand.
    kept = np.cumprod(1 - np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2)
    times, walk, z = [667, 334, 1], [], x[:1].numpy()
    one = [h[:1] for h in highres]
    none = [torch.zeros_like(one[0]), torch.zeros_like(one[1]), one[2]]
    for time in times:
        at = torch.tensor([time])
        u, c = (wide(torch.as_tensor(z), at, *condition) for condition in (none, one))
        eps = u + 7 * (c - u)
        now, then = kept[time], kept[time - 333] if time >= 333 else 1.0
        z = (z - (1 - now) ** 0.5 * eps) / now**0.5 * then**0.5 + (1 - then) ** 0.5 * eps
        z = z.astype(np.float32)
        walk.append(z)
    arrays["ddim_timesteps"] = np.array(times)
    arrays["ddim_trajectory_nchw"] = np.stack(walk)
    highres_vae = states[PARTS[1], "vae"]
    pixels, _ = pixel_math.decode(highres_vae, settings, torch.as_tensor(z / 0.3))
    arrays["ddim_image_nchw"] = np.clip(pixels / 2 + 0.5, 0, 1)
    arrays["uncond_embeddings"] = UNCONDITIONAL
    return arrays


@pytest.mark.parametrize("autoencoder", PARTS)
def test_decoders_of_other_shapes_agree(autoencoder, tmp_path):
    folder = write_all(tmp_path)
    np.savez(folder / parity.FILE, **reference_arrays(folder, autoencoder))
    rows = {row.name: row for row in parity.run(folder, CHECKS)}
    assert [name for name in ROWS if not rows[name].ok] == []
    assert {rows[name].status for name in ROWS} == {"checked"}


def test_sizes_come_from_the_configs(tmp_path):
    loaded = published.load_published(write_all(tmp_path), ALL)
    low, high = loaded.pixels["lowres"].config, loaded.pixels["highres"].config
    assert (low.unet.channels, low.unet.layers, low.unet.heads) == ((8, 12), (2, 1), (2, 3))
    assert low.unet.down_attention == (False, True)
    # Files count the way up from the coarsest level, we from the finest.
    assert high.unet.up_attention == (False, False, True, True)
    assert (high.unet.pooled, high.unet.size_width, high.unet.depths) == (11, 4, (1, 1, 3, 1))
    assert (low.guidance, low.sampling_steps) == (5.0, 50)
    assert (high.guidance, high.sampling_steps) == (7.0, 25)
    assert (low.autoencoder.factor, low.autoencoder.tile, low.autoencoder.scaling) == (4, 6, 0.2)
    (stored,) = loaded.params["lowres_uncond"].values()
    np.testing.assert_array_equal(stored, UNCONDITIONAL)
    assert "highres_uncond" not in loaded.params
    assert {"lowres_unet", "highres_unet", "highres_autoencoder"} <= loaded.params.keys()


def test_what_a_config_leaves_out_has_diffusers_values():
    sizes = pixel_infer.unet({}, Path("x"))
    assert sizes.channels == (320, 640, 1280, 1280)
    assert sizes.heads == (8,) * 4  # "attention_head_dim" counts heads
    assert sizes.down_attention == (True, True, True, False)
    assert sizes.up_attention == (True, True, True, False)
    noise = pixel_infer.noise({}, Path("x"))
    assert (noise.beta_schedule, noise.clip, noise.final_alpha_one) == ("linear", 1.0, True)


def test_torch_files_and_old_attention_names_load(tmp_path):
    from lavit_jax.convert import forms, pixel_names

    settings = pixel_weights.AUTOENCODER
    state = pixel_weights.autoencoder_state(
        settings, attention=pixel_names.OLD_ATTENTION, form=forms.pointwise
    )
    folder = write_decoders(tmp_path)
    path = folder / PARTS[1] / "vae" / "diffusion_pytorch_model"
    path.with_suffix(".safetensors").unlink()
    torch.save({n: torch.as_tensor(v) for n, v in state.items()}, path.with_suffix(".bin"))
    loaded = published.load_published(folder, [PARTS[1]])
    found = loaded.params["highres_autoencoder"]["decoder"]["middle_attention"]["proj"]["kernel"]
    name = "decoder.mid_block.attentions.0.proj_attn.weight"
    np.testing.assert_array_equal(found, state[name][:, :, 0, 0].T)


def test_sharded_weights_load(tmp_path):
    folder = write_decoders(tmp_path)
    path = folder / PARTS[1] / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    path.unlink()
    names, where = sorted(whole), {}
    for shard in range(2):
        file = f"diffusion_pytorch_model-0000{shard + 1}-of-00002.safetensors"
        save_file({n: whole[n] for n in names[shard::2]}, path.with_name(file))
        where |= dict.fromkeys(names[shard::2], file)
    index = path.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": where}))
    loaded = published.load_published(folder, [PARTS[1]])
    np.testing.assert_array_equal(
        loaded.params["highres_unet"]["in_conv"]["bias"], whole["conv_in.bias"]
    )


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet", {"block_out_channels": [6, 6, 12, 36]}, "has shape .* expected"),
        ("unet", {"layers_per_block": 2}, "'down_blocks.0.resnets.1.conv1.weight' is missing"),
        ("unet", {"attention_head_dim": [1, 3, 5, 9]}, r"heads\[2\]=5 does not divide"),
        ("unet", {"attention_head_dim": [1, 3]}, "attention_head_dim has 2 values for 4 levels"),
        ("unet", {"down_block_types": ["ResnetDownsampleBlock2D"] * 4}, "down_block_types holds"),
        (
            "unet",
            {"down_block_types": "DownBlock2D"},
            "down_block_types is 'DownBlock2D', e",
        ),
        ("unet", {"freq_shift": [1]}, "config.json: has a value that cannot be used"),
        ("vae", {"shift_factor": {}, "norm_num_groups": "2"}, "vae/config.json: "),
        ("unet", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type 'timestep' is not supported"),
        ("unet", {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
        ("unet", {"cross_attention_dim": [20, 20, 20, 8]}, "expected one width"),
        ("unet", {"in_channels": 4}, "in_channels is 4, but latents have 3"),
        ("unet", {"block_out_channels": "6"}, "expected a list of widths"),
        ("unet", {"sample_size": "64"}, "sample_size is '64', expected"),
        ("vae", {"latents_mean": [0.0]}, "latents_mean"),
        ("vae", {"norm_num_groups": 3}, r"groups=3 does not divide channels\[0\]=4"),
        ("vae", {"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "expected 'UpDecoderBlock2D'"),
        ("scheduler", {"beta_schedule": "sigmoid"}, "beta_schedule must be one of"),
        ("scheduler", {"num_train_timesteps": 9.5}, "num_train_timesteps is 9.5, expected a whole"),
        ("scheduler", {"num_train_timesteps": 0}, "expected a whole number of at least 1"),
        ("scheduler", {"beta_end": "0.1"}, "beta_end is '0.1', expected a number"),
        ("scheduler", {"prediction_type": "flow"}, "prediction must be one of"),
        ("scheduler", {"thresholding": True}, "thresholding True is not supported"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "zero_snr needs prediction"),
    ],
)
def test_configs_that_cannot_be_used_are_told(file, changes, message, tmp_path):
    folder = write_decoders(tmp_path)
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    path = folder / PARTS[1] / file / name
    edit(path, **changes)
    with pytest.raises(UserError, match=message) as error:
        published.load_published(folder, [PARTS[1]])
    assert PARTS[1] in str(error.value)


def test_decoders_that_do_not_fit_their_condition_head_are_told(tmp_path):
    folder = write_all(tmp_path)
    shutil.rmtree(folder / PARTS[0])
    other = pixel_weights.LOWRES | {"cross_attention_dim": 6}
    wrong = np.zeros((1, 4, 6), np.float32)
    pixel_weights.write(folder / PARTS[0], other, pixel_weights.AUTOENCODER, unconditional=wrong)
    with pytest.raises(UserError, match="reads conditions of 6, but its condition head makes 7"):
        published.load_published(folder, ALL)


def test_missing_and_misshapen_files_are_told(tmp_path):
    folder = write_decoders(tmp_path)
    stored = folder / PARTS[0] / "uncond_embeddings.bin"
    torch.save(torch.zeros(4, 7), stored)
    with pytest.raises(UserError, match=r"uncond_embeddings.bin: has \(4, 7\), expected one"):
        published.load_published(folder, [PARTS[0]])
    stored.unlink()  # SD 1.5 has none: its unconditional branch reads zeros then
    assert "lowres_uncond" not in published.load_published(folder, [PARTS[0]]).params
    path = folder / PARTS[1] / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["mid_block.extra.weight"] = state.pop("conv_out.bias")
    save_file(state, path)
    with pytest.raises(UserError, match="'conv_out.bias' is missing.*extra.weight' is not expect"):
        published.load_published(folder, [PARTS[1]])
    path.unlink()
    with pytest.raises(FileNotFoundError, match="diffusion_pytorch_model.bin: no such file"):
        published.load_published(folder, [PARTS[1]])


def test_a_missing_config_is_told(tmp_path):
    folder = write_decoders(tmp_path)
    (folder / PARTS[1] / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json: no such file"):
        published.load_published(folder, [PARTS[1]])


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("unet", "conv_in.weight", r"'conv_in.weight' has shape \(7, 3, 3, 3\), expected"),
        ("unet", "mid_block.resnets.0.conv1.bias", "'mid_block.resnets.0.conv1.bias' is missing"),
        ("vae", "decoder.conv_out.weight", r"'decoder.conv_out.weight' has shape .* expected \("),
        ("vae", "encoder.conv_in.bias", r"'encoder.conv_in.bias' is missing, expected shape \(4"),
    ],
)
def test_a_decoder_that_does_not_fit_is_not_converted(file, name, message, tmp_path):
    folder = write_decoders(tmp_path / "source")
    path = folder / PARTS[1] / file / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    tensor = state.pop(name)
    if name.endswith("weight"):
        state[name] = np.concatenate([tensor, tensor[:1]])
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        convert.convert(folder, tmp_path / "converted")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_converted_checkpoint_knows_its_pixel_decoders(tmp_path):
    folder = write_decoders(tmp_path / "source")
    convert.convert(folder, tmp_path / "converted")
    found = load.load_converted(tmp_path / "converted")
    loaded = published.load_published(folder, PARTS)
    assert dict(found.pixels) == loaded.pixels
    for name in ("lowres_unet", "highres_autoencoder", "lowres_uncond"):
        jax.tree.map(np.testing.assert_array_equal, found.params[name], loaded.params[name])
