"""The pixel decoder at the published sizes: an SD 1.5 U-Net that paints from x_rec (SPEC 8).

`configs/pixel_decoder.py:PRESET` with a preset of `configs/pods.py`; `PRESET,sdxl` has a U-Net of
SDXL's size instead, which paints 1024 px.

Start from published weights (a folder in their layout with SD 1.5's `unet/`, `vae/` and
`scheduler/` in `pixel_decoding/`) or from a work directory with a trained tokenizer:

    lavit train --config configs/pixel_decoder.py --workdir DIR --config.start_from=SOURCE
"""

from ml_collections import ConfigDict

from . import common, models, pods

UNETS = {"sd15": models.sd15, "sdxl": models.sdxl}


def get_config(arg: str = "v5p-128") -> ConfigDict:
    """`arg`: a preset of `configs/pods.py`, then "," and one of `UNETS` if not "sd15"."""
    preset, _, unet = arg.partition(",")
    if (unet or "sd15") not in UNETS:
        raise ValueError(f"the U-Net must be one of {', '.join(UNETS)}, got {unet!r}")
    config = ConfigDict({"name": f"pixel-decoder-{arg.replace(',', '-')}", "seed": 0})
    config.model = models.vitg_llama7b()
    config.model.pixels = UNETS[unet or "sd15"]()
    config.data = common.data()
    config.update(common.run())
    config.update(pods.long_run())
    config.mesh = pods.mesh(preset, fsdp=pods.FSDP_OF_SMALL)
    config.schedule = ("pixels",)
    config.phases = {"pixels": pixel_phase(20_000, batch_size=256)}
    config.phases.pixels.frozen = ("lowres_autoencoder",)
    # Paper: 20K steps from SD 1.5. Its optimizer is not published; learning rate, betas, decay
    # and averaging are borrowed from the training of SD 1.5, with a shorter warm-up.
    config.phases.pixels.optimizer = common.optimizer(1e-4, b2=0.999, weight_decay=0.01, warmup=500)
    config.phases.pixels.optimizer.ema = 0.9999  # borrowed (SD 1.5)
    return config


def pixel_phase(steps: int, batch_size: int) -> ConfigDict:
    """A phase that trains a pixel decoder; its optimizer is still to be set."""
    return ConfigDict(
        {
            "objective": "diffusion",
            "steps": steps,
            "batch_size": batch_size,
            "modules": ("lowres_head", "lowres_unet"),
            "condition_drop": 0.1,  # ours; gives guidance its unconditional branch
        }
    )
