"""What the large experiments share: presets of TPU pods, and fields of long runs."""

from ml_collections import ConfigDict

# Slices of each preset. All of them split parameters and optimizer state over the chips of a slice
# (`fsdp`) and copy them to each slice.
PRESETS = {"v4-128": 1, "v5e-256": 1, "v5p-128": 1, "v6e-256": 1, "v5p-128x2": 2}


def slices(preset: str) -> int:
    """Slices of a preset.

    Raises:
      ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"arg must be one of {', '.join(PRESETS)}, got {preset!r}")
    return PRESETS[preset]


def mesh(preset: str) -> ConfigDict:
    """How a preset's chips are arranged."""
    return ConfigDict({"slice": slices(preset), "data": 1, "fsdp": -1, "sequence": 1, "tensor": 1})


def long_run() -> ConfigDict:
    """Storage and reports of runs of days."""
    return ConfigDict(
        {
            "checkpoint": {"every": 1000, "keep": 3},
            "log": {"every": 20, "sample_every": 1000},
        }
    )
