from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.sources import Source, read_file
from hf_transfer.task_configs import TextClassification
from hf_transfer.tasks import text_classification
from tests.fuzz.strategies import delimited, json_lines, result_or_sentence, scalars, texts, values, write

labels = st.one_of(st.sampled_from(["a", "b", " a", "1", "2", "-1", "1.0", "nan", ""]), st.integers(-3, 3), scalars)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


def read(splits: dict[str, Path], columns: dict[str, str], names: list[str] | None) -> Any:
    source = Source({split: read_file(path) for split, path in splits.items()})
    return text_classification.read(source, columns, names, TextClassification())


def check(found: Any, rows: list[dict[str, Any]]) -> None:
    names, examples = found
    train = examples["train"]
    assert len(set(names)) == len(names)
    assert train.row_ids.tolist() == list(range(len(rows)))
    assert train.inputs == [row["text"].strip() for row in rows]
    classes = [int(label) for (label,) in train.labels]
    assert all(0 <= label < len(names) for label in classes)
    written = [row["label"].strip() if isinstance(row["label"], str) else row["label"] for row in rows]
    of_class: dict[int, Any] = {}
    for label, value in zip(classes, written, strict=True):
        assert of_class.setdefault(label, value) == value, "a class has one label"


@given(
    rows=st.lists(st.fixed_dictionaries({"text": texts, "label": labels}), min_size=1, max_size=6),
    test=st.none() | st.lists(st.fixed_dictionaries({"text": texts, "label": labels}), min_size=1, max_size=3),
    names=st.none() | st.lists(texts, max_size=3),
)
def test_labels_of_json_are_read_or_refused(
    folder: Path, rows: list[dict[str, Any]], test: list[dict[str, Any]] | None, names: list[str] | None
) -> None:
    splits = {"train": write(folder / "train.jsonl", json_lines(rows))}
    if test:
        splits["test"] = write(folder / "test.jsonl", json_lines(test))
    found = result_or_sentence(lambda: read(splits, {"text": "text", "label": "label"}, names))
    if found is not None:
        check(found, rows)


@given(kind=st.sampled_from([st.sampled_from("ab"), st.integers(-2, 2), st.booleans(), st.sampled_from([0.0, 1.0])]), data=st.data())
def test_labels_of_one_kind_are_read(folder: Path, kind: st.SearchStrategy[Any], data: st.DataObject) -> None:
    rows = [{"text": "x", "label": label} for label in data.draw(st.lists(kind, min_size=1, max_size=6))]
    found = read({"train": write(folder / "one.jsonl", json_lines(rows))}, {"text": "text", "label": "label"}, None)
    check(found, rows)
    assert found[0] == [str(int(label) if isinstance(label, float) else label) for label in sorted({row["label"] for row in rows})]


@given(
    rows=st.lists(st.tuples(texts, texts | st.sampled_from("0123"), texts), min_size=1, max_size=6),
    named=st.booleans(),
    names=st.none() | st.lists(texts, max_size=4),
)
def test_labels_of_csv_are_read_or_refused(folder: Path, rows: list[tuple[str, str, str]], named: bool, names: list[str] | None) -> None:
    table = dict(zip(["text", "label", "label_name"], map(list, zip(*rows, strict=True)), strict=True))
    path = write(folder / "x.csv", delimited(table, ","))
    columns = {"text": "text", "label": "label"} | ({"label_name": "label_name"} if named else {})
    found = result_or_sentence(lambda: read({"train": path}, columns, names))
    if found is not None:
        assert [value.inputs for value in found[1].values()] == [[text.strip() for text, _, _ in rows]]


@given(rows=st.lists(st.fixed_dictionaries({"text": values, "text_pair": values, "label": st.sampled_from("ab")}), min_size=1, max_size=4))
def test_texts_of_any_value_are_read_or_refused(folder: Path, rows: list[dict[str, Any]]) -> None:
    path = write(folder / "pairs.jsonl", json_lines(rows))
    found = result_or_sentence(lambda: read({"train": path}, {"text": "text", "text_pair": "text_pair", "label": "label"}, None))
    if found is not None:
        assert found[1]["train"].inputs == [(row["text"].strip(), row["text_pair"].strip()) for row in rows]
