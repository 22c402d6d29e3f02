"""What lies between a picture and what the U-Net diffuses, and its two branches (SPEC 9).

Legend: B batch, H height, W width (of latents h, w), Z latent channels, N patches, D width,
L stored unconditional tokens, F condition width.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lavit_jax.models import autoencoder
from lavit_jax.models.autoencoder import Autoencoder
from lavit_jax.models.pixel_config import PixelConfig
from lavit_jax.models.unet import Condition


def gather_pixels(images_BHWC: Float[Array, "B H W C"], patch: int) -> Float[Array, "B h w Z"]:
    """The pixels of each patch side by side as channels: a quarter of the places at patch 2."""
    batch, height, width, channels = images_BHWC.shape
    x = images_BHWC.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, -1)


def spread_pixels(latents_BhwZ: Float[Array, "B h w Z"], patch: int) -> Float[Array, "B H W C"]:
    """Inverse of `gather_pixels`."""
    batch, height, width, channels = latents_BhwZ.shape
    x = latents_BhwZ.reshape(batch, height, width, patch, patch, channels // patch**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, -1)


def to_latents(
    config: PixelConfig, params: Any, pixels_BHWC: Float[Array, "B H W 3"], key: PRNGKeyArray
) -> Float[Array, "B h w Z"]:
    """Pictures in [0, 1] to what is diffused.

    Args:
      config: the pixel decoder's.
      params: the autoencoder's; unused where there is none.
      pixels_BHWC: pictures.
      key: draws latents from the autoencoder's Gaussian.
    """
    x = autoencoder.from_unit(pixels_BHWC)
    if config.autoencoder is None:
        return gather_pixels(x, config.patch)
    module = Autoencoder(config.autoencoder)
    found: Any = module.apply({"params": params}, x, method="encode")
    return autoencoder.scale(config.autoencoder, found.sample(key))


def to_pixels(
    config: PixelConfig, params: Any, latents_BhwZ: Float[Array, "B h w Z"], tile: int = 0
) -> Float[Array, "B H W 3"]:
    """What was diffused to pictures in [0, 1]; in tiles of `tile` latents, 0 being whole."""
    if config.autoencoder is None:
        return autoencoder.to_unit(spread_pixels(latents_BhwZ, config.patch))
    module = Autoencoder(config.autoencoder)
    decode: Any = functools.partial(module.apply, {"params": params}, method="decode")
    latents = autoencoder.unscale(config.autoencoder, latents_BhwZ)
    if not tile:
        return autoencoder.to_unit(decode(latents))
    return autoencoder.to_unit(autoencoder.decode_tiled(decode, latents, tile, config.factor))


def unconditional(
    condition: Condition, stored_LF: Float[Array, "L F"] | None
) -> tuple[Condition, Condition]:
    """The unconditional branch's condition, and the conditional one made to go with it.

    Without stored embeddings the unconditional tokens and the pooled condition are zeros and the
    sizes stay (published: highres). With them they are the tokens, under a mask of their own
    (published: lowres).
    """
    if stored_LF is None:
        nothing = jax.tree.map(jnp.zeros_like, condition)
        return nothing._replace(sizes_B6=condition.sizes_B6, mask_BL=condition.mask_BL), condition
    batch, tokens, _ = condition.tokens_BLF.shape
    length = max(tokens, len(stored_LF))
    pad = lambda x: jnp.pad(x, ((0, length - len(x)), (0, 0)))  # noqa: E731
    real = lambda count: jnp.broadcast_to(jnp.arange(length) < count, (batch, length))  # noqa: E731
    own = condition._replace(tokens_BLF=jax.vmap(pad)(condition.tokens_BLF), mask_BL=real(tokens))
    stored = jnp.broadcast_to(pad(stored_LF), own.tokens_BLF.shape)
    return own._replace(tokens_BLF=stored, mask_BL=real(len(stored_LF))), own


def drop_condition(condition: Condition, dropped_B: Array) -> Condition:
    """Rows without their condition, as the unconditional branch of zeros sees it."""
    kept = jnp.logical_not(dropped_B)
    pooled = condition.pooled_BP
    return condition._replace(
        tokens_BLF=condition.tokens_BLF * kept[:, None, None],
        pooled_BP=None if pooled is None else pooled * kept[:, None],
    )
