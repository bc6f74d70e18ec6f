import csv
import json
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_transfer.data.columns import select_roles
from hf_transfer.data.sources import load_source, read_file
from hf_transfer.data.tables import read_chunks
from hf_transfer.errors import DataError


def test_csv_values_stay_the_text_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufefftext,label\nNA,007\n"",null\n"two\nlines, quoted",1e3\n'.encode())
    dataset = read_file(path)
    assert dataset["text"][:] == ["NA", "", "two\nlines, quoted"]
    assert dataset["label"][:] == ["007", "null", "1e3"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_rows_of_blanks_are_rows_and_blank_lines_are_none(tmp_path: Path, end: str) -> None:
    (tmp_path / "x.csv").write_bytes(end.join(["text", "a", " ", "", '""', "b", ""]).encode())
    assert read_file(tmp_path / "x.csv")["text"][:] == ["a", " ", "", "b"]
    (tmp_path / "y.csv").write_bytes(end.join(["text,label", "a,b", "  ", ",", ""]).encode())
    assert read_file(tmp_path / "y.csv").to_list() == [{"text": "a", "label": "b"}, {"text": "", "label": ""}]


def test_a_csv_field_may_be_longer_than_the_csv_module_reads_by_itself(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    (tmp_path / "x.csv").write_text(f'text,label\n"{"word " * 100_000}",b\n')
    assert len(read_file(tmp_path / "x.csv")["text"][0]) == 500_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.string_view(), "a"),
        (pa.large_string(), "a"),
        (pa.dictionary(pa.int32(), pa.string()), "a"),
        (pa.null(), None),
        (pa.binary(), b"\xff"),
        (pa.uint64(), 2**64 - 1),
        (pa.float16(), 1.5),
        (pa.decimal128(10, 2), Decimal("1.10")),
        (pa.date32(), date(2026, 1, 2)),
        (pa.large_list(pa.int64()), [1, 2]),
        (pa.list_(pa.dictionary(pa.int8(), pa.string())), ["a", "b"]),
        (pa.list_(pa.float32(), 2), [1.0, 2.0]),
        (pa.struct({"a": pa.string()}), {"a": "x"}),
    ],
    ids=str,
)
def test_every_type_of_parquet_is_read(tmp_path: Path, kind: pa.DataType, value: object) -> None:
    try:
        pq.write_table(pa.table({"x": pa.array([value, None], kind), "text": ["a", "b"]}), tmp_path / "x.parquet")
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"pyarrow writes no such column: {error}")
    assert read_file(tmp_path / "x.parquet").to_list() == [{"x": value, "text": "a"}, {"x": None, "text": "b"}]


