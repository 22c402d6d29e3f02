"""The whole model: every module by name, tokenizer encode/decode, mixed-sequence embedding.

Legend: B batch, N patches, L kept (padded), C code dimension, D encoder width, E llm width,
S row length, J condition images of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lavit_jax.models import layers, quantizer, selector
from lavit_jax.models.autoencoder import Autoencoder
from lavit_jax.models.config import LavitConfig
from lavit_jax.models.decoder import FeatureDecoder, LowresHead, PixelHead
from lavit_jax.models.llama import Llama
from lavit_jax.models.merger import Merger
from lavit_jax.models.quantizer import Codebook, CodeProjection
from lavit_jax.models.selector import Kept, Selector
from lavit_jax.models.text_tower import ContrastiveScale, TextTower
from lavit_jax.models.unet import Condition, UNet
from lavit_jax.models.vit import VisionEncoder, normalize_images

Params = Mapping[str, Any]
Decide = Callable[[Float[Array, "B N 2"]], Float[Array, "B N"]]


class Conditioner(nn.Module):
    """The merger trained with the language model, and vit_proj into its input space (SPEC 7)."""

    config: LavitConfig

    def setup(self) -> None:
        self.merger = Merger(self.config.merger)
        self.vit_proj = layers.dense(
            self.config.llm.width, ("embed", None), self.config.merger.compute_dtype
        )

    def __call__(
        self, x_BND: Float[Array, "B N D"], keep_BN: Float[Array, "B N"], kept: Kept
    ) -> Float[Array, "B L E"]:
        """Continuous features of the kept patches, left-aligned."""
        return self.vit_proj(self.merger.kept_features(x_BND, keep_BN, kept))

    def masked(
        self, x_BND: Float[Array, "B N D"], keep_BN: Float[Array, "B N"]
    ) -> Float[Array, "B N E"]:
        """The same for all N positions; only kept ones mean anything."""
        return self.vit_proj(self.merger(x_BND, keep_BN))


@dataclasses.dataclass(frozen=True)
class Modules:
    """Every module of a LaVIT, by the name its parameters have in the parameter dict."""

    config: LavitConfig
    encoder: VisionEncoder
    text_tower: TextTower
    contrastive: ContrastiveScale
    selector: Selector
    merger: Merger
    quantizer: CodeProjection
    decoder: FeatureDecoder
    pixel_head: PixelHead
    conditioner: Conditioner
    llm: Llama
    lowres_head: LowresHead | None = None
    lowres_unet: UNet | None = None
    lowres_autoencoder: Autoencoder | None = None


def build_modules(config: LavitConfig) -> Modules:
    """Makes the (stateless) modules of one model size."""
    pixels = config.pixels
    return Modules(
        config=config,
        encoder=VisionEncoder(config.encoder),
        text_tower=TextTower(config.text_tower),
        contrastive=ContrastiveScale(),
        selector=Selector(config.selector),
        merger=Merger(config.merger),
        quantizer=CodeProjection(config.quantizer),
        decoder=FeatureDecoder(config.decoder),
        pixel_head=PixelHead(config.pixel_head),
        conditioner=Conditioner(config),
        llm=Llama(config.llm),
        lowres_head=LowresHead(pixels.unet.condition) if pixels else None,
        lowres_unet=UNet(pixels.unet) if pixels else None,
        lowres_autoencoder=(
            Autoencoder(pixels.autoencoder) if pixels and pixels.autoencoder else None
        ),
    )


def run(modules: Modules, params: Params, name: str, *args: Any, method: Any = None) -> Any:
    """Runs the module `name` on its own parameters."""
    return getattr(modules, name).apply({"params": params[name]}, *args, method=method)


class Tokens(NamedTuple):
    """Visual tokens of a batch: keep decisions over N; kept codes left-aligned in L."""

    keep_BN: Float[Array, "B N"]
    kept: Kept
    ids_BL: Int[Array, "B L"]


def encode_image(modules: Modules, params: Params, images_BHWC: Array) -> Float[Array, "B N D"]:
    """uint8 images to frozen encoder features."""
    return run(modules, params, "encoder", normalize_images(images_BHWC))


def select(
    modules: Modules, params: Params, x_BND: Float[Array, "B N D"], decide: Decide
) -> tuple[Float[Array, "B N"], Kept]:
    """Keep decisions without gradient, at most `selector.max_kept` of them.

    Args:
      modules: the model.
      params: parameters by module.
      x_BND: encoder features.
      decide: log-probabilities of keeping and dropping [B, N, 2] to decisions [B, N].
    """
    log_probs = run(modules, params, "selector", x_BND)
    keep = selector.limit_kept(
        decide(log_probs),
        log_probs[..., selector.KEEP] - log_probs[..., selector.DROP],
        modules.config.max_kept,
    )
    return keep, selector.kept_index(keep, modules.config.max_kept)


def tokenize(
    modules: Modules,
    params: Params,
    codebook: Codebook,
    images_BHWC: Array,
    decide: Decide = selector.greedy_keep,
) -> Tokens:
    """uint8 images [B, H, W, 3] to visual tokens (code ids 0..K-1; padding is 0)."""
    x_BND = encode_image(modules, params, images_BHWC)
    keep, kept = select(modules, params, x_BND, decide)
    merged = run(modules, params, "merger", x_BND, keep, kept, method="kept_features")
    z = run(modules, params, "quantizer", merged)
    ids = quantizer.nearest_code(z, codebook.codes_KC)
    return Tokens(keep, kept, jnp.where(kept.valid_BL, ids, 0))


def detokenize(
    modules: Modules,
    params: Params,
    codebook: Codebook,
    ids_BL: Int[Array, "B L"],
    valid_BL: Array,
) -> Float[Array, "B N D"]:
    """Code ids, left-aligned, to x_rec."""
    codes = quantizer.lookup(ids_BL, codebook.codes_KC)
    return run(modules, params, "decoder", codes, valid_BL)


def paint(modules: Modules, params: Params, x_BND: Float[Array, "B N D"]) -> Array:
    """x_rec to preview pictures in [0, 1] by the one-pass pixel head, float32 [B, H, W, 3]."""
    return run(modules, params, "pixel_head", x_BND)


def embed_mixed(
    token_embeds_BSE: Float[Array, "B S E"],
    features_BJLE: Float[Array, "B J L E"],
    feature_BS: Int[Array, "B S"],
    stride: int,
) -> Float[Array, "B S E"]:
    """Puts condition features into a sequence of token embeddings.

    Args:
      token_embeds_BSE: embeddings of the ids.
      features_BJLE: features of each row's condition images.
      feature_BS: image * stride + rank where a feature stands, -1 where a token does.
      stride: what the loader counts as the slots of one image (N).
    """
    batch, images, length, width = features_BJLE.shape
    image, rank = feature_BS // stride, feature_BS % stride
    flat = features_BJLE.reshape(batch, images * length, width)
    index = jnp.where(feature_BS >= 0, image * length + jnp.minimum(rank, length - 1), 0)
    picked = layers.gather_tokens(flat, index)
    return jnp.where(
        (feature_BS >= 0)[..., None], picked.astype(token_embeds_BSE.dtype), token_embeds_BSE
    )


def init_params(modules: Modules, names: tuple[str, ...], key: Array) -> dict[str, Any]:
    """Initial parameters (boxed with logical axes) of the named modules."""
    modules = build_modules(modules.config.rolled())
    c = modules.config
    image = jnp.zeros((1, c.encoder.image_size, c.encoder.image_size, 3))
    x = jnp.zeros((1, c.patches, c.encoder.width))
    keep = jnp.ones((1, c.patches))
    kept = selector.kept_index(keep, c.max_kept)
    codes = jnp.zeros((1, c.max_kept, c.quantizer.code_dim))
    ids = jnp.zeros((1, 2), jnp.int32)
    mask = jnp.ones((1, 2, 2), bool)
    calls: dict[str, tuple[Any, ...]] = {
        "encoder": (image,),
        "text_tower": (ids,),
        "contrastive": (),
        "selector": (x,),
        "merger": (x, keep),
        "quantizer": (x,),
        "decoder": (codes, kept.valid_BL),
        "pixel_head": (x,),
        "conditioner": (x, keep, kept),
        "llm": (ids, ids, mask),
    }
    # A module's key is its place here: new ones come last, so that the others start as ever.
    order = sorted(calls)
    if c.pixels is not None:
        latents = jnp.zeros((1, *[c.pixels.size // c.pixels.factor] * 2, c.pixels.unet.in_channels))
        picture = jnp.zeros((1, c.pixels.size, c.pixels.size, 3))
        condition = Condition(jnp.zeros((1, c.patches, c.pixels.unet.condition)))
        calls["lowres_head"] = (x,)
        calls["lowres_unet"] = (latents, jnp.zeros(1, jnp.int32), condition)
        calls["lowres_autoencoder"] = (picture,)
        order += ["lowres_head", "lowres_unet", "lowres_autoencoder"]
    params = {}
    for name in names:
        method = _init_encoder if name == "encoder" else None
        module_key = jax.random.fold_in(key, order.index(name))
        variables = getattr(modules, name).init(module_key, *calls[name], method=method)
        params[name] = variables["params"]
    return params


def _init_encoder(encoder: VisionEncoder, images: Array) -> Array:
    """Touches the contrastive head too, so that its parameters exist."""
    return encoder.embed(images)
