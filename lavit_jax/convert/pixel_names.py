"""Published names of the pixel decoders beside our parameter paths; see `names.py`.

Legend: C channels, F condition width, T width of the embedded time, Z latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lavit_jax.convert import forms
from lavit_jax.convert.forms import Entry, Table, stacked, under
from lavit_jax.convert.names import linear, norm
from lavit_jax.models.pixel_config import AutoencoderConfig, UNetConfig

# Names of the autoencoder's attention: today's, and those of files written before 2023.
NEW_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj": "to_out.0"}
OLD_ATTENTION = {"query": "query", "key": "key", "value": "value", "proj": "proj_attn"}


def _conv(name: str, path: str, inputs: int, outputs: int, size: int = 3) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (f"{path}/kernel",), forms.convolution(inputs, outputs, size))
    yield Entry(f"{name}.bias", (f"{path}/bias",), forms.same(outputs))


def _residual(name: str, path: str, inputs: int, outputs: int, time: int = 0) -> Table:
    entries = [
        *norm("norm1", "norm1", inputs),
        *_conv("conv1", "conv1", inputs, outputs),
        *norm("norm2", "norm2", outputs),
        *_conv("conv2", "conv2", outputs, outputs),
    ]
    if time:
        entries += linear("time_emb_proj", "time_proj", time, outputs)
    if inputs != outputs:
        entries += _conv("conv_shortcut", "skip", inputs, outputs, size=1)
    return under(entries, f"{name}.", f"{path}/")


def _attend(name: str, path: str, width: int, read: int, heads: int) -> Iterator[Entry]:
    per_head = width // heads
    for part, published, inputs in (
        ("query", "to_q", width),
        ("key", "to_k", read),
        ("value", "to_v", read),
    ):
        form = forms.heads(inputs, heads, per_head)
        yield Entry(f"{name}.{published}.weight", (f"{path}_{part}/kernel",), form)
    merged = forms.merge(width, heads, per_head)
    yield Entry(f"{name}.to_out.0.weight", (f"{path}_proj/kernel",), merged)
    yield Entry(f"{name}.to_out.0.bias", (f"{path}_proj/bias",), forms.same(width))


def _transformer_block(width: int, condition: int, heads: int) -> Iterator[Entry]:
    for name in ("norm1", "norm2", "norm3"):
        yield from norm(name, name, width)
    yield from _attend("attn1", "self", width, width, heads)
    yield from _attend("attn2", "cross", width, condition, heads)
    yield from linear("ff.net.0.proj", "gated", width, 8 * width)
    yield from linear("ff.net.2", "out", 4 * width, width)


def _attention(name: str, path: str, c: UNetConfig, level: int) -> Table:
    width = c.channels[level]
    block = _transformer_block(width, c.condition, c.heads[level])
    # The projections are the same numbers as a linear layer or as a 1x1 convolution.
    weight = forms.linear if c.linear_projection else forms.pointwise
    entries = [*norm("norm", "norm", width)]
    for published, ours in (("proj_in", "in_proj"), ("proj_out", "out_proj")):
        entries += [
            Entry(f"{published}.weight", (f"{ours}/kernel",), weight(width, width)),
            Entry(f"{published}.bias", (f"{ours}/bias",), forms.same(width)),
        ]
    entries += stacked(block, c.depths[level], "transformer_blocks.{i}.", "blocks/")
    return under(entries, f"{name}.", f"{path}/")


def unet(c: UNetConfig) -> Table:
    """`unet/diffusion_pytorch_model.bin`."""
    time = c.time_width
    entries = [
        *_conv("conv_in", "in_conv", c.in_channels, c.channels[0]),
        *linear("time_embedding.linear_1", "time/fc1", c.channels[0], time),
        *linear("time_embedding.linear_2", "time/fc2", time, time),
        *norm("conv_norm_out", "norm", c.channels[0]),
        *_conv("conv_out", "out_conv", c.channels[0], c.out_channels),
        *_down(c),
        *_middle(c),
        *_up(c),
    ]
    if c.sized:
        entries += linear("add_embedding.linear_1", "added/fc1", c.pooled + 6 * c.size_width, time)
        entries += linear("add_embedding.linear_2", "added/fc2", time, time)
    return tuple(entries)


def _down(c: UNetConfig) -> Iterator[Entry]:
    width = c.channels[0]
    for level, features in enumerate(c.channels):
        name, path = f"down_blocks.{level}", f"down{level}"
        for i in range(c.layers[level]):
            yield from _residual(
                f"{name}.resnets.{i}", f"{path}_residual{i}", width, features, c.time_width
            )
            width = features
            if c.down_attention[level]:
                yield from _attention(f"{name}.attentions.{i}", f"{path}_attention{i}", c, level)
        if level < c.levels - 1:
            yield from _conv(
                f"{name}.downsamplers.0.conv", f"{path}_sample/conv", features, features
            )


def _middle(c: UNetConfig) -> Iterator[Entry]:
    if c.middle == "none":
        return
    width = c.channels[-1]
    for i in range(2 if c.middle == "attention" else 1):
        yield from _residual(
            f"mid_block.resnets.{i}", f"middle_residual{i}", width, width, c.time_width
        )
    if c.middle == "attention":
        yield from _attention("mid_block.attentions.0", "middle_attention", c, c.levels - 1)


def _up(c: UNetConfig) -> Iterator[Entry]:
    skips, width = list(c.skips()), c.channels[-1]
    for level in reversed(range(c.levels)):
        features = c.channels[level]
        # Published names count the way up from the coarsest level.
        name, path = f"up_blocks.{c.levels - 1 - level}", f"up{level}"
        for i in range(c.layers[level] + 1):
            yield from _residual(
                f"{name}.resnets.{i}",
                f"{path}_residual{i}",
                width + skips.pop(),
                features,
                c.time_width,
            )
            width = features
            if c.up_attention[level]:
                yield from _attention(f"{name}.attentions.{i}", f"{path}_attention{i}", c, level)
        if level > 0:
            yield from _conv(f"{name}.upsamplers.0.conv", f"{path}_sample/conv", width, width)


def _autoencoder_middle(
    c: AutoencoderConfig, attention: Mapping[str, str], form: forms.LinearForm
) -> Iterator[Entry]:
    width = c.channels[-1]
    for i in range(2):
        yield from _residual(f"mid_block.resnets.{i}", f"middle_residual{i}", width, width)
    if not c.middle_attention:
        return
    name, path = "mid_block.attentions.0", "middle_attention"
    yield from norm(f"{name}.group_norm", f"{path}/norm", width)
    for ours, published in attention.items():
        weight = form(width, width)
        yield Entry(f"{name}.{published}.weight", (f"{path}/{ours}/kernel",), weight)
        yield Entry(f"{name}.{published}.bias", (f"{path}/{ours}/bias",), forms.same(width))


def _encoder(c: AutoencoderConfig) -> Iterator[Entry]:
    width = c.channels[0]
    yield from _conv("conv_in", "in_conv", c.image_channels, width)
    for level, features in enumerate(c.channels):
        name, path = f"down_blocks.{level}", f"down{level}"
        for i in range(c.layers):
            yield from _residual(f"{name}.resnets.{i}", f"{path}_residual{i}", width, features)
            width = features
        if level < len(c.channels) - 1:
            yield from _conv(f"{name}.downsamplers.0.conv", f"{path}_sample/conv", width, width)
    yield from norm("conv_norm_out", "norm", width)
    yield from _conv("conv_out", "out_conv", width, 2 * c.latent_channels)


def _decoder(c: AutoencoderConfig) -> Iterator[Entry]:
    width, levels = c.channels[-1], len(c.channels)
    yield from _conv("conv_in", "in_conv", c.latent_channels, width)
    for level in reversed(range(levels)):
        name, path = f"up_blocks.{levels - 1 - level}", f"up{level}"
        for i in range(c.layers + 1):
            features = c.channels[level]
            yield from _residual(f"{name}.resnets.{i}", f"{path}_residual{i}", width, features)
            width = features
        if level > 0:
            yield from _conv(f"{name}.upsamplers.0.conv", f"{path}_sample/conv", width, width)
    yield from norm("conv_norm_out", "norm", width)
    yield from _conv("conv_out", "out_conv", width, c.image_channels)


def autoencoder(
    c: AutoencoderConfig,
    attention: Mapping[str, str] = NEW_ATTENTION,
    form: forms.LinearForm = forms.linear,
) -> Table:
    """`vae/diffusion_pytorch_model.bin`; files differ in how their attention is called and cut."""
    entries: list[Entry] = []
    for half, blocks in (("encoder", _encoder), ("decoder", _decoder)):
        middle = _autoencoder_middle(c, attention, form)
        entries += under((*blocks(c), *middle), f"{half}.", f"{half}/")
    latent = c.latent_channels
    if c.quant_conv:
        entries += _conv("quant_conv", "quant_conv", 2 * latent, 2 * latent, size=1)
    if c.post_quant_conv:
        entries += _conv("post_quant_conv", "post_quant_conv", latent, latent, size=1)
    return tuple(entries)
