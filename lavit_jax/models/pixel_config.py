"""Frozen, typed sizes of the pixel decoders: U-Net, autoencoder and noise schedule.

Field by field they are what diffusers' `config.json` files say, under plain names.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    _check(value in known, f"{name} must be one of {known}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Conditional U-Net; SD 1.5 and SDXL differ in these fields alone.

    Levels are counted from the finest; every field named for a level has one value per level.

    Attributes:
      channels: width of each level.
      layers: residual blocks of each level on the way down; on the way up one more.
      down_attention: whether a level's blocks attend on the way down.
      up_attention: whether they do on the way up.
      heads: attention heads of each level (diffusers calls this `attention_head_dim`).
      depths: transformer blocks in each attention of a level.
      condition: width of the condition the cross-attentions read.
      placed: whether the condition is also laid beside the noisy picture, each token at its place
        (ours: a small U-Net finds out too slowly by attention alone what belongs where).
      middle: "attention" (two residual blocks around one attention), "plain" (one residual
        block) or "none".
      in_channels: of the latents.
      out_channels: of the prediction.
      groups: of every group norm.
      norm_eps: of the residual blocks' norms.
      padding: of the downsampling convolutions: 1 on every side, or 0: right and bottom only.
      linear_projection: only whether published attention projections are stored as linear
        layers or as 1x1 convolutions; the numbers are the same.
      cos_first: time embedding is (cos, sin) rather than (sin, cos).
      freq_shift: of the time embedding's frequencies.
      time_width: width of the embedded time; 0 means four times the first level's.
      size_width: embedding width of each of the six size numbers (SDXL); 0: no sizes.
      pooled: width of the pooled condition that goes with the sizes.
      dtype: compute dtype; parameters, norms and softmax stay float32.
      remat: whether the backward pass recomputes each residual block and attention.
    """

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    heads: tuple[int, ...]
    depths: tuple[int, ...]
    condition: int
    placed: bool = False
    middle: str = "attention"
    in_channels: int = 4
    out_channels: int = 4
    groups: int = 32
    norm_eps: float = 1e-5
    padding: int = 1
    linear_projection: bool = False
    cos_first: bool = True
    freq_shift: float = 0.0
    time_width: int = 0
    size_width: int = 0
    pooled: int = 0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        levels = len(self.channels)
        for name in ("layers", "down_attention", "up_attention", "heads", "depths"):
            given = len(getattr(self, name))
            _check(
                given == levels,
                f"unet.{name} has {given} values for {levels} levels of channels",
            )
        _one_of("unet.middle", self.middle, ("attention", "plain", "none"))
        _check(self.padding in (0, 1), f"unet.padding must be 0 or 1, got {self.padding}")
        for level, (width, heads) in enumerate(zip(self.channels, self.heads)):
            _check(
                width % self.groups == 0,
                f"unet.groups={self.groups} does not divide channels[{level}]={width}",
            )
            _check(
                width % heads == 0 or not self._attends(level),
                f"unet.heads[{level}]={heads} does not divide channels[{level}]={width}",
            )
        if self.time_width == 0:
            object.__setattr__(self, "time_width", 4 * self.channels[0])

    def _attends(self, level: int) -> bool:
        last = level == self.levels - 1
        middle = self.middle == "attention" and last
        return self.down_attention[level] or self.up_attention[level] or middle

    @property
    def levels(self) -> int:
        return len(self.channels)

    @property
    def sized(self) -> bool:
        """Whether sizes and a pooled condition are added to the time (SDXL's text_time)."""
        return self.size_width > 0

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    def skips(self) -> tuple[int, ...]:
        """Widths of what the way down leaves for the way up, in the order it is made."""
        made = [self.channels[0]]
        for level, width in enumerate(self.channels):
            made += [width] * self.layers[level]
            if level < self.levels - 1:
                made.append(width)
        return tuple(made)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """KL autoencoder between pictures in [-1, 1] and latents.

    Attributes:
      channels: width of each level, from the finest.
      layers: residual blocks of a level in the encoder; the decoder has one more.
      latent_channels: of the latents.
      image_channels: of the pictures.
      groups: of every group norm.
      scaling: latents are multiplied by it before they are diffused.
      shift: and this is subtracted before.
      middle_attention: whether the middle attends.
      quant_conv: 1x1 convolution after the encoder.
      post_quant_conv: 1x1 convolution before the decoder.
      tile: side in latents of the tiles of a tiled decode; 0 means the trained side.
      dtype: compute dtype.
    """

    channels: tuple[int, ...]
    layers: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    scaling: float = 0.18215
    shift: float = 0.0
    middle_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    tile: int = 64
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for level, width in enumerate(self.channels):
            _check(
                width % self.groups == 0,
                f"autoencoder.groups={self.groups} does not divide channels[{level}]={width}",
            )

    @property
    def factor(self) -> int:
        """Pixels per latent, each way."""
        return 2 ** (len(self.channels) - 1)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Noise schedule and what the U-Net predicts; defaults are those of diffusers' DDIM.

    Attributes:
      steps: T, training time steps.
      beta_start: first beta.
      beta_end: last beta.
      beta_schedule: "linear", "scaled_linear" (linear in the root) or "squaredcos_cap_v2".
      prediction: what the U-Net predicts: "epsilon", "v_prediction" or "sample".
      spacing: how sampling steps are spread over T.
      offset: added to the steps of "leading" spacing.
      final_alpha_one: the step past the last is noiseless, rather than as noisy as step 0.
      zero_snr: rescaled so that the noisiest step holds no signal.
      clip: predicted pictures are clipped to +- this; 0 does not clip.
    """

    steps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction: str = "epsilon"
    spacing: str = "leading"
    offset: int = 0
    final_alpha_one: bool = True
    zero_snr: bool = False
    clip: float = 0.0

    def __post_init__(self) -> None:
        _one_of("noise.beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        _one_of("noise.spacing", self.spacing, SPACINGS)
        _one_of("noise.prediction", self.prediction, PREDICTIONS)
        _check(
            not (self.zero_snr and self.prediction == "epsilon"),
            "noise.zero_snr needs prediction 'v_prediction' or 'sample': from pure noise, "
            "predicted noise tells nothing",
        )


@dataclasses.dataclass(frozen=True)
class PixelConfig:
    """One pixel decoder; without an autoencoder it diffuses the pixels themselves.

    Attributes:
      unet: the denoiser.
      noise: its schedule.
      size: side of the pictures it is trained on.
      autoencoder: between pictures and latents; None when there is none.
      patch: without an autoencoder, the side of the patches whose pixels make one latent.
      guidance: of the denoiser, unless told otherwise.
      sampling_steps: likewise.
      solver: likewise.
    """

    unet: UNetConfig
    noise: NoiseConfig
    size: int = 512
    autoencoder: AutoencoderConfig | None = None
    patch: int = 1
    guidance: float = 5.0
    sampling_steps: int = 50
    solver: str = "ddim"

    def __post_init__(self) -> None:
        made = 3 * self.patch**2
        if self.autoencoder is not None:
            made = self.autoencoder.latent_channels
        _check(
            self.unet.in_channels == made,
            f"unet.in_channels is {self.unet.in_channels}, but latents have {made} channels",
        )
        _check(
            self.size % self.factor == 0,
            f"pixels.size={self.size} is no multiple of {self.factor}, the pixels of a latent",
        )

    def computing_in(self, dtype: str) -> PixelConfig:
        """The same parameters with another compute dtype."""
        pictures = self.autoencoder and dataclasses.replace(self.autoencoder, dtype=dtype)
        unet = dataclasses.replace(self.unet, dtype=dtype)
        return dataclasses.replace(self, unet=unet, autoencoder=pictures)

    @property
    def factor(self) -> int:
        """Pixels per latent, each way."""
        return self.autoencoder.factor if self.autoencoder else self.patch
