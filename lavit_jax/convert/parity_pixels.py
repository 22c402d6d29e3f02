"""Compares the pixel decoders with a checkpoint's published outputs.

The walk of the sampler is judged relative to its largest magnitude: guidance multiplies the
rounding of every step by about twice its scale, and random weights take latents far beyond 1.

Legend: B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.convert.parity_base import Model, Reference, Result, run_module
from lavit_jax.convert.pixel_infer import FOLDERS
from lavit_jax.models import autoencoder, diffusion, unet
from lavit_jax.models.autoencoder import Autoencoder
from lavit_jax.models.unet import Condition, UNet

# The file holds no settings: this one the walk was made with.
GUIDANCE = 7.0


def _nchw(x: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, -3)


def _predict(
    model: Model, kind: str, x_BHWC: jax.Array, time_B: jax.Array, condition: Condition
) -> jax.Array:
    module = UNet(model.loaded.pixels[kind].config.unet)
    return run_module(module, model.params[f"{kind}_unet"], x_BHWC, time_B, condition)


def _highres_condition(ref: Reference) -> Condition:
    return Condition(
        jnp.asarray(ref.input("highres_cond")),
        pooled_BP=jnp.asarray(ref.input("highres_pooled")),
        sizes_B6=jnp.asarray(ref.input("highres_time_ids")),
    )


def check_unets(model: Model, ref: Reference) -> Iterator[Result]:
    """Both U-Nets' predictions."""
    if not ref.has("unet_latents_nchw", "unet_t"):
        return
    x, time = ref.image("unet_latents_nchw"), jnp.asarray(ref.input("unet_t"))
    if model.has("lowres_unet") and ref.has("lowres_cond", "lowres_cond_mask"):
        tokens = jnp.asarray(ref.input("lowres_cond"))
        condition = Condition(tokens, mask_BL=jnp.asarray(ref.input("lowres_cond_mask")))
        yield Result("lowres_eps", _nchw(_predict(model, "lowres", x, time, condition)))
    if model.has("highres_unet") and ref.has("highres_cond", "highres_pooled", "highres_time_ids"):
        condition = _highres_condition(ref)
        yield Result("highres_eps", _nchw(_predict(model, "highres", x, time, condition)))


def _autoencoders(
    model: Model, kinds: Sequence[str] = tuple(FOLDERS)
) -> list[tuple[Autoencoder, dict[str, jax.Array]]]:
    """The autoencoders of these decoders, where they are there."""
    return [
        (Autoencoder(part.config.autoencoder), model.params[f"{kind}_autoencoder"])
        for kind in kinds
        if (part := model.loaded.pixels.get(kind)) and part.config.autoencoder is not None
    ]


def _of_either(ref: Reference, name: str, made: Sequence[jax.Array]) -> Iterator[Result]:
    """The file does not tell which decoder's autoencoder made an array: the nearest is judged."""
    nchw = [_nchw(x) for x in made]
    expected = ref.arrays.get(name)
    fitting = [x for x in nchw if expected is not None and x.shape == expected.shape]
    if fitting:
        yield Result(name, min(fitting, key=lambda x: float(np.abs(x - expected).max(initial=0))))
    elif nchw:
        yield Result(name, nchw[0])


def check_autoencoder(model: Model, ref: Reference) -> Iterator[Result]:
    """Latents to pictures and pictures to latents, and the stored unconditional condition."""
    if model.has("lowres_uncond"):
        yield Result("uncond_embeddings", *model.params["lowres_uncond"].values())
    found = _autoencoders(model)
    if found and ref.has("unet_latents_nchw"):
        x = ref.image("unet_latents_nchw")
        fitting = [(m, params) for m, params in found if m.config.latent_channels == x.shape[-1]]
        pixels = [run_module(*one, x, method="decode") for one in fitting or found]
        yield from _of_either(ref, "vae_decoded_nchw", pixels)
    if found and ref.has("vae_image_nchw"):
        x = ref.image("vae_image_nchw")
        latents = [run_module(*one, x, method="encode") for one in found]
        yield from _of_either(ref, "vae_mean", [one.mean_BhwZ for one in latents])
        yield from _of_either(ref, "vae_logvar", [one.logvar_BhwZ for one in latents])


def check_sampling(model: Model, ref: Reference) -> Iterator[Result]:
    """A guided DDIM walk of the first row, its times and its picture."""
    needed = ("unet_latents_nchw", "highres_cond", "highres_pooled", "highres_time_ids")
    if not (model.has("highres_unet") and ref.has("ddim_timesteps", *needed)):
        return
    noise, steps = model.loaded.pixels["highres"].config.noise, len(ref.arrays["ddim_timesteps"])
    yield Result("ddim_timesteps", diffusion.ddim_times(noise, steps))
    one = jax.tree.map(lambda x: x[:1], _highres_condition(ref))
    nothing = one._replace(
        tokens_BLF=jnp.zeros_like(one.tokens_BLF), pooled_BP=jnp.zeros_like(one.pooled_BP)
    )
    both = unet.join(nothing, one)

    def denoise(x_BHWC: jax.Array, time_B: jax.Array) -> jax.Array:
        doubled = jnp.concatenate([x_BHWC, x_BHWC]), jnp.concatenate([time_B, time_B])
        predicted = _predict(model, "highres", *doubled, both)
        unconditional, conditional = jnp.split(predicted, 2)
        return diffusion.guide(unconditional, conditional, GUIDANCE)

    start = ref.image("unet_latents_nchw")[:1]
    walk = jax.jit(lambda x: diffusion.trajectory(noise, denoise, x, "ddim", steps))(start)
    yield Result("ddim_trajectory_nchw", _nchw(walk), relative=True)
    last = ref.before("ddim_trajectory_nchw", _nchw(walk))[-1]
    ((module, params),) = _autoencoders(model, ("highres",))
    latents = autoencoder.unscale(module.config, jnp.moveaxis(last, -3, -1))
    pixels = run_module(module, params, latents, method="decode")
    yield Result("ddim_image_nchw", _nchw(autoencoder.to_unit(pixels)))
