"""How much useful work a step is: tokens, images, and the flops that MFU counts.

Convention: 6 N D for a trained module and 2 N D for a frozen one, N its parameters but for the
table that words are looked up in, and D the tokens it runs on, padding left out; attention's own
flops are not counted, nor is anything recomputed. An image is N_patches tokens to the vision
modules, as many as it keeps to the language model's merger. Convolutions use a weight once for
every place: U-Net and autoencoder count three times (trained) or once (frozen) what their forward
pass computes, attention included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lavit_jax.models import lavit, pixels
from lavit_jax.models.config import LlamaConfig
from lavit_jax.models.lavit import Modules
from lavit_jax.models.unet import Condition
from lavit_jax.planning import lengths
from lavit_jax.training import state
from lavit_jax.training.schedule import Phase


@dataclasses.dataclass(frozen=True)
class Workload:
    """Of one step, over all chips.

    Attributes:
      tokens: useful ones of the language model.
      images: that the vision modules see, unused slots left out.
      useful: share of a row that is not padding.
      model_flops: by the convention above.
      kernel_flops: what attention kernels compute, which the compiler does not count.
    """

    tokens: float
    images: float
    useful: float
    model_flops: float
    kernel_flops: float


def parameter_count(modules: Modules, names: tuple[str, ...]) -> dict[str, int]:
    """Parameters of each module that its inputs are multiplied with."""
    shapes: dict[str, Any] = nn.meta.unbox(state.abstract_params(modules, names))
    return {
        name: sum(
            math.prod(leaf.shape)
            for path, leaf in jax.tree.leaves_with_path(tree)
            if path[-1].key != "embedding"
        )
        for name, tree in shapes.items()
    }


def of_phase(config: ConfigDict, phase: Phase, modules: Modules) -> Workload:
    """What a step of training does."""
    counts = parameter_count(modules, phase.names)
    rows, patches = phase.config["batch_size"], modules.config.patches

    def flops(name: str, tokens: float) -> float:
        return (6 if name in phase.trained else 2) * counts[name] * tokens

    if phase.config["objective"] == "contrastive":
        text = flops("text_tower", rows * modules.config.text_tower.length)
        return Workload(0, rows, 1.0, flops("encoder", rows * patches) + text, 0)
    if phase.config["objective"] == "tokenizer":
        names = ("encoder", "selector", "merger", "quantizer", "decoder", "pixel_head")
        total = sum(flops(name, rows * patches) for name in names)
        return Workload(0, rows, 1.0, total, 0)
    if phase.config["objective"] == "diffusion":
        names = ("encoder", "selector", "merger", "quantizer", "decoder", "lowres_head")
        total = sum(flops(name, rows * patches) for name in names)
        for name, per_picture in _painting_flops(modules).items():
            total += (3 if name in phase.trained else 1) * per_picture * rows
        return Workload(0, rows, 1.0, total, 0)
    tokens, slots = config.data.row_length, config.data.images_per_row
    mixture = tuple(config.data.mixture.to_dict().items())
    useful, seen = lengths.useful_share(mixture, patches, tokens, slots)
    images = rows * slots * seen
    kept = lengths.KEPT_MEAN * patches / 256
    total = (
        flops("llm", rows * tokens * useful)
        + flops("encoder", images * patches)
        + flops("conditioner", images * kept)
    )
    kernel = rows * attention_flops(modules.config.llm, tokens)
    return Workload(rows * tokens * useful, images, useful, total, kernel)


def of_generation(modules: Modules, name: str, rows: int, prompt: int) -> Workload:
    """What a prefill does, or one step of decoding: each row's last token is scored, no other."""
    count, llm = parameter_count(modules, ("llm",))["llm"], modules.config.llm
    head = llm.width * llm.vocab
    tokens = rows * (prompt if name == "prefill" else 1)
    return Workload(tokens, 0, 1.0, 2.0 * ((count - head) * tokens + head * rows), 0)


def _painting_flops(modules: Modules) -> dict[str, float]:
    """What the U-Net's pass over one picture computes, and the autoencoder's that encodes it."""
    config = modules.config.pixels
    assert config is not None
    x_rec = jnp.zeros((1, modules.config.patches, modules.config.encoder.width))
    picture = jnp.zeros((1, config.size, config.size, 3))
    key = jax.random.key(0)

    def paint(params: Any, latents: Any) -> Any:
        tokens = lavit.run(modules, params, "lowres_head", x_rec)
        time = jnp.zeros(1, jnp.int32)
        return lavit.run(modules, params, "lowres_unet", latents, time, Condition(tokens))

    def encode(params: Any) -> Any:
        return pixels.to_latents(config, params.get("lowres_autoencoder"), picture, key)

    names = ["lowres_head", "lowres_unet"] + ["lowres_autoencoder"] * bool(config.autoencoder)
    params = jax.eval_shape(lambda: nn.meta.unbox(lavit.init_params(modules, tuple(names), key)))
    latents = jax.eval_shape(encode, params)
    return {
        "lowres_unet": _counted(paint, params, latents),
        "lowres_autoencoder": _counted(encode, params) if config.autoencoder else 0.0,
    }


def _counted(function: Callable[..., Any], *shapes: Any) -> float:
    analysis = jax.jit(function).lower(*shapes).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def attention_flops(config: LlamaConfig, length: int) -> float:
    """A causal training pass over one row: forward, backward (five matmuls to its two), and the
    forward again where the remat policy does not keep its result."""
    forward = 2 * length**2 * config.heads * config.head_dim * config.depth
    again = 1.0 if config.remat == "full" else 0.0
    return forward * (1.0 + 2.5 + again)
