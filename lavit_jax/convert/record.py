"""`model.json` of a converted checkpoint: its sizes, and what the source was like."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lavit_jax.convert.infer import Conditions, Sizes
from lavit_jax.convert.pixel_infer import PixelParts
from lavit_jax.convert.read import Info
from lavit_jax.convert.store import ArrayInfo
from lavit_jax.errors import UserError
from lavit_jax.models.config import (
    DecoderConfig,
    EncoderConfig,
    LavitConfig,
    LlamaConfig,
    MergerConfig,
    PixelHeadConfig,
    QuantizerConfig,
    SelectorConfig,
    TextTowerConfig,
)
from lavit_jax.models.pixel_config import (
    AutoencoderConfig,
    NoiseConfig,
    PixelConfig,
    UNetConfig,
)

FILE = "model.json"
FORMAT = 1
_SECTIONS: dict[str, Any] = {
    "encoder": EncoderConfig,
    "selector": SelectorConfig,
    "merger": MergerConfig,
    "quantizer": QuantizerConfig,
    "decoder": DecoderConfig,
    "pixel_head": PixelHeadConfig,
    "text_tower": TextTowerConfig,
    "llm": LlamaConfig,
}


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Tensors of a component as they were in the source (`read.Named`)."""

    infos: dict[str, Info]

    def files(self) -> dict[Path, dict[str, Info]]:
        """The same by file."""
        found: dict[Path, dict[str, Info]] = {}
        for name, info in self.infos.items():
            found.setdefault(info.file, {})[name] = info
        return found


@dataclasses.dataclass(frozen=True)
class Record:
    """What a converted checkpoint says about itself.

    Attributes:
      sizes: of everything.
      dtype: of the parameters; selector, quantizer and codebook stay float32.
      llm_dir: folder of the language model in the source.
      parts: modules by part.
      arrays: of ours, by path.
      sources: tensors of the source by component: mapped ones and others, in reading order. The
        `file` of each is relative to the source.
      left: tensors that are not parameters of ours, by component; kept beside the parameters.
      absent: optional tensors that the release leaves out, as "file: name".
      carried: files of the source kept as they are.
    """

    sizes: Sizes
    dtype: str
    llm_dir: str
    parts: dict[str, list[str]]
    arrays: dict[str, ArrayInfo]
    sources: dict[str, Recorded]
    left: dict[str, list[str]]
    absent: list[str]
    carried: list[str]


def to_json(record: Record) -> dict[str, Any]:
    """A JSON document of the record."""
    return {
        "format": FORMAT,
        "dtype": record.dtype,
        "llm_dir": record.llm_dir,
        "config": dataclasses.asdict(record.sizes.config),
        "conditions": dataclasses.asdict(record.sizes.conditions),
        "tied": record.sizes.tied,
        "text_only": record.sizes.text_only,
        "encoder_prefix": record.sizes.encoder_prefix,
        "pixels": {kind: dataclasses.asdict(p) for kind, p in record.sizes.pixels.items()},
        "parts": record.parts,
        "arrays": {path: list(array) for path, array in record.arrays.items()},
        "sources": {
            component: {
                file.as_posix(): {name: [info.shape, info.dtype] for name, info in infos.items()}
                for file, infos in recorded.files().items()
            }
            for component, recorded in record.sources.items()
        },
        "left": record.left,
        "absent": record.absent,
        "carried": record.carried,
    }


def from_json(document: Mapping[str, Any]) -> Record:
    """The record of a JSON document."""
    config = LavitConfig(**{k: cls(**document["config"][k]) for k, cls in _SECTIONS.items()})
    sizes = Sizes(
        config,
        _conditions(document["conditions"]),
        document["tied"],
        document["text_only"],
        document["encoder_prefix"],
        {kind: _pixel_parts(stored) for kind, stored in document["pixels"].items()},
    )
    sources = {
        component: Recorded(
            {
                name: Info(tuple(shape), dtype, Path(_inside(file)))
                for file, tensors in files.items()
                for name, (shape, dtype) in tensors.items()
            }
        )
        for component, files in document["sources"].items()
    }
    return Record(
        sizes,
        document["dtype"],
        _below(document["llm_dir"]),
        document["parts"],
        {path: ArrayInfo(tuple(s), dtype) for path, (s, dtype) in document["arrays"].items()},
        sources,
        document["left"],
        document["absent"],
        [_inside(file) for file in document["carried"]],
    )


def _below(name: str) -> str:
    """The name of something in a checkpoint, or of the checkpoint's own folder.

    Files are written and copied by these names: none may lead elsewhere.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is outside of the checkpoint")
    return name


def _inside(name: str) -> str:
    """The name of a file in a checkpoint."""
    if not PurePosixPath(_below(name)).parts:
        raise ValueError(f"{name!r} is no file's name")
    return name


def _conditions(stored: Mapping[str, Any]) -> Conditions:
    highres, decoder = stored["highres"], stored["highres_decoder"]
    return Conditions(
        stored["lowres"],
        tuple(highres) if highres else None,
        stored["pool_heads"],
        DecoderConfig(**decoder) if decoder else None,
    )


def _pixel_parts(stored: Mapping[str, Any]) -> PixelParts:
    config = stored["config"]

    def part(cls: Any, name: str) -> Any:
        # JSON has lists where sizes have tuples.
        fields = config[name].items()
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields})

    built = {
        "unet": part(UNetConfig, "unet"),
        "noise": part(NoiseConfig, "noise"),
        "autoencoder": part(AutoencoderConfig, "autoencoder"),
    }
    return PixelParts(
        PixelConfig(**{**config, **built}), stored["old_attention"], stored["wide_attention"]
    )


def save(directory: Path, record: Record) -> None:
    """Writes `model.json`."""
    (directory / FILE).write_text(json.dumps(to_json(record), indent=1) + "\n", encoding="utf-8")


def load(directory: Any) -> Record:
    """Reads `model.json` of a local or remote folder.

    Raises:
      UserError: it is missing, damaged, or of another version.
    """
    path = directory / FILE
    if not path.exists():
        raise UserError(f"{path}: no such file, expected a folder made by `lavit convert`")
    try:
        document = json.loads(path.read_text())
        known = document["format"]
        if known == FORMAT:
            return from_json(document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: truncated or not a converted model's ({what})") from error
    raise UserError(f"{path}: has format {known!r}, expected {FORMAT}")