def test_parquet_columns_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="column 'm' cannot be read .*: leave it out"):
        read_file(tmp_path / "x.parquet")
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"text": text}), tmp_path / "y.parquet")
    for read in (read_file, lambda path: list(read_chunks(path, 9))):
        with pytest.raises(DataError, match="no readable Parquet file: .*UTF8"):
            read(tmp_path / "y.parquet")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_json_lines_and_arrays(tmp_path: Path, name: str) -> None:
    rows = [{"text": "a\u2028b", "label": 1}, {"text": "2020-01-01", "label": 0}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if name == "x.jsonl" else json.dumps(rows)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_file(tmp_path / name).to_list() == rows


def test_parquet_keeps_a_class_label(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(str(tmp_path / "x.parquet"))
    assert read_file(tmp_path / "x.parquet").features == features


def test_a_folder_of_splits(tmp_path: Path) -> None:
    for name, text in {
        "train-00000-of-00002.csv": "t\na\n",
        "train-00001-of-00002.csv": "t\nb\n",
        "dev.jsonl": '{"t": "c"}',
        "test.tsv": "t\nd\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "README.md").write_text("not data")
    splits = load_source(str(tmp_path)).splits
    assert {name: split["t"][:] for name, split in splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d"],
    }


def test_a_folder_reads_split_files_and_no_others(tmp_path: Path) -> None:
    for name in ("train.csv", "train_small.csv", "test_labels.csv"):
        (tmp_path / name).write_text("t\na\n")
    assert {name: len(split) for name, split in load_source(str(tmp_path)).splits.items()} == {"train": 1}
    for name, other in (("train.jsonl", "train.csv, train.jsonl"), ("dev.csv", "dev.csv, validation.csv")):
        (tmp_path / "validation.csv").write_text("t\na\n")
        (tmp_path / name).write_text("t\na\n")
        with pytest.raises(DataError, match=f"several files for .*: {other}; keep one"):
            load_source(str(tmp_path))
        (tmp_path / name).unlink()


def test_shards_belong_together_and_none_may_be_missing(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"train-{number:05d}-of-00002-0a1b2c.csv").write_text(f"t\n{number}\n")
    assert load_source(str(tmp_path)).splits["train"]["t"][:] == ["0", "1"]
    (tmp_path / "train-00001-of-00002-0a1b2c.csv").unlink()
    with pytest.raises(DataError, match="has 1 of 2 files for train: train-00000-of-00002-0a1b2c.csv; add the others"):
        load_source(str(tmp_path))


def test_empty_cells_behind_a_header_are_no_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label,,\na,b,,\n")
    assert read_file(tmp_path / "x.csv")["label"][:] == ["b"]
    (tmp_path / "y.csv").write_text('"a, b"\nx\n')
    assert read_file(tmp_path / "y.csv").column_names == ["a, b"]


def test_a_configuration_belongs_to_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a configuration or revision belongs to a Hub dataset"):
        load_source(str(tmp_path), config="en")


def test_embedded_newsgroups_is_what_its_card_says() -> None:
    splits = load_source("embedded:newsgroups").splits
    counts = {name: {label: split["label"][:].count(label) for label in set(split["label"])} for name, split in splits.items()}
    assert {name: set(by_label.values()) for name, by_label in counts.items()} == {"train": {32}, "test": {16}}
    assert len(counts["train"]) == 8
    texts = splits["train"]["text"][:] + splits["test"]["text"][:]
    assert len(set(texts)) == len(texts)

    def pieces(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}

    trained = [pieces(text) for text in splits["train"]["text"]]
    for text in splits["test"]["text"]:
        mine = pieces(text)
        assert max(len(mine & other) / len(mine | other) for other in trained if mine | other) < 0.04


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"text,label\n", "holds no rows"),
        ("x.csv", b"text,label\nfine,1\ncaf\xe9,2\n", "not UTF-8: line 3 holds the byte 0xe9"),
        ("x.csv", b"text,label\na,b,c\n", "malformed: line 2 has 3 fields, expected 2 as in the header"),
        ("x.csv", b'text,label\n"two\nlines",b\nc\n', "malformed: line 4 has 1 fields, expected 2"),
        ("x.tsv", b'text\tlabel\n"never\tclosed\nb\tc\n', "malformed: line 2: a quote is opened and never closed"),
        ("x.csv", b'text,label\n"said" he,b\n', "malformed: line 2: ',' expected after"),
        ("x.csv", b"text,text,label\na,b,c\n", "names the column 'text' twice"),
        ("x.csv", b"text;label\na;b\nwell, no, not;c\n", "has one column, 'text;label': it seems to be separated by ';', expected ','"),
        ("x.csv", b"text\tlabel\na\tb\n", r"separated by '\\t', expected ','"),
        ("x.csv", b"text,label\na,b\nc,d,e\n", "malformed"),
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "malformed: line 2"),
        ("x.csv", b"te\0xt,label\na,b\n", r"names a column 'te\\x00xt': a name cannot hold"),
        ("x.jsonl", b'{"te\\u0000xt": "a"}\n', r"names a column 'te\\x00xt': a name cannot hold"),
        ("x.json", b'[{"a": [{"\\u0000": 1}]}]', r"names a column '\\x00': a name cannot hold"),
        ("x.jsonl", b"\n \n", "is empty: expected a JSON object a line"),
        ("x.json", b"[]", "holds no rows"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', "malformed: line 2 is list"),
        (
            "x.jsonl",
            b'{"a": 1}\n{"a": 2}\n{"a": "b"}\n',
            r"column 'a' mixes number, str \(row 0 is the first number, row 2 is the first str\)",
        ),
        ("x.jsonl", b'{"a": "b"}\n{"a": "b\n', "malformed: line 2, column 9: Invalid control character$"),
        ("x.json", b'[{"a": 1},\n{"a": "b', "malformed: line 2, column 7: Unterminated string$"),
        ("x.json", b'[{"a": 1},\n 3]', "row 1 is int"),
        ("x.jsonl", b'{"a": [1, "b"]}\n', "make no table"),
        ("x.jsonl", b'{"a": 123456789012345678901234567890}\n', "make no table"),
        ("x.jsonl", b'{"a": "\\ud800"}\n', "line 1 holds half of a character"),
        ("x.json", b'[{"a": "\\ud800"}]\n', "holds half of a character"),
        ("x.jsonl", b'{"a": 1}\n{"a": ' + b"[" * 100_000, "malformed: line 2 holds lists or objects too deep in each other"),
        ("x.json", b"[" * 100_000, "malformed: holds lists or objects too deep in each other"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "malformed: line 1 holds a number that is too long"),
        ("x.parquet", b"no parquet", "no readable Parquet"),
        ("x.xlsx", b"hello", "expected one of .csv"),
        ("x.txt", b"hello", "line 1 has 1 .*expected a word and its tag"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_source(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text\na\n")
    with pytest.raises(DataError, match=r"no file or folder .*; did you mean 'reviews.csv'\?"):
        load_source(str(tmp_path / "review.csv"))
    with pytest.raises(DataError, match="has no train file.*found reviews.csv"):
        load_source(str(tmp_path))
    for name in ("a" * 5000 + "/b/c", "~nobody-here/x.csv", "\0.csv"):
        with pytest.raises(DataError, match="no file or folder "):
            load_source(name)
    with pytest.raises(DataError, match=r"no embedded dataset 'newsgroup'.*did you mean 'newsgroups'"):
        load_source("embedded:newsgroup")
    with pytest.raises(DataError, match="cannot load dataset 'nobody/nothing'"):
        load_source("nobody/nothing", local_files_only=True)


def test_a_folder_that_holds_one_nobody_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    listed = Path.iterdir

    def closed(folder: Path) -> Iterator[Path]:
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(DataError, match="cannot read .*closed: Permission denied"):
        load_source(str(tmp_path))


def test_roles_take_their_columns_and_nothing_is_guessed() -> None:
    splits = {"train": Dataset.from_dict({"label": ["a"], "text": ["b"], "more": ["c"]})}
    swapped = select_roles(splits, {"text": "label", "label": "text"}, optional=frozenset())
    assert swapped["train"].to_list() == [{"text": "a", "label": "b"}]
    with pytest.raises(
        DataError,
        match=r"no column 'txt' \(the text\); it has label, text, more: .*--columns text=COLUMN; did you mean 'text'",
    ):
        select_roles(splits, {"text": "txt", "label": "label"}, optional=frozenset())
    with pytest.raises(DataError, match="a column of its own"):
        select_roles(splits, {"text": "text", "label": "text"}, optional=frozenset())
    assert select_roles(splits, {"text": "text", "label": "gone"}, optional=frozenset({("train", "label")}))["train"].column_names == [
        "text"
    ]
