"""The pixel decoders once more, in plain torch, walked along published names.

What is built here follows `config.json` and the tensors' names; nothing of `lavit_jax` is used, and
`Walk.read` keeps count, so that a test can tell that no tensor was left out.
"""

import math

import torch
import torch.nn.functional as F


class Walk:
    """Named tensors, and which of them were read."""

    def __init__(self, state):
        self.state = {name: torch.as_tensor(value) for name, value in state.items()}
        self.read = set()

    def has(self, name):
        return f"{name}.weight" in self.state

    def pair(self, name):
        found = []
        for leaf in (f"{name}.weight", f"{name}.bias"):
            if leaf in self.state:
                self.read.add(leaf)
            found.append(self.state.get(leaf))
        return found

    def conv(self, name, x, **kwargs):
        weight, bias = self.pair(name)
        return F.conv2d(x, weight, bias, **kwargs)

    def same(self, name, x):
        return self.conv(name, x, padding=self.state[f"{name}.weight"].shape[-1] // 2)

    def linear(self, name, x):
        weight, bias = self.pair(name)
        return F.linear(x, weight.flatten(1), bias)

    def group_norm(self, name, x, groups, eps):
        return F.group_norm(x, groups, *self.pair(name), eps)

    def layer_norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], *self.pair(name), 1e-5)

    def resnet(self, name, x, groups, eps, time=None):
        h = self.same(f"{name}.conv1", F.silu(self.group_norm(f"{name}.norm1", x, groups, eps)))
        if time is not None:
            h = h + self.linear(f"{name}.time_emb_proj", F.silu(time))[:, :, None, None]
        h = self.same(f"{name}.conv2", F.silu(self.group_norm(f"{name}.norm2", h, groups, eps)))
        if self.has(f"{name}.conv_shortcut"):
            x = self.same(f"{name}.conv_shortcut", x)
        return x + h

    def attention(
        self, name, x, read, heads, added=0.0, parts=("to_q", "to_k", "to_v", "to_out.0")
    ):
        q, k, v = (
            self.linear(f"{name}.{part}", source).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, source in zip(parts, (x, read, read))
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + added
        out = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.{parts[3]}", out)

    def transformer(self, name, x, groups, heads, tokens, added):
        h = self.group_norm(f"{name}.norm", x, groups, 1e-6).flatten(2).transpose(1, 2)
        h = self.linear(f"{name}.proj_in", h)
        depth = 0
        while self.has(f"{name}.transformer_blocks.{depth}.norm1"):
            block = f"{name}.transformer_blocks.{depth}"
            n = self.layer_norm(f"{block}.norm1", h)
            h = h + self.attention(f"{block}.attn1", n, n, heads)
            n = self.layer_norm(f"{block}.norm2", h)
            h = h + self.attention(f"{block}.attn2", n, tokens, heads, added)
            n = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h))
            value, gate = n.chunk(2, -1)
            h = h + self.linear(f"{block}.ff.net.2", value * F.gelu(gate))
            depth += 1
        h = self.linear(f"{name}.proj_out", h)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


def waves(t, width, settings):
    half = width // 2
    shift = settings.get("freq_shift", 0)
    angles = t[:, None].float() * torch.exp(
        -math.log(10000) * torch.arange(half).float() / (half - shift)
    )
    parts = [angles.sin(), angles.cos()]
    return torch.cat(parts[::-1] if settings.get("flip_sin_to_cos", True) else parts, -1)


def per_level(value, count):
    return value if isinstance(value, list) else [value] * count


