"""Reads tensors by name from `.safetensors` and torch `.bin` files, whole or in shards.

Nothing is read before it is asked for; of several shards only one is open at a time, and whoever
has read what there is closes a file, which frees its memory, mapped pages included. A torch
file is opened with `weights_only=True`: it can hold tensors, never code.
"""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from lavit_jax.errors import UserError

FLOATS = ("float32", "float16", "bfloat16", "float64")
# Some releases wrap the tensors in one of these.
WRAPPERS = ("state_dict", "model", "module")
SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
DIFFUSERS_STEM = "diffusion_pytorch_model"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
BARE = "tensor"  # what a torch file's only tensor is called, which has no name there
SAFETENSORS_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
# What torch says of a pickle that holds more than tensors; its advice how to run it is left out.
_REFUSAL = re.compile(
    r"[Uu]nsupported (?:operand|class|GLOBAL|global: GLOBAL) \S+|(?:Can only|Only) [^\n.]+"
)


class Info(NamedTuple):
    """What a file says about a tensor before its numbers are read."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


class Named(Protocol):
    """Tensors of which names, shapes and dtypes are known."""

    @property
    def infos(self) -> dict[str, Info]:
        """Shape and dtype of every tensor, in the order in which they are best read."""
        ...


class Tensors(Named, Protocol):
    """Named tensors of one file or of several shards."""

    path: Path

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype of the file (bfloat16 as ml_dtypes has it)."""
        ...

    def close(self) -> None:
        """Frees what the file holds in memory; `read` opens it again."""
        ...


