import csv
import json
import math
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.sources import read_file
from hf_transfer.evaluation.table_prediction import predict_table
from hf_transfer.task_configs import TextClassification, TokenClassification
from hf_transfer.tasks import functions_of
from tests.fuzz.strategies import damaged, delimited, floats, json_lines, result_or_sentence, tables, texts, values, write

SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]
LABELS = ["a", "b c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predicted")


def length(inputs: list[Any], advance: Callable[[float], object]) -> list[dict[str, Any]]:
    """Stand in for a model: what it says of a text tells its length, so that answers cannot change places unseen."""
    advance(1.0)
    return [{"label": LABELS[len(text) % 2], "score": len(text) / 1024, "probabilities": {"a": 0.25, "b c": 0.75}} for text in inputs]


def no_entities(inputs: list[Any], advance: Callable[[float], object]) -> list[dict[str, Any]]:
    return [{"entities": []} for _ in inputs]


def predict(source: Path, target: Path, chunk_rows: int, task: Any = None) -> int:
    target.unlink(missing_ok=True)
    task = task or TextClassification()
    model = length if task.kind == "text-classification" else no_entities
    done = predict_table(model, functions_of(task), task, LABELS, source, target, None, chunk_rows)
    return done.num_rows


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".jsonl":

        def no_json(word: str) -> None:
            raise AssertionError(f"{word} is no JSON")

        return [json.loads(line, parse_constant=no_json) for line in path.read_text(encoding="utf-8").split("\n") if line]
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    return [dict(zip(header, row, strict=True)) for row in rows]


def encoded(table: dict[str, list[Any]], suffix: str) -> bytes:
    if suffix == ".parquet":
        file = pa.BufferOutputStream()
        pq.write_table(pa.table(table), file)
        return bytes(file.getvalue())
    if suffix == ".jsonl":
        return json_lines([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
    return delimited(table, "\t" if suffix == ".tsv" else ",")


@given(
    table=tables(),
    inputs=st.lists(texts, min_size=8, max_size=8),
    source=st.sampled_from(SUFFIXES),
    target=st.sampled_from(SUFFIXES),
    chunk_rows=st.integers(1, 9),
)
def test_rows_and_their_answers_come_out_in_order(
    folder: Path, table: dict[str, list[str]], inputs: list[str], source: str, target: str, chunk_rows: int
) -> None:
    num_rows = len(next(iter(table.values())))
    table = {**table, "text": inputs[:num_rows]}
    path = write(folder / f"in{source}", encoded(table, source))
    assert predict(path, folder / f"out{target}", chunk_rows) == num_rows
    found = read(folder / f"out{target}")
    assert [{name: row[name] for name in table} for row in found] == [
        dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
    ]
    assert [float(row["score"]) for row in found] == pytest.approx([len(text) / 1024 for text in table["text"]], abs=1e-6)
    assert [row["prediction"] for row in found] == [LABELS[len(text) % 2] for text in table["text"]]


rows_of_json = st.lists(
    st.dictionaries(st.sampled_from(["n", "m", "é"]), values, max_size=2).flatmap(
        lambda more: texts.map(lambda text: {"text": text, **more})
    ),
    min_size=1,
    max_size=5,
)


@given(rows=rows_of_json, target=st.sampled_from(SUFFIXES), chunk_rows=st.integers(1, 3))
def test_any_values_beside_the_text_come_out_or_are_refused(folder: Path, rows: list[dict[str, Any]], target: str, chunk_rows: int) -> None:
    path = write(folder / "any.jsonl", json_lines(rows))
    done = result_or_sentence(lambda: predict(path, folder / f"any-out{target}", chunk_rows))
    assert (done is not None) == (folder / f"any-out{target}").exists()
    if done is None:
        assert target == ".parquet" or path
        return
    found = read(folder / f"any-out{target}")
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    if target == ".jsonl":
        for row, out in zip(rows, found, strict=True):
            assert list(out)[: len(row)] == list(row)
            assert all(
                out[name] == value for name, value in row.items() if "NaN" not in (shown := json.dumps(value)) and "Infinity" not in shown
            )


cells = [
    st.integers(-(2**40), 2**40),
    floats,
    st.booleans(),
    st.dates(),
    st.decimals(-99, 99, places=2, allow_nan=False),
    st.lists(st.floats(width=32), max_size=2),
    st.binary(max_size=3),
]


@given(kind=st.sampled_from(cells), inputs=st.lists(texts, min_size=1, max_size=4), target=st.sampled_from(SUFFIXES), data=st.data())
def test_parquet_values_come_out_or_are_refused(
    folder: Path, kind: st.SearchStrategy[Any], inputs: list[str], target: str, data: st.DataObject
) -> None:
    column = data.draw(st.lists(st.none() | kind, min_size=len(inputs), max_size=len(inputs)))
    path = folder / "typed.parquet"
    pq.write_table(pa.table({"text": inputs, "x": column}), path)
    done = result_or_sentence(lambda: predict(path, folder / f"typed-out{target}", 2))
    if any(isinstance(value, bytes) for value in column) and target != ".parquet":
        assert done is None
        return
    assert done == len(inputs)
    for value, row in zip(column, read(folder / f"typed-out{target}"), strict=True):
        if target == ".parquet":
            assert row["x"] == value or str(row["x"]) == str(value)
        elif target == ".jsonl":
            if isinstance(value, float) and not math.isfinite(value):
                assert row["x"] in (None, "Infinity", "-Infinity")
            elif not isinstance(value, list):
                assert row["x"] == (str(value) if isinstance(value, (date, Decimal)) else value)
        else:
            assert (row["x"] == "") == (value is None)


@given(
    data=damaged(tables().map(lambda table: encoded({**table, "text": next(iter(table.values()))}, ".csv")))
    | damaged(rows_of_json.map(json_lines)),
    source=st.sampled_from([".csv", ".jsonl"]),
    target=st.sampled_from(SUFFIXES),
    is_ner=st.booleans(),
)
def test_damaged_files_are_predicted_or_refused_and_nothing_is_left(
    folder: Path, data: bytes, source: str, target: str, is_ner: bool
) -> None:
    path = write(folder / f"damaged{source}", data)
    out = folder / f"damaged-out{target}"
    done = result_or_sentence(lambda: predict(path, out, 2, TokenClassification() if is_ner else None))
    assert out.exists() == (done is not None)
    assert not list(folder.glob(".*"))
    if done is not None:
        assert len(read(out)) == done


@given(depth=st.integers(1, 1100), odd=st.sampled_from(["x", "\\u0000", "\\ud800"]), target=st.sampled_from(SUFFIXES))
def test_values_deep_in_each_other_are_written_or_refused(folder: Path, depth: int, odd: str, target: str) -> None:
    path = write(folder / "deep.jsonl", f'{{"text": "{odd}", "n": {"[" * depth}{"]" * depth}}}\n'.encode())
    result_or_sentence(lambda: predict(path, folder / f"deep-out{target}", 2))
    result_or_sentence(lambda: read_file(path))
