"""Sizes of the pixel decoders, read off their `config.json` files and checked by their tensors.

A key that a file leaves out has the value diffusers gives it: files are as old as the release
that wrote them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lavit_jax.convert import pixel_names, read
from lavit_jax.convert.infer import Conditions
from lavit_jax.convert.read import Named, Tensors
from lavit_jax.errors import UserError
from lavit_jax.models.pixel_config import (
    AutoencoderConfig,
    NoiseConfig,
    PixelConfig,
    UNetConfig,
)

Settings = Mapping[str, Any]
# Decoder to the folder it is published in.
FOLDERS = {"lowres": "pixel_decoding", "highres": "highres_pixel_decoding"}
# Guidance and steps of the published code.
SAMPLING = {"lowres": (5.0, 50), "highres": (7.0, 25)}
SIZES = 6
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
MIDDLE = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "plain", None: "none"}
# What changes a U-Net's computation and is neither in LaVIT's nor implemented; the value it has
# where it is not used, null beside.
UNET_UNUSED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "attention_type": "default",
}
AUTOENCODER_UNUSED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
NOISE_UNUSED = {"thresholding": False, "trained_betas": None}


@dataclasses.dataclass(frozen=True)
class PixelParts:
    """Sizes of a published pixel decoder.

    Attributes:
      config: sizes and noise schedule.
      old_attention: its file calls the parts of the autoencoder's attention by their old names.
      wide_attention: it stores their weights as 1x1 convolutions.
    """

    config: PixelConfig
    old_attention: bool = False
    wide_attention: bool = False


def _refuse_unused(settings: Settings, unused: Mapping[str, Any], where: Path) -> None:
    for key, neutral in unused.items():
        value = settings.get(key)
        if value is not None and value != neutral:
            raise UserError(f"{where}: {key} {value!r} is not supported, expected {neutral!r}")


def _levels(settings: Settings, key: str, default: Any, count: int, where: Path) -> tuple[Any, ...]:
    """A value for each level from one for all or a list."""
    value = settings.get(key)
    value = default if value is None else value
    values = tuple(value) if isinstance(value, list) else (value,) * count
    if len(values) != count:
        raise UserError(f"{where}: {key} has {len(values)} values for {count} levels")
    wrong = [v for v in values if not isinstance(v, int) or v < 1]
    if wrong:
        raise UserError(f"{where}: {key} holds {wrong[0]!r}, expected positive whole numbers")
    return values


def _channels(settings: Settings, default: tuple[int, ...], where: Path) -> tuple[int, ...]:
    given = settings.get("block_out_channels")
    if given is None:
        return default
    if not isinstance(given, list) or not given:
        raise UserError(f"{where}: block_out_channels is {given!r}, expected a list of widths")
    return _levels(settings, "block_out_channels", None, len(given), where)


def _kinds(
    settings: Settings, key: str, known: Mapping[str, bool], default: tuple[str, ...], where: Path
) -> tuple[bool, ...]:
    """Which blocks attend, by the names of their kinds."""
    names = settings.get(key, default)
    if not isinstance(names, list | tuple):
        raise UserError(f"{where}: {key} is {names!r}, expected a list of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UserError(f"{where}: {key} holds {name!r}, expected some of {', '.join(known)}")
    return tuple(known[name] for name in names)


def _typed(make: Any, where: Path, **fields: Any) -> Any:
    try:
        return make(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _number(settings: Settings, name: str, default: Any, where: Path, least: int = 0) -> Any:
    """A number of the default's kind; whole ones do for others too."""
    value = settings.get(name, default)
    kinds = (int,) if isinstance(default, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
        kind = "a whole number" if kinds == (int,) else "a number"
        raise UserError(f"{where}: {name} is {value!r}, expected {kind} of at least {least}")
    return value


def unet(settings: Settings, where: Path) -> UNetConfig:
    """From `unet/config.json`.

    Raises:
      UserError: a kind of U-Net that is neither SD 1.5's nor SDXL's, or values that do not fit.
    """
    _refuse_unused(settings, UNET_UNUSED, where)
    channels = _channels(settings, (320, 640, 1280, 1280), where)
    count = len(channels)
    middle = settings.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if middle not in MIDDLE:
        raise UserError(f"{where}: mid_block_type {middle!r} is not supported")
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    # What diffusers calls the width of a head is their number; where a file has the newer key
    # too, diffusers reads that.
    heads = "num_attention_heads" if settings.get("num_attention_heads") else "attention_head_dim"
    condition = set(_levels(settings, "cross_attention_dim", 1280, count, where))
    if len(condition) > 1:
        raise UserError(f"{where}: cross_attention_dim differs between levels, expected one width")
    return _typed(
        UNetConfig,
        where,
        channels=channels,
        layers=_levels(settings, "layers_per_block", 2, count, where),
        down_attention=_kinds(settings, "down_block_types", DOWN, down, where),
        # Files count the way up from the coarsest level.
        up_attention=_kinds(settings, "up_block_types", UP, up, where)[::-1],
        heads=_levels(settings, heads, 8, count, where),
        depths=_levels(settings, "transformer_layers_per_block", 1, count, where),
        condition=condition.pop(),
        middle=MIDDLE[middle],
        in_channels=settings.get("in_channels", 4),
        out_channels=settings.get("out_channels", 4),
        groups=settings.get("norm_num_groups", 32),
        norm_eps=settings.get("norm_eps", 1e-5),
        padding=settings.get("downsample_padding", 1),
        linear_projection=bool(settings.get("use_linear_projection", False)),
        cos_first=bool(settings.get("flip_sin_to_cos", True)),
        freq_shift=float(settings.get("freq_shift", 0)),
        time_width=settings.get("time_embedding_dim") or 0,
        **_sized(settings, where),
    )


def _sized(settings: Settings, where: Path) -> dict[str, int]:
    kind = settings.get("addition_embed_type")
    if kind is None:
        return {}
    width = settings.get("addition_time_embed_dim")
    total = settings.get("projection_class_embeddings_input_dim")
    if kind != "text_time" or not width or not total or total <= SIZES * width:
        raise UserError(
            f"{where}: addition_embed_type {kind!r} with addition_time_embed_dim {width!r} and "
            f"projection_class_embeddings_input_dim {total!r}, expected 'text_time' and more than "
            f"{SIZES} times the former in the latter"
        )
    return {"size_width": width, "pooled": total - SIZES * width}


def _side(settings: Settings, default: int, where: Path) -> int:
    """The longer side a model was trained on."""
    given = settings.get("sample_size") or default
    side = max(given) if isinstance(given, list) else given
    if not isinstance(side, int) or side < 1:
        raise UserError(f"{where}: sample_size is {given!r}, expected a positive whole number")
    return side


def autoencoder(settings: Settings, where: Path) -> AutoencoderConfig:
    """From `vae/config.json`.

    Raises:
      UserError: another kind of autoencoder, or values that do not fit.
    """
    _refuse_unused(settings, AUTOENCODER_UNUSED, where)
    channels = _channels(settings, (64,), where)
    for key, kind in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        given = settings.get(key, [kind] * len(channels))
        if given != [kind] * len(channels):
            raise UserError(f"{where}: {key} {given!r}, expected {kind!r} for every level")
    return _typed(
        AutoencoderConfig,
        where,
        channels=channels,
        layers=settings.get("layers_per_block", 1),
        latent_channels=settings.get("latent_channels", 4),
        image_channels=settings.get("in_channels", 3),
        groups=settings.get("norm_num_groups", 32),
        scaling=settings.get("scaling_factor", 0.18215),
        shift=settings.get("shift_factor") or 0.0,
        middle_attention=settings.get("mid_block_add_attention", True),
        quant_conv=settings.get("use_quant_conv", True),
        post_quant_conv=settings.get("use_post_quant_conv", True),
        tile=max(_side(settings, 32, where) // 2 ** (len(channels) - 1), 1),
    )


def noise(settings: Settings, where: Path) -> NoiseConfig:
    """From `scheduler/scheduler_config.json`, read as DDIM's whichever sampler wrote it.

    Raises:
      UserError: a schedule that is not implemented.
    """
    _refuse_unused(settings, NOISE_UNUSED, where)
    clipped = settings.get("clip_sample", True)
    clip = _number(settings, "clip_sample_range", 1.0, where) if clipped else 0.0
    return _typed(
        NoiseConfig,
        where,
        steps=_number(settings, "num_train_timesteps", 1000, where, least=1),
        beta_start=_number(settings, "beta_start", 0.0001, where),
        beta_end=_number(settings, "beta_end", 0.02, where),
        beta_schedule=settings.get("beta_schedule", "linear"),
        prediction=settings.get("prediction_type", "epsilon"),
        spacing=settings.get("timestep_spacing", "leading"),
        offset=_number(settings, "steps_offset", 0, where),
        final_alpha_one=settings.get("set_alpha_to_one", True),
        zero_snr=settings.get("rescale_betas_zero_snr", False),
        clip=clip,
    )


def _attention(tensors: Named) -> dict[str, bool]:
    """How a file of the autoencoder calls and stores its attention."""
    name = "encoder.mid_block.attentions.0.{}.weight"
    old = name.format(pixel_names.OLD_ATTENTION["query"]) in tensors.infos
    names = pixel_names.OLD_ATTENTION if old else pixel_names.NEW_ATTENTION
    info = tensors.infos.get(name.format(names["query"]))
    return {"old_attention": old, "wide_attention": info is not None and len(info.shape) == 4}


def decoders(directory: Path, sources: Mapping[str, Tensors]) -> dict[str, PixelParts]:
    """Sizes of the pixel decoders whose files are open, by kind.

    Raises:
      FileNotFoundError: a config is missing.
      UserError: a config that cannot be used, or configs that do not fit each other.
    """
    return {
        kind: _decoder(kind, directory / folder, sources)
        for kind, folder in FOLDERS.items()
        if f"{kind}_unet" in sources
    }


def _decoder(kind: str, folder: Path, sources: Mapping[str, Tensors]) -> PixelParts:
    where = folder / "unet" / "config.json"
    settings = read.read_json(where)
    with read.reading_values(where):
        sizes, side = unet(settings, where), _side(settings, 64, where)
    path = folder / "vae" / "config.json"
    with read.reading_values(path):
        pictures = autoencoder(read.read_json(path), path)
    path = folder / "scheduler" / "scheduler_config.json"
    with read.reading_values(path):
        schedule = noise(read.read_json(path), path)
    guidance, steps = SAMPLING[kind]
    config = _typed(
        PixelConfig,
        where,
        unet=sizes,
        noise=schedule,
        size=side * pictures.factor,
        autoencoder=pictures,
        guidance=guidance,
        sampling_steps=steps,
    )
    if f"{kind}_uncond" in sources:
        _check_unconditional(sources[f"{kind}_uncond"], sizes.condition)
    return PixelParts(config, **_attention(sources[f"{kind}_autoencoder"]))


def _check_unconditional(tensors: Tensors, width: int) -> None:
    shapes = [info.shape for info in tensors.infos.values()]
    if len(shapes) != 1 or len(shapes[0]) != 3 or (shapes[0][0], shapes[0][2]) != (1, width):
        found = shapes[0] if len(shapes) == 1 else f"{len(shapes)} tensors"
        raise UserError(f"{tensors.path}: has {found}, expected one tensor [1, L, {width}]")


def check_conditions(parts: Mapping[str, PixelParts], conditions: Conditions, where: Path) -> None:
    """Condition heads must make what the U-Nets read.

    Raises:
      UserError: they make something else.
    """
    for kind, part in parts.items():
        sizes = part.config.unet
        file = where / FOLDERS[kind] / "unet" / "config.json"
        made = conditions.lowres
        if kind == "highres":
            made = sum(conditions.highres) if conditions.highres else None
            pooled = conditions.highres[1] if conditions.highres else None
            if pooled is not None and pooled != sizes.pooled:
                raise UserError(
                    f"{file}: the U-Net takes a pooled condition of {sizes.pooled}, but its "
                    f"condition head makes {pooled}"
                )
        if made is not None and made != sizes.condition:
            raise UserError(
                f"{file}: the U-Net reads conditions of {sizes.condition}, but its condition "
                f"head makes {made}"
            )
