"""Visual ids of a whole prepared data set, as `lavit tokenize-dataset` writes them.

Legend: N patches, L kept ones.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np
from jaxtyping import Int, UInt8

from lavit_jax.data.prepared import ShardReader, has_index, read_index
from lavit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stamp:
    """All that decides an image's ids; with another stamp they are another's.

    Attributes:
      weights: a hash of the tokenizer's.
      preprocessing: how an image becomes the encoder's input.
      selection: how patches are chosen.
    """

    weights: str
    preprocessing: str
    selection: str

    def check(self, stored: Any, folder: str | os.PathLike[str]) -> None:
        """Refuses ids with another stamp.

        Raises:
          UserError: it differs; says in what.
        """
        wanted = dataclasses.asdict(self)
        found = stored if isinstance(stored, dict) else {}
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            shown = "; ".join(
                f"{name}: {str(found.get(name))[:40]} there, {wanted[name][:40]} here"
                for name in differing
            )
            raise UserError(
                f"the visual ids in {folder} are of another tokenizer: {shown}: run "
                "`lavit tokenize-dataset` anew"
            )


class Tokens(NamedTuple):
    """One image's ids.

    Attributes:
      codes_L: of its kept patches in raster order.
      keep_N: 1 for each kept patch.
      key: of the example they were made of.
    """

    codes_L: Int[np.ndarray, "L"]
    keep_N: UInt8[np.ndarray, "N"]
    key: str = ""


class LostIds(ValueError):
    """Ids that cannot be read any more."""


def encode(key: str, tokens: Tokens) -> bytes:
    """The bytes of one image's ids."""
    return msgpack.packb(
        {
            "key": key,
            "patches": len(tokens.keep_N),
            "keep": np.packbits(tokens.keep_N).tobytes(),
            "codes": tokens.codes_L.astype("<u2").tobytes(),
        }
    )


def decode(data: bytes) -> Tokens:
    """One image's ids from their bytes.

    Raises:
      LostIds: they are not of `encode`.
    """
    try:
        stored = msgpack.unpackb(data)
        bits = np.frombuffer(stored["keep"], np.uint8)
        keep_N = np.unpackbits(bits, count=stored["patches"])
        codes_L = np.frombuffer(stored["codes"], "<u2").astype(np.uint16)
        key = str(stored["key"])
    except (msgpack.exceptions.UnpackException, ValueError, KeyError, TypeError) as error:
        raise LostIds(str(error)) from error
    if len(codes_L) != keep_N.sum():
        raise LostIds(f"{len(codes_L)} codes of {keep_N.sum()} kept patches")
    return Tokens(codes_L, keep_N, key)


class StoredIds(Sequence[Tokens]):
    """The ids of a folder; the i-th are those of the data set's i-th example."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        stamp: Stamp,
        examples: int,
        here: Callable[[str], str] = str,
    ) -> None:
        """Opens a folder.

        Args:
          folder: that `lavit tokenize-dataset` wrote.
          stamp: that it must have.
          examples: how many the data set has.
          here: where the folder's shards are on this machine; asked once all else fits.

        Raises:
          UserError: no such folder, not finished, or with another stamp or of another data set.
        """
        if not has_index(folder):
            raise UserError(
                f"{folder} has no visual ids, or not all yet: run `lavit tokenize-dataset DATA "
                f"{folder} --checkpoint WORKDIR`, then this again"
            )
        index = read_index(folder)
        stamp.check(index.get("stamp"), folder)
        if index["examples"] != examples:
            raise UserError(
                f"the visual ids in {folder} are of {index['examples']} examples, the data set has "
                f"{examples}"
            )
        self._patches = int(index["patches"])
        self._shards = ShardReader(here(str(folder)), index["shards"])

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        try:
            return decode(self._shards.read(index))
        except (RuntimeError, OSError) as error:
            raise LostIds(f"{self._shards.origin(index)}: {error}"[:200]) from error

    @property
    def patches(self) -> int:
        return self._patches


class IdsOf:
    """Stored ids, or some of them in another order, as `VisualIds`."""

    def __init__(self, tokens: Sequence[Tokens], patches: int) -> None:
        self._tokens, self._patches = tokens, patches

    @property
    def patches(self) -> int:
        return self._patches

    def __len__(self) -> int:
        return len(self._tokens)

    def key(self, image: int) -> str:
        return self._tokens[image].key

    def codes(self, image: int) -> np.ndarray:
        return self._tokens[image].codes_L

    def keep(self, image: int) -> np.ndarray:
        return self._tokens[image].keep_N
