"""Visual ids of a fixed list of images, computed once by a frozen tokenizer.

Legend: M images, N patches, L longest kept list.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, Int64, UInt8

from lavit_jax import disk
from lavit_jax.errors import UserError


class VisualIds(Protocol):
    """Codes and kept patches of images, wherever they are held."""

    @property
    def patches(self) -> int:
        """N."""

    def __len__(self) -> int: ...

    def key(self, image: int) -> str:
        """The key of the example that an image's ids were made of; "" where it is not stored."""

    def codes(self, image: int) -> Int[np.ndarray, "L"]:
        """The codes of one image."""

    def keep(self, image: int) -> UInt8[np.ndarray, "N"]:
        """1 for each patch of one image that is kept."""


@dataclasses.dataclass(frozen=True)
class VisualIdCache:
    """Codes and kept patches of M images.

    Attributes:
      codes_ML: each image's codes in raster order of its kept patches, left-aligned; what
        follows them means nothing.
      keep_MN: 1 for each kept patch.
      stamp: names what made it, so that another tokenizer's is not used.
      keys: of the examples that the images are of; none where they are not known.
    """

    codes_ML: Int[np.ndarray, "M L"]
    keep_MN: UInt8[np.ndarray, "M N"]
    stamp: str = ""
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        codes, keep = np.asarray(self.codes_ML), np.asarray(self.keep_MN, np.uint8)
        if codes.ndim != 2 or keep.ndim != 2 or len(codes) != len(keep):
            raise ValueError(
                f"expected codes [M, L] and keep [M, N], got {codes.shape}, {keep.shape}"
            )
        if self.keys and len(self.keys) != len(keep):
            raise ValueError(f"expected a key for each of {len(keep)} images, got {len(self.keys)}")
        if len(keep) and keep.max() > 1:
            raise ValueError(f"keep must be 0 or 1, got {keep.max()}")
        if codes.dtype != np.uint16 and len(codes) and 0 <= codes.min() <= codes.max() < 2**16:
            codes = codes.astype(np.uint16)
        object.__setattr__(self, "codes_ML", codes)
        object.__setattr__(self, "keep_MN", keep)
        counts = keep.sum(axis=1, dtype=np.int64)
        if len(counts) and counts.max() > codes.shape[1]:
            raise ValueError(
                f"an image keeps {counts.max()} patches but has {codes.shape[1]} codes"
            )
        object.__setattr__(self, "_counts_M", counts)

    @property
    def counts_M(self) -> Int64[np.ndarray, "M"]:
        """Kept patches of each image."""
        return self._counts_M  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.keep_MN)

    def key(self, image: int) -> str:
        """The key of the example that an image is of; "" where it is not known."""
        return self.keys[image] if self.keys else ""

    def codes(self, image: int) -> Int[np.ndarray, "L"]:
        """The codes of one image."""
        return self.codes_ML[image, : self.counts_M[image]]

    def keep(self, image: int) -> UInt8[np.ndarray, "N"]:
        """1 for each patch of one image that is kept."""
        return self.keep_MN[image]

    @property
    def patches(self) -> int:
        """N."""
        return self.keep_MN.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the cache in one move."""
        with disk.replacing(Path(path)) as aside, aside.open("wb") as file:
            # Bytes: numpy's texts lose what looks like padding at their ends.
            keys = np.frombuffer(json.dumps(self.keys).encode(), np.uint8)
            stamp = np.array(self.stamp)
            np.savez(file, codes=self.codes_ML, keep=self.keep_MN, stamp=stamp, keys=keys)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VisualIdCache:
        """Reads a cache.

        Raises:
          UserError: no such file, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"visual ids not found: {path}")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys = json.loads(arrays["keys"].tobytes()) if "keys" in arrays else ()
                return cls(arrays["codes"], arrays["keep"], str(arrays["stamp"]), tuple(keys))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"visual ids are damaged: delete {path} to make them anew") from error
