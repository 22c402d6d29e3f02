"""Model sizes. Every field is explained in `lavit_jax/models/config.py`.

Sizes that follow from others (the merger's width from the encoder's, the vocabulary from the
text tokenizer and the codebook, ...) are derived in one place: `models.config.lavit_config`.
"""

from ml_collections import ConfigDict


def mini() -> ConfigDict:
    """The smallest that runs every code path; for tests and `configs/mini.py`."""
    return ConfigDict(
        {
            "image_size": 32,
            "patch_size": 8,
            "encoder": {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "embed_dim": 32},
            "selector": {"max_kept": 0},
            "merger": {"depth": 1, "heads": 2, "mlp_ratio": 2.0, "attention": "clean"},
            "quantizer": {"codes": 64, "code_dim": 8, "decay": 0.95},
            "decoder": {"depth": 1, "heads": 2, "mlp_ratio": 2.0, "norm_qk": False},
            "pixel_head": {"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0},
            "text_tower": {"width": 32, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "length": 24},
            "llm": {
                "width": 48,
                "depth": 2,
                "heads": 4,
                "kv_heads": 2,
                "hidden": 96,
                "max_length": 128,
            },
        }
    )


def twemoji() -> ConfigDict:
    """Trains on two CPU cores in minutes (`configs/twemoji.py`)."""
    return ConfigDict(
        {
            "image_size": 64,
            "patch_size": 8,
            "encoder": {
                "width": 128,
                "depth": 4,
                "heads": 2,
                "mlp_ratio": 3.0,
                "unroll": 4,
                "embed_dim": 128,
            },
            "selector": {"max_kept": 40},
            "merger": {"depth": 2, "heads": 2, "mlp_ratio": 3.0, "unroll": 4, "attention": "clean"},
            "quantizer": {"codes": 1024, "code_dim": 16, "decay": 0.97},
            "decoder": {"depth": 3, "heads": 2, "mlp_ratio": 3.0, "unroll": 4, "norm_qk": True},
            "pixel_head": {"width": 128, "depth": 2, "heads": 2, "mlp_ratio": 3.0, "unroll": 4},
            "text_tower": {
                "width": 128,
                "depth": 2,
                "heads": 2,
                "mlp_ratio": 3.0,
                "unroll": 4,
                "length": 24,
            },
            "llm": {
                "width": 192,
                "depth": 4,
                "heads": 3,
                "kv_heads": 3,
                "hidden": 512,
                "unroll": 4,
                "max_length": 256,
            },
        }
    )


def vitg_llama7b() -> ConfigDict:
    """The published sizes: EVA-CLIP ViT-g/14, 12 + 12 blocks, 16,384 codes, Llama 7B."""
    return ConfigDict(
        {
            "image_size": 224,
            "patch_size": 14,
            "encoder": {
                "width": 1408,
                "depth": 40,
                "heads": 16,
                "mlp_ratio": 4.3637,
                "embed_dim": 1024,
                "dtype": "bfloat16",
                "remat": "full",
            },
            "selector": {"max_kept": 0},
            "merger": {
                "depth": 12,
                "heads": 16,
                "mlp_ratio": 4.3637,
                "attention": "published",
                "dtype": "bfloat16",
                "remat": "full",
            },
            "quantizer": {"codes": 16384, "code_dim": 32, "decay": 0.99},
            "decoder": {
                "norm_qk": False,
                "depth": 12,
                "heads": 16,
                "mlp_ratio": 4.3637,
                "dtype": "bfloat16",
                "remat": "full",
            },
            "pixel_head": {
                "width": 768,
                "depth": 4,
                "heads": 12,
                "mlp_ratio": 4.0,
                "dtype": "bfloat16",
            },
            "text_tower": {
                "width": 768,
                "depth": 12,
                "heads": 12,
                "mlp_ratio": 4.0,
                "length": 64,
                "dtype": "bfloat16",
            },
            "llm": {
                "width": 4096,
                "depth": 32,
                "heads": 32,
                "kv_heads": 32,
                "hidden": 11008,
                "max_length": 4096,
                "dtype": "bfloat16",
                "remat": "full",
            },
        }
    )


def sd15() -> ConfigDict:
    """Stable Diffusion 1.5's U-Net, autoencoder and noise schedule, as the paper starts from."""
    return ConfigDict(
        {
            "size": 512,
            "guidance": 5.0,
            "sampling_steps": 50,
            "solver": "ddim",
            "unet": {
                "channels": (320, 640, 1280, 1280),
                "layers": (2, 2, 2, 2),
                "down_attention": (True, True, True, False),
                "up_attention": (True, True, True, False),
                "heads": (8, 8, 8, 8),
                "depths": (1, 1, 1, 1),
                "condition": 768,
                "dtype": "bfloat16",
                "remat": True,
            },
            "autoencoder": {"channels": (128, 256, 512, 512), "layers": 2},
            "noise": {
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "offset": 1,
                "final_alpha_one": False,
            },
        }
    )


def sdxl() -> ConfigDict:
    """SDXL's U-Net, autoencoder and noise schedule; x_rec is its only condition (ours: the
    published one is also given sizes and a pooled condition)."""
    config = sd15()
    config.size = 1024
    config.unet.update(
        {
            "channels": (320, 640, 1280),
            "layers": (2, 2, 2),
            "down_attention": (False, True, True),
            "up_attention": (False, True, True),
            "heads": (5, 10, 20),
            "depths": (1, 2, 10),
            "condition": 2048,
            "linear_projection": True,
        }
    )
    config.autoencoder.scaling = 0.13025
    return config


def twemoji_pixels() -> ConfigDict:
    """Diffuses 64 px pictures as 32 x 32 patches of 2 x 2 pixels, without an autoencoder."""
    return ConfigDict(
        {
            "size": 64,
            "patch": 2,
            "guidance": 1.5,
            "sampling_steps": 20,
            "solver": "dpm++",
            "unet": {
                "in_channels": 12,
                "out_channels": 12,
                "channels": (48, 96, 128),
                "layers": (1, 1, 1),
                "down_attention": (False, False, True),
                "up_attention": (False, False, True),
                "heads": (1, 3, 4),
                "depths": (1, 1, 1),
                "condition": 64,
                "placed": True,
                "groups": 8,
            },
            "noise": flat_colours(),
        }
    )


def mini_pixels() -> ConfigDict:
    """The smallest, for tests."""
    return ConfigDict(
        {
            "size": 32,
            "patch": 4,
            "guidance": 1.5,
            "sampling_steps": 4,
            "solver": "dpm++",
            "unet": {
                "in_channels": 48,
                "out_channels": 48,
                "channels": (8, 16),
                "layers": (1, 1),
                "down_attention": (False, True),
                "up_attention": (False, True),
                "heads": (1, 2),
                "depths": (1, 1),
                "condition": 16,
                "placed": True,
                "groups": 4,
            },
            "noise": flat_colours(),
        }
    )


def flat_colours() -> ConfigDict:
    """A schedule that ends in pure noise: only so can whole pictures come out white.

    The U-Net predicts the picture: noise fills all directions of pixel space, and a small net that
    has to predict it (or v) paints what it cannot (https://arxiv.org/abs/2511.13720).
    """
    return ConfigDict(
        {
            "beta_schedule": "squaredcos_cap_v2",
            "prediction": "sample",
            "spacing": "trailing",
            "zero_snr": True,
            "clip": 1.0,
        }
    )
