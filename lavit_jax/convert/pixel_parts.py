"""The two pixel decoders of a published checkpoint: their files, and their names in our tree.

Each is a U-Net and an autoencoder; the low-resolution one has the condition of no picture too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lavit_jax.convert import forms, pixel_names, read
from lavit_jax.convert.forms import Entry, Table
from lavit_jax.convert.pixel_infer import FOLDERS, PixelParts
from lavit_jax.convert.read import Info, Tensors

# Part to what our modules of it begin with, as the condition heads `lowres_head`, `highres_head`.
PARTS = {folder: kind for kind, folder in FOLDERS.items()}
UNCONDITIONAL = "uncond_embeddings.bin"


def open_sources(directory: Path, part: str) -> dict[str, Tensors]:
    """Opens the files of one part, by component.

    Raises:
      FileNotFoundError: a file that the part cannot do without.
      UserError: a broken file.
    """
    kind, folder = PARTS[part], directory / part
    sources = {
        f"{kind}_unet": read.open_model(folder / "unet"),
        f"{kind}_autoencoder": read.open_model(folder / "vae"),
    }
    if (folder / UNCONDITIONAL).is_file():
        sources[f"{kind}_uncond"] = read.BareTorchFile(folder / UNCONDITIONAL)
    return sources


def part_of(component: str) -> str:
    """The part that a component belongs to."""
    return next(part for part, kind in PARTS.items() if component.startswith(f"{kind}_"))


def table(component: str, infos: Mapping[str, Info], pixels: Mapping[str, PixelParts]) -> Table:
    """The table of one component; the condition of no picture stays as it is."""
    kind, _, module = component.partition("_")
    if module == "uncond":
        return tuple(
            Entry(name, (f"{component}/{name}",), forms.same(*info.shape))
            for name, info in infos.items()
        )
    part = pixels[kind]
    if module == "unet":
        return forms.under(pixel_names.unet(part.config.unet), path=f"{component}/")
    assert part.config.autoencoder is not None
    attention = pixel_names.OLD_ATTENTION if part.old_attention else pixel_names.NEW_ATTENTION
    form = forms.pointwise if part.wide_attention else forms.linear
    entries = pixel_names.autoencoder(part.config.autoencoder, attention, form)
    return forms.under(entries, path=f"{component}/")
