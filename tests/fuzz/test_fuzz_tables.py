import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.sources import read_file
from hf_transfer.data.tables import read_chunks
from tests.fuzz.strategies import damaged, delimited, json_lines, names, result_or_sentence, tables, texts, values, write

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


def chunked(path: Path, num_rows: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for chunk in read_chunks(path, num_rows):
        assert chunk.first_row == len(rows), "row ids are positions from 0"
        rows += chunk.objects()
    return rows


def parquet(rows: list[tuple[str, list[str] | None]]) -> bytes:
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [text for text, _ in rows], "words": [words for _, words in rows]}), file)
    return bytes(file.getvalue())


@given(
    table=tables(), suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet"]), num_rows=st.integers(1, 9), mark=st.booleans()
)
def test_rows_come_back_in_order_letter_for_letter(
    folder: Path, table: dict[str, list[str]], suffix: str, num_rows: int, mark: bool
) -> None:
    path = folder / f"x{suffix}"
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if suffix == ".parquet":
        pq.write_table(pa.table(table), path, row_group_size=num_rows)
    else:
        data = delimited(table, SEPARATORS[suffix]) if suffix in SEPARATORS else json_lines(rows, mark) if suffix == ".jsonl" else None
        write(path, b"\xef\xbb\xbf" * mark + (json.dumps(rows).encode() if data is None else data))
    if suffix in SEPARATORS and len(table) == 1 and any(mark in next(iter(table)) for mark in ";\t|"):
        return
    assert read_file(path).to_list() == rows
    if suffix != ".json":
        assert chunked(path, num_rows) == rows


@given(
    table=st.dictionaries(
        names,
        st.sampled_from(
            [
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False),
                st.booleans(),
                texts,
                st.lists(st.integers(0, 9)),
                st.lists(texts),
            ]
        ),
        min_size=1,
        max_size=3,
    ).flatmap(
        lambda kinds: st.lists(st.fixed_dictionaries({name: st.none() | kind for name, kind in kinds.items()}), min_size=1, max_size=6)
    ),
)
def test_json_values_keep_their_type_and_place(folder: Path, table: list[dict[str, Any]]) -> None:
    path = write(folder / "typed.jsonl", json_lines(table))
    assert chunked(path, 2) == table
    assert read_file(path).to_list() == table
    pq.write_table(pa.Table.from_pylist(table), folder / "typed.parquet")
    assert read_file(folder / "typed.parquet").to_list() == table


@given(data=damaged(tables().map(lambda table: delimited(table, ","))), num_rows=st.integers(1, 5))
def test_a_damaged_csv_is_read_as_a_strict_reader_does_or_refused(folder: Path, data: bytes, num_rows: int) -> None:
    path = write(folder / "damaged.csv", data)
    dataset = result_or_sentence(lambda: read_file(path))
    rows = result_or_sentence(lambda: chunked(path, num_rows))
    if dataset is None:
        assert not rows
        return
    header, *expected = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True) if row]
    assert [list(row.values()) for row in dataset.to_list()] == [row for row in expected if len(row) == len(header)]
    assert rows == dataset.to_list()


json_data = damaged(st.lists(st.dictionaries(names, values, max_size=3) | values, max_size=5).map(json_lines))


@given(
    data=json_data | json_data.map(lambda data: b"[" + data.strip().replace(b"\n", b",\n") + b"]"),
    suffix=st.sampled_from([".jsonl", ".json"]),
)
def test_damaged_json_is_read_whole_or_refused(folder: Path, data: bytes, suffix: str) -> None:
    path = write(folder / f"damaged{suffix}", data)
    dataset = result_or_sentence(lambda: read_file(path))
    rows = result_or_sentence(lambda: chunked(path, 2)) if suffix == ".jsonl" else None
    if dataset is not None:
        text = data.decode("utf-8-sig")
        expected = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]
        assert len(dataset) == len(expected)
        assert rows is None or json.dumps(rows) == json.dumps(expected)


@given(
    data=st.binary(max_size=40) | damaged(tables().map(lambda table: delimited(table, "\t"))),
    suffix=st.sampled_from([".tsv", ".parquet", ".conll", ".txt", ".json", ".jsonl"]),
)
def test_any_bytes_are_read_or_refused(folder: Path, data: bytes, suffix: str) -> None:
    path = write(folder / f"any{suffix}", data)
    result_or_sentence(lambda: read_file(path))
    if suffix in (".tsv", ".parquet", ".jsonl"):
        result_or_sentence(lambda: chunked(path, 3))


@given(data=damaged(st.lists(st.tuples(texts, st.none() | st.lists(texts, max_size=2)), min_size=1, max_size=6).map(parquet)))
def test_a_damaged_parquet_file_is_read_or_refused(folder: Path, data: bytes) -> None:
    path = write(folder / "damaged.parquet", data)
    dataset = result_or_sentence(lambda: read_file(path))
    rows = result_or_sentence(lambda: chunked(path, 2))
    assert dataset is None or json.dumps(dataset.to_list()), "every value can be read"
    assert rows is None or json.dumps(rows)
