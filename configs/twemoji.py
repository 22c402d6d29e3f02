"""All of LaVIT on 4,009 drawn pictures, on two CPU cores.

`configs/twemoji.py` is the quickstart, laid out for a quarter of an hour; `configs/twemoji.py:full`
trains the same model, with twice the codes, three times as long. A schedule may follow, as
in `configs/twemoji.py:quick,selector_first`: one of the two orders of stage one that the paper's
maintainer tells (`common.SCHEDULES`).
"""

from ml_collections import ConfigDict

from . import common, models

# Steps of stage zero, of stage one on random patches, without and with quantization, of stage two.
STEPS = {"quick": (500, 300, 400, 600, 1600), "full": (700, 400, 700, 2000, 6000)}
BUT_SELECTOR = ("merger", "quantizer", "decoder", "pixel_head")
TOKENIZER_MODULES = ("selector", *BUT_SELECTOR)


def get_config(arg: str = "quick") -> ConfigDict:
    """`arg`: "quick" or "full", then "," and one of `common.SCHEDULES` if not "together"."""
    size, _, order = arg.partition(",")
    if size not in STEPS:
        raise ValueError(f"arg must be 'quick' or 'full', got {arg!r}")
    encode, reconstruct, select, quantize, unify = STEPS[size]
    config = ConfigDict({"name": f"twemoji-{arg.replace(',', '-')}", "seed": 0})
    config.model = models.twemoji()
    config.data = common.data()
    config.update(common.run())
    # Stage zero trains the encoder; stage one has one of two orders; stage two
    # is the unified model.
    config.schedule = common.schedule(order or "together")
    if "reconstruct" not in config.schedule:
        # Merger and decoder can say what a patch is worth before the selector learns from them.
        first, *others = config.schedule
        config.schedule = (first, "reconstruct", *others)
    config.phases = {
        "encoder": {
            "objective": "contrastive",
            "steps": encode,
            "batch_size": 96,
            "modules": ("encoder", "text_tower", "contrastive", "pixel_head"),
            "pixel_weight": 4.0,  # of the patches' linear readout, which keeps features local
            # Against features that all lie along a few directions, in which place and detail
            # are lost and every reconstruction seems good.
            "alike_weight": 5.0,
            "optimizer": common.optimizer(1.5e-3, b2=0.95, weight_decay=0.05, warmup=50),
        },
        # Merger and decoder on patches kept at random.
        "reconstruct": {
            **tokenizer_phase(reconstruct, quantize=False),
            "modules": BUT_SELECTOR,
            "selection": "random",
        },
        "select": tokenizer_phase(select, quantize=False),
        "quantize": tokenizer_phase(quantize, quantize=True),
        # The same steps in all, for "selector_first".
        "selector_alone": {
            **tokenizer_phase(select, quantize=False),
            "modules": ("selector",),
        },
        "quantize_rest": {
            **tokenizer_phase(quantize, quantize=True),
            "modules": BUT_SELECTOR,
            "selection": "greedy",
        },
        "unified": {
            "objective": "unified",
            "steps": unify,
            "batch_size": 8,  # rows of data.row_length tokens
            "modules": ("conditioner", "llm"),
            # SEED's values but for the learning rate, which suits a small model.
            "optimizer": common.optimizer(2e-3, b2=0.95, weight_decay=0.05, warmup=60),
        },
    }
    if size == "quick":
        # In so few steps a weight of 3 leaves the share kept some 0.05 above rho.
        for name in ("select", "selector_alone", "quantize"):
            config.phases[name].share_weight = 4.5
    if size == "full":
        config.model.quantizer.codes = 2048
        # Captions need less than their share here, drawings more.
        config.data.mixture.update({"image_text": 0.40, "text_image": 0.45, "question": 0.12})
        config.evaluation.update({"minutes": 60, "best_of": 32})
    config.log.sample_every = 1000  # making samples takes seconds of the few minutes there are
    return config


def tokenizer_phase(steps: int, *, quantize: bool) -> ConfigDict:
    """A phase of stage one."""
    return ConfigDict(
        {
            "objective": "tokenizer",
            "steps": steps,
            "batch_size": 24,
            "modules": TOKENIZER_MODULES,
            "quantize": quantize,
            # Straight-through Gumbel; "greedy" with a frozen selector, "random" without one.
            "selection": "sample",
            "kept_share": 1 / 3,  # rho
            # "image" is the paper: every picture is drawn to that share. "batch" (ours) draws
            # their mean to it, so that pictures may differ in length.
            "share_over": "batch",
            "share_weight": 3.0,  # lambda; 2 is the paper's
            # Ours (0 is the paper): makes decisions certain within a few hundred steps, so that
            # greedy decisions keep the share that sampled ones were trained for, and so that the
            # codebook starts on features that stay.
            "entropy_weight": 0.1,
            # 1 is borrowed (BEiT-2); in so few steps it draws features together until half of the
            # codes are gone.
            "commitment": 0.25,
            "pixel_weight": 4.0,  # of the one-pass pixel head
            # Share of the pixel head's gradient that goes on to the codes. The paper's tokenizer
            # learns from features alone (0); so small a one learns sooner from pixels too (ours).
            "pixel_gradient": 1.0,
            "optimizer": common.optimizer(3e-3, b2=0.99, weight_decay=0.05, warmup=50),
        }
    )
