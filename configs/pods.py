"""What the large experiments share: presets of TPU pods, and fields of long runs."""

from typing import NamedTuple

from ml_collections import ConfigDict


class Pod(NamedTuple):
    """How a preset's chips are arranged: what is not said here is `fsdp`, which splits parameters.

    Attributes:
      slices: copies that the data centre's network joins.
      data: copies within a slice.
    """

    slices: int = 1
    data: int = 1


# ViT-g's width, 1408, divides over 128 chips but not over 256, and what does not divide stays whole
# on every chip: 8 GiB there. Where there is room, 16 chips share a copy: of 64, each would have
# parts of ViT-g so thin that a TPU sums where it should gather, at more than twice the traffic.
PRESETS = {
    "v4-128": Pod(data=4),
    "v5e-256": Pod(data=2),
    "v5p-128": Pod(data=4),
    "v6e-256": Pod(data=2),
    "v5p-128x2": Pod(slices=2, data=4),
}


# Chips that share one copy of models that are small beside a chip. ViT-g and the U-Nets then have
# parts of whole tiles (176 or 40 rows), which a TPU gathers; thinner ones it sums, at twice the
# traffic.
FSDP_OF_SMALL = 8


def pod(preset: str) -> Pod:
    """A preset by name.

    Raises:
      ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"arg must be one of {', '.join(PRESETS)}, got {preset!r}")
    return PRESETS[preset]


def mesh(preset: str, *, fsdp: int | None = None) -> ConfigDict:
    """The mesh of a preset.

    Args:
      preset: by name.
      fsdp: chips that share a copy of the parameters; by default as many as the preset has.
    """
    slices, data = pod(preset)
    split = {"data": data, "fsdp": -1} if fsdp is None else {"data": -1, "fsdp": fsdp}
    return ConfigDict({"slice": slices, **split, "sequence": 1, "tensor": 1})


def long_run() -> ConfigDict:
    """Storage and reports of runs of days."""
    return ConfigDict(
        {
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 20, "sample_every": 1000},
        }
    )
