"""Visual ids to pictures through a pixel decoder: features, condition, U-Net, autoencoder (SPEC 9).

Legend: B pictures, L ids of a picture (padded), N patches, D width, F condition width, K codes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from lavit_jax.errors import UserError
from lavit_jax.inference.programs import compiled_on
from lavit_jax.inference.prompts import bucket, padded
from lavit_jax.models import decoder, diffusion, pixels, quantizer, unet
from lavit_jax.models.config import DecoderConfig
from lavit_jax.models.decoder import FeatureDecoder, HighresHead, LowresHead
from lavit_jax.models.lavit import Modules
from lavit_jax.models.pixel_config import PixelConfig
from lavit_jax.models.quantizer import Codebook
from lavit_jax.models.unet import Condition, UNet

if TYPE_CHECKING:
    from lavit_jax.convert.published import Published

# Height and width of the pictures the published highres decoder was trained on.
ASPECT_RATIOS = (
    (1024, 1024),
    (896, 1152),
    (832, 1216),
    (768, 1344),
    (1216, 832),
    (1152, 896),
)
ROWS = 8  # painted at a time at most


@dataclasses.dataclass(frozen=True)
class Settings:
    """How pictures are painted; None: as the decoder's own config says.

    Attributes:
      height: of the pictures.
      width: likewise.
      guidance: of the denoiser; 1 is none.
      steps: of the sampler.
      solver: "ddim" or "dpm++".
      tiled: decode latents tile by tile, for less memory.

    Raises:
      UserError: a solver there is not.
    """

    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    steps: int | None = None
    solver: str | None = None
    tiled: bool = False

    def __post_init__(self) -> None:
        if self.solver is not None and self.solver not in diffusion.SOLVERS:
            known = ", ".join(diffusion.SOLVERS)
            raise UserError(f"solver is {self.solver!r}, expected one of {known}")


def settings_of(
    size: Sequence[int] | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    solver: str | None = None,
    tile: bool = False,
) -> Settings:
    """Settings as drawings and reconstructions have them.

    Args:
      size: height and width.
      guidance: see `Settings`.
      steps: likewise.
      solver: likewise.
      tile: likewise.

    Raises:
      UserError: a size that is no pair of whole numbers, or a solver there is not.
    """
    if size is None:
        return Settings(guidance=guidance, steps=steps, solver=solver, tiled=tile)
    if np.shape(size) != (2,) or not all(isinstance(side, int | np.integer) for side in size):
        raise UserError(f"decoder_size is {size!r}, expected (height, width)")
    height, width = map(int, size)
    return Settings(height, width, guidance, steps, solver, tile)


@dataclasses.dataclass(frozen=True)
class Heads:
    """Sizes of what stands before a U-Net.

    Attributes:
      decoder: the feature decoder.
      condition: of the head: (F,) for lowres; two widths for highres.
      pool_heads: of the highres head's pool.
    """

    decoder: DecoderConfig
    condition: tuple[int, ...]
    pool_heads: int = 16


class _Full(NamedTuple):
    """Settings with every value known, but guidance: those that a program is compiled for."""

    height: int
    width: int
    steps: int
    solver: str
    tiled: bool


@dataclasses.dataclass(frozen=True)
class _Painter:
    """The computation of one pixel decoder, without its weights."""

    kind: str
    config: PixelConfig
    heads: Heads

    def paint(
        self,
        params: Mapping[str, Any],
        codes_KC: Array,
        stored_LF: Array | None,
        ids_BL: Array,
        valid_BL: Bool[Array, "B L"],
        keys_B: Array,
        guidance: Array | None,
        settings: _Full,
    ) -> UInt8[Array, "B H W 3"]:
        """Ids to pictures; guidance of None runs the conditional branch alone."""
        codes = quantizer.lookup(ids_BL, codes_KC)
        condition = self._condition(params, codes, valid_BL, settings)
        factor = self.config.factor
        shape = (settings.height // factor, settings.width // factor, self.config.unet.in_channels)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B)
        denoise = self._denoiser(params, condition, stored_LF, guidance)
        latents = diffusion.sample(
            self.config.noise, denoise, noise, settings.solver, settings.steps
        )
        tile = 0
        if settings.tiled and self.config.autoencoder is not None:
            tile = self.config.autoencoder.tile
        autoencoder = params.get(f"{self.kind}_autoencoder")
        return decoder.to_uint8(pixels.to_pixels(self.config, autoencoder, latents, tile))

    def _condition(
        self, params: Mapping[str, Any], codes_BLC: Array, valid_BL: Array, settings: _Full
    ) -> Condition:
        def run(module: nn.Module, name: str, *args: Array) -> Any:
            return module.apply({"params": params[name]}, *args)

        features = FeatureDecoder(self.heads.decoder)
        if self.kind == "lowres":
            x_rec = run(features, "decoder", codes_BLC, valid_BL)
            return Condition(run(LowresHead(*self.heads.condition), "lowres_head", x_rec))
        x_rec = run(features, "highres_decoder", codes_BLC, valid_BL)
        head = HighresHead(self.heads.pool_heads, *self.heads.condition)
        tokens, pooled = run(head, "highres_head", x_rec)
        # Original size, crop corner and target size: an uncropped picture of the size asked for.
        sizes = (settings.height, settings.width, 0, 0, settings.height, settings.width)
        rows = jnp.broadcast_to(jnp.array(sizes, jnp.float32), (len(codes_BLC), 6))
        return Condition(tokens, pooled_BP=pooled, sizes_B6=rows)

    def _denoiser(
        self,
        params: Mapping[str, Any],
        condition: Condition,
        stored_LF: Array | None,
        guidance: Array | None,
    ) -> diffusion.Denoiser:
        """The U-Net, guided: both branches go through it as one batch."""
        weights = {"params": params[f"{self.kind}_unet"]}
        run: Any = functools.partial(UNet(self.config.unet).apply, weights)
        if guidance is None:
            return lambda x, time: run(x, time, condition)
        both = unet.join(*pixels.unconditional(condition, stored_LF))

        def guided(x: Array, time: Array) -> Array:
            predicted = run(jnp.concatenate([x, x]), jnp.concatenate([time, time]), both)
            unconditional, conditional = jnp.split(predicted, 2)
            return diffusion.guide(unconditional, conditional, guidance)

        return guided


@functools.cache
def _program(painter: _Painter, mesh: Mesh | None) -> Any:
    """Compiled once for each shape and settings, whatever the weights and the guidance's scale."""
    return compiled_on(mesh, painter.paint, static_argnames="settings")


