"""Stage one at the published size: frozen ViT-g/14, selector, 12 merger and 12 decoder blocks.

`configs/tokenizer_vitg.py:PRESET` with a preset of `configs/pods.py`. "Published" numbers are the
paper's or its code's; numbers that are neither say where they are borrowed from.
"""

from ml_collections import ConfigDict

from . import common, models, pods, twemoji

STEPS = 50_000  # published
BATCH = 2048  # published
UNQUANTIZED = 10_000  # ours: the order is published, its lengths are not


def get_config(arg: str = "v5p-128") -> ConfigDict:
    """`arg`: a preset of `configs/pods.py`."""
    config = ConfigDict({"name": f"tokenizer-vitg-{arg}", "seed": 0})
    config.model = models.vitg_llama7b()  # published sizes
    config.model.merger.attention = "clean"  # ours, for training from scratch
    # There is room for what the backward pass needs on all presets.
    config.model.merger.remat = config.model.decoder.remat = "dots"
    config.data = common.data()
    config.data.text_vocab_size = 32000
    config.update(common.run())
    config.update(pods.long_run())
    config.mesh = pods.mesh(arg, fsdp=pods.FSDP_OF_SMALL)
    # Schedule (b) of the paper's maintainer: selector and merger first, then all with quantization.
    config.schedule = ("select", "quantize")
    config.phases = {
        "select": _phase(UNQUANTIZED, quantize=False),
        "quantize": _phase(STEPS - UNQUANTIZED, quantize=True),
    }
    return config


def _phase(steps: int, *, quantize: bool) -> ConfigDict:
    phase = twemoji.tokenizer_phase(steps, quantize=quantize)  # rho: published
    phase.batch_size = BATCH
    phase.accumulate = 1
    phase.share_over = "image"  # published
    phase.share_weight = 2.0  # published
    phase.pixel_weight = 2.0  # ours
    phase.pixel_gradient = 0.0  # published: codes learn from features alone
    phase.entropy_weight = 0.0  # published: no such term
    phase.commitment = 1.0  # borrowed (BEiT-2)
    # Borrowed (BEiT-2, 4M): AdamW (0.9, 0.99), clip 1.0. Learning rate and decay: BEiT-2's.
    phase.optimizer = common.optimizer(2e-4, b2=0.99, weight_decay=1e-4, warmup=1000)
    return phase
