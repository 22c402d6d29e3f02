"""Parquet files with images in a column, as img2dataset and many data sets on the web have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from lavit_jax.data.sources import base, files
from lavit_jax.data.sources.base import NOT_DOWNLOADED, Broken, FileSource, Options, Part, Raw
from lavit_jax.errors import UserError

SUFFIXES = (".parquet",)
ROWS = 64  # read at a time


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet needs pyarrow: pip install 'lavit_jax[parquet]'") from error
    return pyarrow


# What pyarrow raises on damaged files: its own errors are these by inheritance.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError)


class ParquetSource(FileSource):
    """One part for each row group."""

    suffixes = SUFFIXES

    def __init__(self, spec: str, options: Options) -> None:
        super().__init__(spec, options)
        self._arrow = _pyarrow()

    def parts(self) -> list[Part]:
        """The row groups; a file that cannot be opened is one part, and says so when read."""
        found = []
        for url in files.expand(self._spec, SUFFIXES):
            size, fingerprint = files.size_of(url)
            try:
                with files.open_file(url) as file:
                    facts = self._arrow.parquet.ParquetFile(
                        file, page_checksum_verification=True
                    ).metadata
                    groups = [
                        facts.row_group(g).total_byte_size for g in range(facts.num_row_groups)
                    ]
            except UserError:
                raise
            except _DAMAGE:
                found.append(Part(url, size=size, fingerprint=fingerprint))
                continue
            found += [Part(url, g, g + 1, n, fingerprint) for g, n in enumerate(groups)]
        return found

    def read(self, part: Part) -> Iterator[Raw | Broken]:
        """The rows of a row group."""
        left: int | None = None
        try:
            with files.open_file(part.place) as file:
                table = self._arrow.parquet.ParquetFile(file, page_checksum_verification=True)
                left = table.metadata.row_group(part.start).num_rows
                for item in self._rows(table, part):
                    yield item
                    left -= 1
        except UserError:
            raise
        except _DAMAGE as error:
            told = f"row group {part.start}: {error}"[:200]
            count = self._usual_rows() if left is None else left
            yield Broken("corrupt shard", part.place, told, max(1, count))

    def _usual_rows(self) -> int:
        """Rows of the first file that can be opened: as many as in one that cannot be, about."""
        for url in files.expand(self._spec, SUFFIXES):
            try:
                with files.open_file(url) as file:
                    return self._arrow.parquet.ParquetFile(file).metadata.num_rows
            except UserError:
                raise
            except _DAMAGE:
                continue
        return 1

    def _rows(self, table: Any, part: Part) -> Iterator[Raw | Broken]:
        names = table.schema_arrow.names
        image = base.find_field(names, self._options.image_field, base.IMAGE_FIELDS)
        caption = base.find_field(names, self._options.caption_field, base.CAPTION_FIELDS)
        key = base.find_field(names, "", base.KEY_FIELDS)
        if caption is None:
            raise UserError(
                f"{part.place}: no column of captions or text among {', '.join(names)}: name it "
                "with --caption-field"
            )
        if self._options.image_field and image is None:
            raise UserError(f"{part.place}: no column {self._options.image_field!r}")
        columns = [name for name in {image, caption, key, "status"} if name in names]
        before = sum(table.metadata.row_group(g).num_rows for g in range(part.start))
        stem = PurePosixPath(part.place).stem
        batches = table.iter_batches(ROWS, row_groups=[part.start], columns=columns)
        for batch in batches:
            for number, row in enumerate(self._bytes(batch).to_pylist(), start=before):
                origin = f"{part.place}:row {number}"
                name = row.get(key) if key else None
                shown = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
                yield _example(row, image, caption, str(shown or f"{stem}-{number:08d}"), origin)
            before += len(batch)

    def _bytes(self, batch: Any) -> Any:
        """Text as bytes, so that one caption that is not UTF-8 does not spoil the others."""
        arrow, types = self._arrow, self._arrow.types

        def plain(column: Any) -> Any:
            if types.is_string(column.type):
                return column.cast(arrow.binary())
            return (
                column.cast(arrow.large_binary()) if types.is_large_string(column.type) else column
            )

        columns = [plain(column) for column in batch.columns]
        return arrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _example(
    row: dict[str, Any], image: str | None, caption: str, key: str, origin: str
) -> Raw | Broken:
    status = row.get("status", b"success")
    if status not in (b"success", "success"):
        return Broken(NOT_DOWNLOADED, origin, str(status))
    captions = base.texts(row[caption])
    if image is None:
        return Raw(key, origin, None, captions)
    content = row[image]
    if isinstance(content, dict):  # as Hugging Face's data sets have it
        content = content.get("bytes")
    if not isinstance(content, bytes):
        return Broken("no image", origin)
    return Raw(key, origin, content, captions)
