"""Published names beside our parameter paths, for the two pixel decoders.

Each is a U-Net, an autoencoder and, in the low-resolution one, the condition of no picture at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lavit_jax.convert import forms, read
from lavit_jax.convert.forms import Entry, Table
from lavit_jax.convert.read import Info, Tensors

LOWRES, HIGHRES = "pixel_decoding", "highres_pixel_decoding"
PARTS = (LOWRES, HIGHRES)
NETWORKS = ("unet", "vae")
UNCOND_FILE = "uncond_embeddings.bin"
# What our modules of each part begin with, as the condition heads `lowres_head`, `highres_head`.
_PREFIX = {LOWRES: "lowres", HIGHRES: "highres"}


def open_sources(directory: Path, part: str) -> dict[str, Tensors]:
    """Opens the files of one part, by component.

    Raises:
      FileNotFoundError: a file that the part cannot do without.
      UserError: a broken file.
    """
    prefix, folder = _PREFIX[part], directory / part
    sources = {f"{prefix}_{name}": read.open_diffusion(folder / name) for name in NETWORKS}
    if (folder / UNCOND_FILE).is_file():
        sources[f"{prefix}_uncond"] = read.BareTorchFile(folder / UNCOND_FILE)
    return sources


def table(component: str, infos: Mapping[str, Info]) -> Table:
    """The table of one component.

    Every tensor of the file as it is, dots in its name becoming levels of our tree: such a table
    expects what is there.
    """
    return tuple(
        Entry(name, (f"{component}/{name.replace('.', '/')}",), forms.same(*info.shape))
        for name, info in infos.items()
    )


def part_of(component: str) -> str:
    """The part that a component belongs to."""
    return next(part for part, prefix in _PREFIX.items() if component.startswith(prefix))
