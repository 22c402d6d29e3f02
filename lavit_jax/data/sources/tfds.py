"""Data sets of TensorFlow Datasets, read through their data sources, without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import Broken, Options, Part, Raw
from lavit_jax.errors import UserError

PART_RECORDS = 1000


class TfdsSource:
    """Parts are ranges of a split's records."""

    def __init__(self, spec: str, options: Options) -> None:
        self._spec, self._options = spec, options
        self._opened: Any = None

    def parts(self) -> list[Part]:
        """Ranges of `PART_RECORDS`."""
        builder, records = self._open()
        split = self._options.split
        each = builder.info.splits[split].num_bytes // max(1, len(records))
        mark = self.fingerprint(split)
        return [
            Part(split, start, stop, each * (stop - start), mark)
            for start in range(0, len(records), PART_RECORDS)
            for stop in [min(start + PART_RECORDS, len(records))]
        ]

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The records of a range."""
        builder, records = self._open()
        fields = _Fields(builder.info.features, self._options, self._spec)
        for number in range(part.start, part.stop):
            origin = f"{self._spec}:{part.place}:record {number}"
            try:
                row = records[number]
            except (RuntimeError, ValueError) as error:
                files.check_damage(error, origin)
                yield Broken("corrupt record", origin, str(error)[:200])
                continue
            yield fields.example(row, origin, f"{part.place}-{number:08d}")

    def fingerprint(self, place: str) -> str:
        """The data set's version and size."""
        builder, records = self._open()
        return f"{builder.info.full_name}-{len(records)}"

    def files(self) -> dict[str, str]:
        """None: TFDS would download the data set again to tell."""
        return {}

    def _open(self) -> Any:
        if self._opened is None:
            self._opened = _open(self._spec, self._options)
        return self._opened


def _open(spec: str, options: Options) -> tuple[Any, Any]:
    import tensorflow_datasets as tfds

    where = {"data_dir": options.data_dir} if options.data_dir else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if ":" in spec:
                builder = _imported(spec)(**where)
            else:
                builder = tfds.builder(spec, try_gcs=False, **where)
            if not (builder.data_path / "dataset_info.json").exists():
                builder.download_and_prepare(file_format="array_record")
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever a builder may raise: none of it is ours
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # Some of TFDS's own builders, coco_captions among them, are written with TensorFlow.
        cure = "; `pip install tensorflow` to prepare it" if "tensorflow" in reason.lower() else ""
        raise UserError(f"{spec}: TFDS cannot prepare it: {reason[:400]}{cure}") from error
    if options.split not in builder.info.splits:
        have = ", ".join(builder.info.splits)
        raise UserError(f"{spec} has no split {options.split!r}: choose --split from {have}")
    pictures = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    try:
        return builder, builder.as_data_source(options.split, decoders=pictures)
    except NotImplementedError as error:
        raise UserError(
            f"{spec} in {builder.data_path} is stored in a format without random access: "
            "prepare it as array_record"
        ) from error


def _imported(spec: str) -> Any:
    """The builder class of `package.module:Builder`."""
    module, _, name = spec.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"no TFDS builder {spec}: {error}") from error


class _Fields:
    """Which features of a record are its image, captions and key."""

    def __init__(self, features: Any, options: Options, spec: str) -> None:
        import tensorflow_datasets as tfds

        names = list(features)
        pictures = [n for n in names if isinstance(features[n], tfds.features.Image)]
        self._image = base.find_field(
            pictures, options.image_field, (*base.IMAGE_FIELDS, *pictures)
        )
        self._caption = base.find_field(names, options.caption_field, base.CAPTION_FIELDS)
        self._key = base.find_field(names, "", ("key", "image/id", "image/filename", "id"))
        self._labels = next(
            (n for n in names if isinstance(features[n], tfds.features.ClassLabel)), None
        )
        if self._caption is None and self._labels is None:
            raise UserError(
                f"{spec}: no feature with captions or text among {', '.join(names)}: name it with "
                "--caption-field"
            )
        self._features = features

    def example(self, row: dict[str, Any], origin: str, key: str) -> Raw:
        if self._key:
            key = _shown(row[self._key])
        captions: tuple[str | bytes, ...] = ()
        if self._caption:
            captions = _texts(row[self._caption])
        elif self._labels:
            captions = (self._features[self._labels].int2str(int(row[self._labels])),)
        image = _encoded(row[self._image]) if self._image else None
        questions, answers = _texts(row.get("questions")), _texts(row.get("answers"))
        return Raw(key, origin, image, captions, questions, answers)


def _shown(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _texts(value: Any) -> tuple[str | bytes, ...]:
    """Texts of a feature: arrays of objects, and a dictionary of them for a sequence of groups."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        value = {
            name: item.tolist() if hasattr(item, "tolist") else item for name, item in value.items()
        }
    return base.texts(value)


def _encoded(value: Any) -> bytes:
    """The bytes of an image file; of a builder that has arrays only, as PNG."""
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    array = np.asarray(value)
    Image.fromarray(array[..., 0] if array.shape[-1:] == (1,) else array).save(buffer, "PNG")
    return buffer.getvalue()