# Modules each kind runs; the autoencoder comes with them where there is one.
NEEDED: dict[str, tuple[str, ...]] = {
    "lowres": ("decoder", "lowres_head", "lowres_unet"),
    "highres": ("highres_decoder", "highres_head", "highres_unet"),
}


class PixelDecoder:
    """One pixel decoder with its weights.

    Attributes:
      kind: "lowres" or "highres".
      config: sizes, noise schedule and how it paints.
    """

    def __init__(
        self,
        kind: str,
        config: PixelConfig,
        heads: Heads,
        params: Mapping[str, Any],
        codes_KC: Float[Array, "K C"],
        unconditional_LF: Any = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.kind, self.config, self._mesh = kind, config, mesh
        self._heads, self._codes = heads, codes_KC
        self._stored = None if unconditional_LF is None else jnp.asarray(unconditional_LF)
        needed = NEEDED[kind]
        if config.autoencoder is not None:
            needed += (f"{kind}_autoencoder",)
        missing = [name for name in needed if name not in params]
        if missing:
            raise UserError(f"the {kind} pixel decoder has no {missing[0]}")
        self._params = jax.tree.map(jnp.asarray, {name: params[name] for name in needed})

    def paint(
        self, ids: Sequence[np.ndarray], seed: int = 0, settings: Settings | None = None
    ) -> list[np.ndarray]:
        """Paints pictures from their visual ids.

        Args:
          ids: codes 0..K-1 of each picture, in any number up to N.
          seed: of the noise; a picture depends on it, its ids and its place in the list only.
          settings: how.

        Returns:
          For each a picture, uint8 [H, W, 3].

        Raises:
          UserError: settings that the decoder cannot follow, or more ids than patches.
        """
        settings = settings or Settings()
        full, guidance = self._full(settings), self._guidance(settings)
        most = self._heads.decoder.patches
        long = [len(row) for row in ids if len(row) > most]
        if long:
            raise UserError(f"a picture has {long[0]} ids, more than its {most} patches")
        program = _program(_Painter(self.kind, self.config, self._heads), self._mesh)
        root, painted = jax.random.key(seed), []
        for start in range(0, len(ids), ROWS):
            part = list(ids[start : start + ROWS])
            rows = bucket(len(part), ROWS)
            ids_BL, count_B = padded(part + [part[-1]] * (rows - len(part)), rows, most)
            valid = np.arange(most) < count_B[:, None]
            keys = jax.vmap(functools.partial(jax.random.fold_in, root))(start + jnp.arange(rows))
            arrays = (self._params, self._codes, self._stored, ids_BL, valid, keys, guidance)
            painted += list(np.asarray(program(*arrays, settings=full))[: len(part)])
        return painted

    def check(self, settings: Settings) -> None:
        """Raises UserError for settings that the decoder cannot follow."""
        self._full(settings)

    def _full(self, settings: Settings) -> _Full:
        """Settings with every value known, and checked."""
        config = self.config
        own = _Full(config.size, config.size, config.sampling_steps, config.solver, False)
        given = {name: getattr(settings, name) for name in own._fields}
        full = own._replace(**{name: value for name, value in given.items() if value is not None})
        for name in ("height", "width"):
            side = getattr(full, name)
            if side < config.factor or side % config.factor:
                raise UserError(f"{name} {side} is no multiple of {config.factor}")
        try:
            diffusion.plan(config.noise, full.solver, full.steps)
        except ValueError as error:
            raise UserError(f"{self.kind} pixel decoder: {error}") from error
        return full

    def _guidance(self, settings: Settings) -> Array | None:
        """The scale as a number the program takes; None, another program, where there is none."""
        scale = self.config.guidance if settings.guidance is None else settings.guidance
        return None if scale == 1 else jnp.float32(scale)


# By kind; one whose weights are large is read when it is first asked for.
Decoders = Mapping[str, Callable[[], PixelDecoder]]


def published(loaded: Published, mesh: Mesh | None = None) -> dict[str, PixelDecoder]:
    """The pixel decoders of a published checkpoint that are whole, by kind.

    Args:
      loaded: its parameters and sizes.
      mesh: where the parameters are, if on more than one device.

    Raises:
      UserError: the checkpoint has no visual tokenizer.
    """
    if loaded.codebook is None:
        raise UserError("pixel decoders need the codebook of visual_tokenizer/")
    conditions, found = loaded.extra.conditions, {}
    for kind, part in loaded.pixels.items():
        if f"{kind}_unet" not in loaded.params:
            continue
        sizes = loaded.config.decoder
        widths: tuple[int, ...] = (part.config.unet.condition,)
        if kind == "highres" and conditions.highres and conditions.highres_decoder:
            sizes, widths = conditions.highres_decoder, conditions.highres
        found[kind] = PixelDecoder(
            kind,
            part.config,
            Heads(sizes, widths, conditions.pool_heads),
            loaded.params,
            loaded.codebook.codes_KC,
            _unconditional(loaded.params, kind),
            mesh,
        )
    return found


def _unconditional(params: Mapping[str, Any], kind: str) -> Any:
    """The stored condition of no picture [L, F]; None where a decoder has zeros."""
    stored = params.get(f"{kind}_uncond")
    return None if stored is None else next(iter(stored.values()))[0]


def trained(
    modules: Modules, params: Mapping[str, Any], codebook: Codebook, mesh: Mesh | None = None
) -> Decoders:
    """The pixel decoder of a training run, as "lowres"; none where none was trained."""
    config = modules.config.pixels
    if config is None or "lowres_unet" not in params:
        return {}
    heads = Heads(modules.config.decoder, (config.unet.condition,))
    found = PixelDecoder("lowres", config, heads, params, codebook.codes_KC, mesh=mesh)
    return {"lowres": lambda: found}
