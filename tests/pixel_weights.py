"""Random pixel decoders of shapes other than lavit-mini's, in the published layout."""

import json
from pathlib import Path

import numpy as np

from lavit_jax.convert import forms, pixel_infer, pixel_names

LOWRES = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8, 12],
    "layers_per_block": [2, 1],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 3],
    "transformer_layers_per_block": 2,
    "cross_attention_dim": 7,
    "norm_num_groups": 4,
    "norm_eps": 1e-4,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "in_channels": 3,
    "out_channels": 3,
}
HIGHRES = {
    "block_out_channels": [6, 6, 12, 18],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 3, 2, 9],
    "transformer_layers_per_block": [1, 1, 3, 1],
    "use_linear_projection": True,
    "cross_attention_dim": 20,
    "norm_num_groups": 6,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 11,
    "in_channels": 3,
    "out_channels": 3,
}
PLAIN = {
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
    "mid_block_type": "UNetMidBlock2D",
    "cross_attention_dim": 5,
    "norm_num_groups": 2,
}
AUTOENCODER = {
    "block_out_channels": [4, 4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 24,
    "scaling_factor": 0.3,
}
NOISE = {"beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
NOWHERE = Path("config.json")


def random_state(table, seed=0):
    """Random tensors of the published shapes, sized so that nothing explodes."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, (entry, _) in forms.places(table).items():
        shape = entry.form.published
        drawn = rng.normal(size=shape)
        if len(shape) > 1:
            drawn *= np.prod(shape[1:]) ** -0.5
        elif name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        else:
            drawn *= 0.1
        state[name] = drawn.astype(np.float32)
    return state


def unet_state(settings, seed=0):
    return random_state(pixel_names.unet(pixel_infer.unet(settings, NOWHERE)), seed)


def autoencoder_state(settings, seed=0, **how):
    config = pixel_infer.autoencoder(settings, NOWHERE)
    return random_state(pixel_names.autoencoder(config, **how), seed)


def write(folder, unet, autoencoder, *, seed=0, unconditional=None, noise=NOISE, save=None):
    """One pixel decoder; `save` writes a state to a path without suffix (default: safetensors)."""
    from safetensors.numpy import save_file

    for name, settings, state in (
        ("unet", unet, unet_state(unet, seed)),
        ("vae", autoencoder, autoencoder_state(autoencoder, seed + 1)),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(settings))
        path = folder / name / "diffusion_pytorch_model"
        if save:
            save(path, state)
        else:
            save_file(state, path.with_suffix(".safetensors"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise))
    if unconditional is not None:
        import torch

        torch.save(torch.as_tensor(unconditional), folder / "uncond_embeddings.bin")