@torch.no_grad()
def unet(state, settings, x, t, tokens, mask=None, pooled=None, sizes=None):
    """NCHW latents to the prediction, and the names that were read."""
    w = Walk(state)
    groups, eps = settings["norm_num_groups"], settings.get("norm_eps", 1e-5)
    widths = settings["block_out_channels"]
    levels = len(widths)
    heads = per_level(settings["attention_head_dim"], levels)
    layers = per_level(settings["layers_per_block"], levels)
    added = 0.0 if mask is None else ((1 - mask.float()) * -10000.0)[:, None, None, :]
    time = w.linear("time_embedding.linear_1", waves(t, widths[0], settings))
    time = w.linear("time_embedding.linear_2", F.silu(time))
    if sizes is not None:
        embedded = waves(sizes.flatten(), settings["addition_time_embed_dim"], settings)
        embedded = torch.cat([pooled, embedded.view(len(pooled), -1)], -1)
        extra = F.silu(w.linear("add_embedding.linear_1", embedded))
        time = time + w.linear("add_embedding.linear_2", extra)
    x = w.same("conv_in", x)
    skips = [x]
    for level in range(levels):
        block = f"down_blocks.{level}"
        for i in range(layers[level]):
            x = w.resnet(f"{block}.resnets.{i}", x, groups, eps, time)
            if w.has(f"{block}.attentions.{i}.norm"):
                name = f"{block}.attentions.{i}"
                x = w.transformer(name, x, groups, heads[level], tokens, added)
            skips.append(x)
        if level < levels - 1:
            x = halve(w, f"{block}.downsamplers.0.conv", x, settings.get("downsample_padding", 1))
            skips.append(x)
    if w.has("mid_block.resnets.0.norm1"):
        x = w.resnet("mid_block.resnets.0", x, groups, eps, time)
    if w.has("mid_block.attentions.0.norm"):
        x = w.transformer("mid_block.attentions.0", x, groups, heads[-1], tokens, added)
        x = w.resnet("mid_block.resnets.1", x, groups, eps, time)
    for k in range(levels):
        level, block = levels - 1 - k, f"up_blocks.{k}"
        for i in range(layers[level] + 1):
            x = w.resnet(f"{block}.resnets.{i}", torch.cat([x, skips.pop()], 1), groups, eps, time)
            if w.has(f"{block}.attentions.{i}.norm"):
                name = f"{block}.attentions.{i}"
                x = w.transformer(name, x, groups, heads[level], tokens, added)
        if level > 0:
            x = F.interpolate(x, size=skips[-1].shape[2:], mode="nearest")
            x = w.same(f"{block}.upsamplers.0.conv", x)
    x = F.silu(w.group_norm("conv_norm_out", x, groups, eps))
    return w.same("conv_out", x).numpy(), w.read


def halve(w, name, x, padding):
    if padding == 0:
        x = F.pad(x, (0, 1, 0, 1))
    return w.conv(name, x, stride=2, padding=padding)


def _middle(w, half, x, groups):
    name = f"{half}.mid_block"
    x = w.resnet(f"{name}.resnets.0", x, groups, 1e-6)
    attention = f"{name}.attentions.0"
    if w.has(f"{attention}.group_norm"):
        h = w.group_norm(f"{attention}.group_norm", x, groups, 1e-6).flatten(2).transpose(1, 2)
        old = ("query", "key", "value", "proj_attn")
        parts = old if w.has(f"{attention}.query") else ("to_q", "to_k", "to_v", "to_out.0")
        h = w.attention(attention, h, h, 1, parts=parts)
        x = x + h.transpose(1, 2).unflatten(2, x.shape[2:])
    return w.resnet(f"{name}.resnets.1", x, groups, 1e-6)


@torch.no_grad()
def encode(state, settings, x):
    """NCHW pictures to mean and log variance of their latents, and the names that were read."""
    w, groups = Walk(state), settings["norm_num_groups"]
    levels = len(settings["block_out_channels"])
    x = w.same("encoder.conv_in", x)
    for level in range(levels):
        block = f"encoder.down_blocks.{level}"
        for i in range(settings["layers_per_block"]):
            x = w.resnet(f"{block}.resnets.{i}", x, groups, 1e-6)
        if level < levels - 1:
            x = halve(w, f"{block}.downsamplers.0.conv", x, 0)
    x = _middle(w, "encoder", x, groups)
    x = w.same("encoder.conv_out", F.silu(w.group_norm("encoder.conv_norm_out", x, groups, 1e-6)))
    if w.has("quant_conv"):
        x = w.same("quant_conv", x)
    mean, logvar = x.chunk(2, 1)
    return mean.numpy(), logvar.clamp(-30, 20).numpy(), w.read


@torch.no_grad()
def decode(state, settings, z):
    """NCHW latents to pictures, and the names that were read."""
    w, groups = Walk(state), settings["norm_num_groups"]
    levels = len(settings["block_out_channels"])
    if w.has("post_quant_conv"):
        z = w.same("post_quant_conv", z)
    x = _middle(w, "decoder", w.same("decoder.conv_in", z), groups)
    for k in range(levels):
        block = f"decoder.up_blocks.{k}"
        for i in range(settings["layers_per_block"] + 1):
            x = w.resnet(f"{block}.resnets.{i}", x, groups, 1e-6)
        if k < levels - 1:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = w.same(f"{block}.upsamplers.0.conv", x)
    x = F.silu(w.group_norm("decoder.conv_norm_out", x, groups, 1e-6))
    return w.same("decoder.conv_out", x).numpy(), w.read