def items(tensors: Tensors, names: set[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors in reading order; of `names` only, where given."""
    for name in tensors.infos:
        if names is None or name in names:
            yield name, tensors.read(name)


def open_file(path: Path) -> Tensors:
    """Looks into one `.safetensors` or torch file, which is closed again until it is read.

    Raises:
      FileNotFoundError: no such file.
      UserError: truncated, no file of tensors, or one that holds code.
    """
    tensors = _opened(path)
    tensors.close()
    return tensors


def _opened(path: Path) -> Tensors:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def open_folder(folder: Path) -> Tensors:
    """Opens the weights of a language model: single or sharded, safetensors before torch.

    `visual_weight.*` beside them is another module's.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for index in (SAFETENSORS_INDEX, TORCH_INDEX):
        if (folder / index).is_file():
            return Shards.from_index(folder / index)
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(f for f in folder.glob(pattern) if not f.stem.startswith("visual_weight"))
        if len(files) == 1:
            return open_file(files[0])
        if files:
            return Shards.from_files(folder, files)
    raise FileNotFoundError(f"{folder}: no *.safetensors and no pytorch_model*.bin in it")


def open_plain_folder(folder: Path) -> Tensors:
    """Opens a folder of one module: as a language model's, else its only torch file.

    Raises:
      FileNotFoundError: no weights.
      UserError: several files, none of which is a language model's.
    """
    try:
        return open_folder(folder)
    except FileNotFoundError:
        files = sorted(path for path in folder.iterdir() if path.suffix in TORCH_SUFFIXES)
        if not files:
            raise
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise UserError(f"{folder}: holds {names}, expected one file; give it in SRC's place")
    return open_file(files[0])


def weights(stem: Path) -> Path:
    """`stem.safetensors` where there is one, else `stem.bin`, there or not."""
    safetensors = stem.with_suffix(".safetensors")
    return safetensors if safetensors.is_file() else stem.with_suffix(".bin")


def open_model(folder: Path) -> Tensors:
    """Opens the weights of a diffusers model: single or sharded, safetensors before torch."""
    stem = folder / DIFFUSERS_STEM
    for suffix in (".safetensors.index.json", ".bin.index.json"):
        index = stem.with_suffix(suffix)
        if index.is_file():
            return Shards.from_index(index)
    return open_file(weights(stem))


class SafetensorsFile:
    """A `.safetensors` file; its header tells every shape, its numbers are mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError

        self.path = path
        try:
            file = self._opened = self._open()
            slices = {name: file.get_slice(name) for name in list(file.keys())}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: truncated or not a safetensors file ({_first_line(error)})"
            ) from error
        self._infos = {
            name: Info(tuple(s.get_shape()), _dtype_name(s.get_dtype()), path)
            for name, s in slices.items()
        }

    @property
    def infos(self) -> dict[str, Info]:
        return self._infos

    def read(self, name: str) -> np.ndarray:
        if self._opened is None:
            self._opened = self._open()
        return self._opened.get_tensor(name)

    def close(self) -> None:
        self._opened = None

    def _open(self) -> Any:
        from safetensors import safe_open

        return safe_open(str(self.path), framework="np")


def _dtype_name(safetensors_dtype: str) -> str:
    return SAFETENSORS_DTYPES.get(safetensors_dtype, safetensors_dtype)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class TorchFile:
    """A torch file of named tensors, mapped where its format allows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tensors = self._content(load_torch(path))
        self._opened: dict[str, Any] | None = tensors
        self._infos = {
            name: Info(tuple(t.shape), str(t.dtype).removeprefix("torch."), path)
            for name, t in tensors.items()
        }

    @property
    def infos(self) -> dict[str, Info]:
        return self._infos

    def read(self, name: str) -> np.ndarray:
        if self._opened is None:
            self._opened = self._content(load_torch(self.path))
        return to_numpy(self._opened[name])

    def close(self) -> None:
        self._opened = None

    def _content(self, content: Any) -> dict[str, Any]:
        return _named_tensors(self.path, content)


class BareTorchFile(TorchFile):
    """A torch file that may hold one tensor without a name; it is called `BARE`."""

    def _content(self, content: Any) -> dict[str, Any]:
        bare = hasattr(content, "untyped_storage")
        return {BARE: content} if bare else super()._content(content)


def load_torch(path: Path) -> Any:
    """What a torch file holds, read with `weights_only=True`.

    Raises:
      UserError: torch is not installed; the file is truncated, or asks for code to be run.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading torch files needs torch; pip install 'lavit_jax[convert]'"
        ) from error
    try:
        return torch.load(
            str(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # a damaged pickle can raise anything
        refused = _REFUSAL.search(str(error))
        if refused:
            raise UserError(
                f"{path}: refused, it may hold tensors only ({refused.group()})"
            ) from error
        why = str(error).partition(". ")[0].strip() or type(error).__name__
        raise UserError(f"{path}: truncated or not a torch file ({why})") from error


def _named_tensors(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected named tensors")
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            beside = [name for name, value in content.items() if name != key and _tensors_in(value)]
            if beside:
                raise UserError(
                    f"{path}: holds tensors in {key!r} and in {beside[0]!r}, expected one of them"
                )
            content = content[key]
    for name, value in content.items():
        if not hasattr(value, "untyped_storage"):
            raise UserError(
                f"{path}: {name!r} is a {type(value).__name__}, expected named tensors only"
            )
    return content


def _tensors_in(value: Any) -> bool:
    """Whether something that was pickled holds tensors, at any depth."""
    if isinstance(value, dict):
        return any(map(_tensors_in, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_tensors_in, value))
    return hasattr(value, "untyped_storage")


def to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor as numpy without a copy, bfloat16 included."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class Shards:
    """Tensors spread over several files, of which one is open at a time."""

    def __init__(self, path: Path, infos: dict[str, Info]) -> None:
        self.path = path
        self._infos = infos
        self._opened: Tensors | None = None

    @classmethod
    def from_index(cls, index: Path) -> Shards:
        """By an index that tells which file holds which tensor."""
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise UserError(f"{index}: no 'weight_map', expected tensor name to file name")
        for name, file in where.items():
            if not isinstance(file, str) or file in ("", "..") or file != Path(file).name:
                raise UserError(f"{index}: {name!r} is in {file!r}, expected a file beside it")
        shards = cls.from_files(
            index, [index.parent / file for file in sorted(set(where.values()))]
        )
        absent = sorted(
            name
            for name, file in where.items()
            if name not in shards.infos or shards.infos[name].file.name != file
        )
        if absent:
            told = where[absent[0]]
            raise UserError(f"{index}: says that {told} holds {absent[0]!r}, but it does not")
        return shards

    @classmethod
    def from_files(cls, path: Path, files: list[Path]) -> Shards:
        """By looking into every file."""
        infos: dict[str, Info] = {}
        for file in files:
            for name, info in open_file(file).infos.items():
                if name in infos:
                    raise UserError(f"{file}: {name!r} is in {infos[name].file.name} already")
                infos[name] = info
        return cls(path, infos)

    @property
    def infos(self) -> dict[str, Info]:
        return self._infos

    def read(self, name: str) -> np.ndarray:
        file = self._infos[name].file
        if self._opened is None or self._opened.path != file:
            self._opened = None  # before the next is opened
            self._opened = _opened(file)
        return self._opened.read(name)

    def close(self) -> None:
        self._opened = None


@contextlib.contextmanager
def reading_values(path: Path) -> Iterator[None]:
    """What goes wrong with a config's values is told with its file.

    Raises:
      UserError: a value of another kind than expected.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{path}: has a value that cannot be used ({_first_line(error)})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      FileNotFoundError: no such file.
      UserError: not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: truncated or not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content
