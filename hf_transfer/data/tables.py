"""Tables in files, read a chunk of rows at a time, so that a file larger than memory goes through."""

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_transfer.errors import DataError, did_you_mean, first_line, listed

SEPARATORS = {".csv": ",", ".tsv": "\t"}
"""Suffix -> what stands between two cells."""
TABLE_SUFFIXES = (*SEPARATORS, ".jsonl", ".parquet")
"""Kinds of file that are read and written by chunks."""


@dataclass(frozen=True)
class Chunk:
    """Rows of a table that follow each other."""

    first_row: int
    """Position in the file of the first, counted from 0."""
    rows: pa.Table | list[dict[str, Any]]
    """As Arrow holds them; objects where they come from JSON lines, which may differ in their keys."""

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.rows)

    @property
    def columns(self) -> list[str]:
        """Give the columns, in order; of objects each that one of them has."""
        if isinstance(self.rows, list):
            return list(dict.fromkeys(key for row in self.rows for key in row))
        return list(self.rows.column_names)

    def values(self, column: str) -> list[Any]:
        """Give a column, (B,), None where a row has nothing."""
        return [row.get(column) for row in self.rows] if isinstance(self.rows, list) else self.rows[column].to_pylist()

    def objects(self) -> list[dict[str, Any]]:
        """Give each row as column -> value."""
        return self.rows if isinstance(self.rows, list) else self.rows.to_pylist()


@dataclass(frozen=True)
class Outline:
    """What is known of a table once it was read from end to end."""

    columns: list[str]
    schema: pa.Schema | None
    """Types of its columns; None where nobody asked."""
    num_rows: int


def check_tables(source: Path, target: Path) -> None:
    """Refuse an input that is not there, and an output that is there already or cannot be written.

    Raises:
        DataError: Says which.
    """
    for what, path in (("input", source), ("output", target)):
        if path.suffix.lower() not in TABLE_SUFFIXES:
            suggestion = did_you_mean(path.suffix.lower(), TABLE_SUFFIXES)
            raise DataError(f"the {what} file must end in {listed(TABLE_SUFFIXES)}, found {path}{suggestion}")
    if not source.is_file():
        siblings = [entry.name for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        what = "is a folder, expected a file" if source.is_dir() else "does not exist"
        raise DataError(f"the input file {source} {what}{did_you_mean(source.name, siblings, likeness=0.75)}")
    if target.exists():
        raise DataError(f"the output file {target} exists already: name another, or move this one away")
    if not target.parent.is_dir():
        raise DataError(f"the output file {target} has no folder to lie in: create {target.parent}, or name another")


def read_chunks(path: Path, num_rows: int) -> Iterator[Chunk]:
    """Yield the rows of a CSV, TSV, JSONL or Parquet file, in order; every CSV cell is the text it is.

    Args:
        path: The file.
        num_rows: Of a chunk, at most. A CSV or Parquet file without rows gives one chunk that has its columns.

    Raises:
        DataError: It cannot be read, is not UTF-8 or is malformed; names the line where that is known.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_chunks(path, num_rows)
        elif suffix == ".jsonl":
            yield from _json_chunks(path, num_rows)
        else:
            check_utf8(path)
            first_row = 0
            for columns in read_delimited(path, SEPARATORS[suffix], num_rows):
                chunk = Chunk(first_row, pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}))
                yield chunk
                first_row += len(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def outline(chunks: Iterable[Chunk], typed: bool) -> Outline:
    """Give columns, types and number of rows of a whole table.

    Args:
        chunks: All of it.
        typed: Find out types, which JSON lines only have where all rows agree.

    Raises:
        DataError: Rows do not agree; names the column.
    """
    columns: dict[str, pa.DataType | None] = {}
    schema: pa.Schema | None = None
    num_rows = 0
    for chunk in chunks:
        num_rows += len(chunk)
        if isinstance(chunk.rows, pa.Table):
            schema = chunk.rows.schema
            columns.update(dict.fromkeys(chunk.columns))
            continue
        for name in chunk.columns:
            columns[name] = _common_type(name, chunk, columns.get(name)) if typed else None
    if typed and schema is None:
        schema = pa.schema(columns.items())
    return Outline(list(columns), schema, num_rows)


def check_utf8(path: Path) -> None:
    """Refuse a file that is not UTF-8.

    Raises:
        DataError: Names the line and the byte.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8: line {number} holds the byte {line[error.start]:#04x}; save it as UTF-8") from None


def read_delimited(path: Path, separator: str, num_rows: int | None = None) -> Iterator[dict[str, list[str]]]:
    """Yield column -> cells of a CSV or TSV file, `num_rows` at a time (None: all at once); "NA", "007" and "" stay as they stand, blank
    lines are no rows. A file without rows gives its columns once.

    Raises:
        DataError: It is empty or malformed, or a row has more or fewer fields than the header; names the line.
    """
    # `utf-8-sig` drops the mark that spreadsheet programs write.
    with path.open(encoding="utf-8-sig", newline="") as file:
        records = _records(path, csv.reader(file, delimiter=separator, strict=True), separator)
        header = next(records, None)
        if header is None:
            raise DataError(f"{path} is empty: expected a header line and rows")
        # Spreadsheets leave empty cells behind the last column: those may repeat.
        columns = [name if name or header.count("") == 1 else f"Unnamed: {index}" for index, name in enumerate(header)]
        _check_header(path, columns, separator)
        rows = list(itertools.islice(records, num_rows))
        yield dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in columns}
        while num_rows and (rows := list(itertools.islice(records, num_rows))):
            yield dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))


