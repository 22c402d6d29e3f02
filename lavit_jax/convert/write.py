"""Writes named tensors to `.safetensors` and torch `.bin` files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from lavit_jax.convert.read import BARE, SAFETENSORS_DTYPES, Info
from lavit_jax.convert.store import numpy_dtype
from lavit_jax.errors import UserError

Read = Callable[[str], np.ndarray]


def write_safetensors(path: Path, infos: Mapping[str, Info], read: Read) -> None:
    """Writes tensors one by one, in the given order; only one is in memory at a time."""
    kinds = {name: kind for kind, name in SAFETENSORS_DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in infos.items():
        size = numpy_dtype(info.dtype).itemsize * int(np.prod(info.shape, dtype=np.int64))
        header[name] = {
            "dtype": kinds[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, info in infos.items():
            tensor = np.asarray(read(name), numpy_dtype(info.dtype), order="C")
            file.write(tensor.reshape(-1).view(np.uint8).data)


def write_torch(path: Path, infos: Mapping[str, Info], read: Read) -> None:
    """Writes a torch file, which has to be in memory as a whole.

    Raises:
      UserError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.name}: writing torch files needs torch; pip install 'lavit_jax[convert]'"
        ) from error
    tensors = {}
    for name, info in infos.items():
        array = np.asarray(read(name), numpy_dtype(info.dtype), order="C")
        if array.dtype == ml_dtypes.bfloat16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    with path.open("wb") as file:  # ours: torch's own says nothing of a disk that is full
        torch.save(tensors[BARE] if list(tensors) == [BARE] else tensors, file)
