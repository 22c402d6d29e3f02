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
            "decoder": {"depth": 1, "heads": 2, "mlp_ratio": 2.0},
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
            "decoder": {"depth": 3, "heads": 2, "mlp_ratio": 3.0, "unroll": 4},
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