def _records(path: Path, reader: Any, separator: str) -> Iterator[list[str]]:
    """Yield the fields of each line, or lines where a quoted field holds line breaks; all as many as the first."""
    num_fields = 0
    while True:
        begins = reader.line_num + 1
        # The limit is the process's, not the reader's; a document may well be longer than its 131,072 characters.
        limit = csv.field_size_limit(sys.maxsize)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            what = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise DataError(
                f"{path} is malformed: line {begins}: {what}; quote fields that hold {separator!r}, quotes or line breaks, and write a "
                "quote inside them twice"
            ) from None
        finally:
            csv.field_size_limit(limit)
        if fields is None:
            return
        if not fields or (len(fields) == 1 < num_fields and not fields[0].strip()):
            continue
        num_fields = num_fields or len(fields)
        if len(fields) != num_fields:
            raise DataError(
                f"{path} is malformed: line {begins} has {len(fields)} fields, expected {num_fields} as in the header; quote fields that "
                f"hold {separator!r}, quotes or line breaks"
            )
        yield fields


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the object that each line holds; blank ones are no rows.

    Raises:
        DataError: A line is no JSON object in UTF-8, names it; or there is none.
    """
    is_empty = True
    with path.open("rb") as file:
        # Only "\n" ends a line: others may stand inside a JSON string.
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8: line {number} holds the byte {line[error.start]:#04x}; save it as UTF-8") from None
            if not text.strip():
                continue
            row = parse_json(path, text, number)
            if not isinstance(row, dict):
                raise DataError(f"{path} is malformed: line {number} is {type(row).__name__}, expected an object")
            is_empty = False
            yield row
    if is_empty:
        raise DataError(f"{path} is empty: expected a JSON object a line")


def parse_json(path: Path, text: str, line: int | None = None) -> Any:
    """Give the value that JSON text of a file holds.

    Args:
        path: The file.
        text: The whole of it, or one line.
        line: Which line that is.

    Raises:
        DataError: It is no JSON, or holds what has no form here; names the line where that is known.
    """
    where = f"{path} is malformed:" if line is None else f"{path} is malformed: line {line}"
    try:
        value = json.loads(text)
        is_whole = "\\ud" not in text.lower() or _is_whole(value)
        if "\\u0000" in text:
            _check_names(where, _keys(value))
    except DataError:
        raise
    except json.JSONDecodeError as error:
        # Some of the parser's sentences break off before the place ("Invalid control character at").
        what = re.sub(r"( starting)? at$", "", error.msg)
        raise DataError(f"{path} is malformed: line {line or error.lineno}, column {error.colno}: {what}") from None
    except RecursionError:
        raise DataError(f"{where} holds lists or objects too deep in each other") from None
    except ValueError as error:
        raise DataError(f"{where} holds a number that is too long ({first_line(error)})") from None
    if not is_whole:
        raise DataError(f"{where} holds half of a character, \\ud800 to \\udfff without the other half")
    return value


def _keys(value: Any) -> Iterator[str]:
    """Yield the keys of all objects in a value from JSON."""
    if isinstance(value, dict):
        yield from value
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(entry)


def _check_names(where: str, names: Iterable[str]) -> None:
    """Refuse names that Arrow would cut.

    Raises:
        DataError: One holds the character of code 0.
    """
    if cut := [name for name in names if "\0" in name]:
        raise DataError(f"{where} names a column {cut[0]!r}: a name cannot hold the character of code 0")


def _is_whole(value: Any) -> bool:
    """Say whether every character in a value from JSON has a form in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_header(path: Path, columns: list[str], separator: str) -> None:
    _check_names(str(path), columns)
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(f"{path} names the column '{repeated[0]}' twice: rename one")
    if len(columns) == 1 and (found := [mark for mark in (";", "\t", "|") if mark in columns[0] and mark != separator]):
        raise DataError(f"{path} has one column, '{columns[0]}': it seems to be separated by {found[0]!r}, expected {separator!r}")


def _parquet_chunks(path: Path, num_rows: int) -> Iterator[Chunk]:
    try:
        # Read as it is asked for: by itself Arrow fetches a row group whole, and a file may be one row group.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
                raise DataError(f"{path} names the column '{repeated[0]}' twice: rename one")
            first_row = 0
            for batch in file.iter_batches(batch_size=num_rows):
                # A damaged file may hold texts that are no UTF-8: Arrow takes them as they are until somebody reads one.
                batch.validate(full=True)
                yield Chunk(first_row, pa.Table.from_batches([batch], schema))
                first_row += len(batch)
            if first_row == 0:
                yield Chunk(0, schema.empty_table())
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Parquet file: {' '.join(str(error).split())}") from None


def _json_chunks(path: Path, num_rows: int) -> Iterator[Chunk]:
    rows: list[dict[str, Any]] = []
    first_row = 0
    for row in json_lines(path):
        rows.append(row)
        if len(rows) == num_rows:
            yield Chunk(first_row, rows)
            first_row += num_rows
            rows = []
    if rows:
        yield Chunk(first_row, rows)


def _common_type(name: str, chunk: Chunk, before: pa.DataType | None) -> pa.DataType:
    """Give the type that holds a column of this chunk and of those before."""
    try:
        found = pa.array(chunk.values(name)).type
        fields = [pa.schema({name: kind}) for kind in (before, found) if kind is not None]
        return pa.unify_schemas(fields, promote_options="permissive").field(name).type
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"column '{name}' holds values that share no Parquet type, in row {chunk.first_row} or after ({first_line(error)}): make every "
            "row the same type, or write JSONL"
        ) from None
