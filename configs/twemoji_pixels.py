"""A small diffusion decoder for a finished quickstart, on two CPU cores.

    lavit quickstart --workdir DIR
    lavit train --config configs/twemoji_pixels.py --workdir DIR-pixels --config.start_from=DIR

It diffuses pixels, conditioned on the x_rec of the quickstart's frozen tokenizer, and adds what it
paints to the quickstart's report. `configs/twemoji_pixels.py:full` goes with
`configs/twemoji.py:full`, `configs/twemoji_pixels.py:mini` with `configs/mini.py`.
"""

from ml_collections import ConfigDict

from . import common, mini, models, twemoji
from .pixel_decoder import pixel_phase

# Modules that the phase does not read, kept so that the run can caption and draw.
KEPT = ("pixel_head", "text_tower", "contrastive", "conditioner", "llm")


def get_config(arg: str = "quick") -> ConfigDict:
    """`arg`: "quick", "full" or "mini"."""
    if arg not in ("quick", "full", "mini"):
        raise ValueError(f"arg must be 'quick', 'full' or 'mini', got {arg!r}")
    config = mini.get_config() if arg == "mini" else twemoji.get_config(arg)
    config.name = f"twemoji-pixels-{arg}"
    config.schedule = ("pixels",)
    if arg != "mini":
        config.model.pixels = models.twemoji_pixels()
        phase = pixel_phase(850, batch_size=32)
    else:
        config.model.pixels = models.mini_pixels()
        phase = pixel_phase(8, batch_size=8)
    phase.frozen = KEPT
    phase.optimizer = common.optimizer(2e-3, b2=0.99, weight_decay=0.01, warmup=50)
    phase.optimizer.ema = 0.99  # the last hundred steps or so
    config.phases = {"pixels": phase}
    return config
