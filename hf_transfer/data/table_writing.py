"""Predicted rows written behind those of a table, a chunk at a time."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from hf_transfer.data.tables import SEPARATORS, Chunk, Outline
from hf_transfer.disk import atomic_file
from hf_transfer.errors import DataError, first_line

DIGITS = 6
"""Of a number we add to a CSV or JSONL file, behind the point."""


@contextmanager
def table_writer(path: Path, source: Outline, added: pa.Schema) -> Iterator[Callable[[Chunk, pa.Table], None]]:
    """Lend a function that writes a chunk with its added columns behind its own; the file is there, whole, when the block ends well.

    Args:
        path: CSV, TSV, JSONL or Parquet file to write.
        source: The table that the chunks come from.
        added: The columns that are added.

    Raises:
        DataError: The file cannot be written, or a value has no form in it.
    """
    suffix = path.suffix.lower()
    try:
        with atomic_file(path) as temporary, ExitStack() as stack:
            if suffix == ".parquet":
                assert source.schema is not None
                schema = _with_columns(source.schema, added)
                parquet = stack.enter_context(_parquet_writer(temporary, schema))
                yield lambda chunk, more: parquet.write_table(_joined(chunk, more, schema))
            else:
                file = stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))
                if suffix == ".jsonl":
                    yield lambda chunk, more: _write_json(file, chunk, more)
                else:
                    separator = SEPARATORS[suffix]
                    _write_cells(file, [[*source.columns, *added.names]], separator)
                    yield lambda chunk, more: _write_cells(file, _cells(chunk, more, source.columns), separator)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; no part of it was kept: make room, or name another file with --output"
        ) from None


def _with_columns(schema: pa.Schema, added: pa.Schema) -> pa.Schema:
    # `datasets` would refuse a file whose columns are not those its own note there lists; pandas only looks up its index.
    notes = {key: note for key, note in (schema.metadata or {}).items() if key != b"huggingface"}
    return pa.schema([*schema, *added], metadata=notes)


def _parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    try:
        return pq.ParquetWriter(path, schema)
    except pa.ArrowException as error:
        raise DataError(f"a column has no form in Parquet ({first_line(error)}): write JSONL, or leave it out of the input") from None


def _joined(chunk: Chunk, more: pa.Table, schema: pa.Schema) -> pa.Table:
    own = schema.names[: len(schema.names) - more.num_columns]
    try:
        if isinstance(chunk.rows, list):
            columns = [pa.array(chunk.values(name), schema.field(name).type) for name in own]
        else:
            columns = [chunk.rows[name] for name in own]
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"a value in row {chunk.first_row} or after does not fit its Parquet column ({first_line(error)}): write JSONL"
        ) from None
    return pa.table([*columns, *more.columns], schema=schema)


def _write_json(file: TextIO, chunk: Chunk, more: pa.Table) -> None:
    for row, added in zip(chunk.objects(), more.to_pylist(), strict=True):
        file.write(_to_json(row | _rounded(added)) + "\n")


def _cells(chunk: Chunk, more: pa.Table, columns: Sequence[str]) -> Iterator[list[str]]:
    for row, added in zip(chunk.objects(), more.to_pylist(), strict=True):
        yield [_cell(value) for value in (*(row.get(name) for name in columns), *_rounded(added).values())]


def _cell(value: Any) -> str:
    """Give a value as the text of a cell: nothing for None, JSON for lists, objects, numbers and truth values."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (list, dict)):
        return _to_json(value)
    return json.dumps(value) if isinstance(value, (bool, int, float)) else _plain(value)


def _to_json(value: Any) -> str:
    try:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain, allow_nan=False)
    except RecursionError:
        raise DataError("a column holds lists or objects too deep in each other: leave it out of the input") from None


def _finite(value: Any) -> Any:
    """Give a value without the floats that JSON has no form for: null for NaN, text for infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return {key: _finite(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _write_cells(file: TextIO, rows: Iterable[Sequence[str]], separator: str) -> None:
    # Python 3.11's csv.writer leaves a carriage return unquoted where lines end in "\n", and a reader would cut the row there.
    marks = (separator, '"', "\r", "\n")
    for row in rows:
        quoted = ('"' + cell.replace('"', '""') + '"' if any(mark in cell for mark in marks) else cell for cell in row)
        file.write(separator.join(quoted) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return {key: _rounded(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> str:
    """Give what JSON has no form for (dates, times, decimals) as text.

    Raises:
        DataError: It is bytes.
    """
    if isinstance(value, bytes):
        raise DataError("a column holds bytes, which neither CSV nor JSONL can: write Parquet, or leave the column out of the input")
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
