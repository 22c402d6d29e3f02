"""Sources of examples behind one interface; `open_source` finds the kind of what it is given."""

from __future__ import annotations

from collections.abc import Callable

from lavit_jax.data.sources import files
from lavit_jax.data.sources.array_records import SUFFIXES as ARRAY_RECORD
from lavit_jax.data.sources.array_records import ArrayRecordSource
from lavit_jax.data.sources.base import Broken, Options, Part, Raw, Source
from lavit_jax.data.sources.json_lines import SUFFIXES as JSON_LINES
from lavit_jax.data.sources.json_lines import JsonLinesSource
from lavit_jax.data.sources.parquet import SUFFIXES as PARQUET
from lavit_jax.data.sources.parquet import ParquetSource
from lavit_jax.data.sources.plain_text import SUFFIXES as PLAIN_TEXT
from lavit_jax.data.sources.plain_text import PlainTextSource
from lavit_jax.data.sources.tar import SUFFIXES as TAR
from lavit_jax.data.sources.tar import TarSource
from lavit_jax.data.sources.tfds import TfdsSource
from lavit_jax.errors import UserError

__all__ = ["Broken", "Options", "Part", "Raw", "Source", "open_source"]

# In the order they are looked for in a folder: img2dataset puts parquet files of what it did
# beside its tars, and text files may be anything.
KINDS: tuple[tuple[tuple[str, ...], Callable[[str, Options], Source]], ...] = (
    (TAR, TarSource),
    (ARRAY_RECORD, ArrayRecordSource),
    (PARQUET, ParquetSource),
    (JSON_LINES, JsonLinesSource),
    (PLAIN_TEXT, PlainTextSource),
)


def open_source(spec: str, options: Options | None = None) -> Source:
    """Opens a source by what it is.

    Args:
      spec: a file, folder, glob or range in braces, local or a URL that fsspec knows; or a TFDS
        data set, by name or as `package.module:Builder`.
      options: how to read it.

    Raises:
      UserError: nothing there that can be read.
    """
    options = options or Options()
    for suffixes, make in KINDS:
        if spec.endswith(suffixes):
            return make(spec, options)
    if _is_place(spec):
        for suffixes, make in KINDS:
            try:
                files.expand(spec, suffixes)
            except files.Unreadable:
                raise
            except UserError:  # none of this kind
                continue
            return make(spec, options)
        known = ", ".join(suffix for suffixes, _ in KINDS for suffix in suffixes)
        raise UserError(f"{spec} has no files of a known kind ({known})")
    if "://" in spec or spec.startswith(("/", ".")):
        raise UserError(f"no such file or folder: {spec}")
    return TfdsSource(spec, options)


def _is_place(spec: str) -> bool:
    if any(sign in spec for sign in "*?[{"):
        return True
    if ":" in spec and "://" not in spec:
        return False
    fs, path = files.filesystem(spec)
    with files.reading(spec):
        return fs.exists(path)
