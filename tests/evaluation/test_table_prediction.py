import csv
import functools
import gc
import itertools
import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hf_transfer as ht
from hf_transfer.data.tables import Chunk
from hf_transfer.errors import ConfigError, DataError
from hf_transfer.evaluation.table_prediction import TablePrediction, predict_table
from hf_transfer.tasks import functions_of
from tests.conftest import make_photos, make_rows, make_sentences, save_untrained, write_csv, write_jsonl

TRICKY = [
    "",
    "  ",
    'say "oven", twice',
    "two\nlines",
    "a\r\nb",
    "a\rb",
    "NA",
    "null",
    "007",
    "1e3",
    "\u2028bread\tloaf",
    "=sail()",
    "é 船 🚢",
]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


def table_of(model: ht.Model, source: Path, target: Path, columns: dict[str, str] | None = None, chunk_rows: int = 7) -> TablePrediction:
    task = model.saved.task
    predict = functools.partial(model.predict, precision="fp32")
    return predict_table(predict, functions_of(task), task, model.labels, source, target, columns, chunk_rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.fixture
def rows() -> list[dict[str, str]]:
    texts = [row["text"] for row in make_rows(25)] + TRICKY + ["bread " * 200]
    return [{"id": f"{index:03}", "text": text, "note": TRICKY[index % len(TRICKY)]} for index, text in enumerate(texts)]


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SUFFIXES, SUFFIXES)))
def test_a_file_is_predicted_as_its_rows_are(
    topics_model: Path, tmp_path: Path, rows: list[dict[str, str]], source: str, target: str
) -> None:
    model = ht.load(topics_model)
    expected = model.predict([row["text"] for row in rows], precision="fp32")
    assert len({answer["label"] for answer in expected}) > 1
    done = table_of(model, write(tmp_path / f"in{source}", rows), tmp_path / f"out{target}")
    assert (done.num_rows, done.path) == (len(rows), tmp_path / f"out{target}")
    found = read(done.path)
    assert [{name: row[name] for name in rows[0]} for row in found] == rows, "the same rows, in order, letter for letter"
    for row, answer in zip(found, expected, strict=True):
        if target in (".csv", ".tsv"):
            assert list(row) == [*rows[0], "prediction", "score", *(f"probability_{name}" for name in model.labels)]
            row["probabilities"] = {name: float(row[f"probability_{name}"]) for name in model.labels}
        else:
            assert list(row) == [*rows[0], "prediction", "score", "probabilities"]
        assert row["prediction"] == answer["label"]
        assert float(row["score"]) == pytest.approx(answer["score"], abs=1e-5)
        assert row["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in{source}", f"out{target}"])


@pytest.mark.parametrize("target", SUFFIXES)
def test_entities_of_words_and_of_texts(names_model: Path, tmp_path: Path, target: str) -> None:
    model = ht.load(names_model)
    words = [row["tokens"] for row in make_sentences(20)] + [[], ["sail"] * 100]
    expected = model.predict(words, precision="fp32")
    assert any(answer["entities"] for answer in expected)
    table_of(model, write(tmp_path / "in.parquet", [{"tokens": row} for row in words]), tmp_path / f"out{target}")
    texts = [{"text": " ".join(row)} for row in words]
    table_of(model, write(tmp_path / "in.csv", texts) if target == ".csv" else write(tmp_path / "in.jsonl", texts), tmp_path / f"b{target}")
    of_words, of_texts = read(tmp_path / f"out{target}"), read(tmp_path / f"b{target}")
    for row, other, answer in zip(of_words, of_texts, expected, strict=True):
        entities = json.loads(row["entities"]) if target in (".csv", ".tsv") else row["entities"]
        assert [{**entity, "score": 0} for entity in entities] == [{**entity, "score": 0} for entity in answer["entities"]]
        assert [e["score"] for e in entities] == pytest.approx([e["score"] for e in answer["entities"]], abs=1e-5)
        assert row["entities"] == other["entities"]


def test_images_by_a_table_of_paths(tiny_vit: Path, tmp_path: Path) -> None:
    folder = save_untrained("image-classification", tiny_vit, ["disc", "stripes"], tmp_path / "model")
    model = ht.load(folder)
    photos = make_photos(tmp_path / "photos", 9)
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    expected = model.predict([photos / name for name in names], precision="fp32")
    table_of(model, write(photos / "new.csv", [{"file": name} for name in names]), tmp_path / "out.jsonl", {"image": "file"}, chunk_rows=4)
    assert [row["prediction"] for row in read(tmp_path / "out.jsonl")] == [answer["label"] for answer in expected]
    held = [{"image": {"bytes": (photos / name).read_bytes(), "path": None}} for name in names]
    table_of(model, write(tmp_path / "in.parquet", held), tmp_path / "out.parquet")
    assert [row["prediction"] for row in read(tmp_path / "out.parquet")] == [answer["label"] for answer in expected]
    with pytest.raises(DataError, match="holds bytes, which neither CSV nor JSONL can"):
        table_of(model, tmp_path / "in.parquet", tmp_path / "out.csv")
    with pytest.raises(DataError, match="given row 1 has no image"):
        table_of(model, write_csv(tmp_path / "gap.csv", [{"image": "photos/disc/0.jpg"}, {"image": ""}]), tmp_path / "gap.jsonl")


def test_parquet_columns_keep_their_types(topics_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    own = pa.table(
        {
            "text": pa.array(["sail", "", "oven"]).dictionary_encode(),
            "when": pa.array([1, None, 3], pa.timestamp("ns", "UTC")),
            "price": pa.array([Decimal("1.10"), None, Decimal("-2.00")]),
            "many": pa.array([[1.5], [], None], pa.large_list(pa.float32())),
            "no": pa.array([2**63, 0, 1], pa.uint64()),
        }
    )
    pq.write_table(own, tmp_path / "in.parquet")
    table_of(ht.load(topics_model), tmp_path / "in.parquet", tmp_path / "out.parquet", chunk_rows=2)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(own.column_names).to_pylist() == own.to_pylist()
    assert out.schema.types[:5] == pq.read_table(tmp_path / "in.parquet").schema.types
    assert [str(kind) for kind in out.schema.types[5:7]] == ["string", "float"]
    Dataset.from_dict({"text": ["sail"]}).to_parquet(str(tmp_path / "hub.parquet"))
    table_of(ht.load(topics_model), tmp_path / "hub.parquet", tmp_path / "again.parquet")
    assert Dataset.from_parquet(str(tmp_path / "again.parquet"), cache_dir=str(tmp_path)).column_names[:2] == ["text", "prediction"]


def test_values_that_are_no_text_have_a_form_in_cells(topics_model: Path, tmp_path: Path) -> None:
    row = {"text": "sail", "when": datetime(2026, 1, 2), "price": Decimal("1.10"), "many": [1, None], "yes": True, "x": 1.0, "none": None}
    write(tmp_path / "in.parquet", [row])
    table_of(ht.load(topics_model), tmp_path / "in.parquet", tmp_path / "out.csv")
    (found,) = read(tmp_path / "out.csv")
    assert [found[name] for name in row] == ["sail", "2026-01-02T00:00:00", "1.10", "[1, null]", "true", "1.0", ""]


def test_json_holds_no_nan(topics_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.parquet", [{"text": "sail", "x": float("nan"), "y": [1.5, float("inf")], "z": {"a": float("-inf")}}])
    (tmp_path / "in.jsonl").write_text('{"text": "sail", "x": NaN, "y": [1.5, Infinity], "z": {"a": -Infinity}}')
    for source in ("in.parquet", "in.jsonl"):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        table_of(ht.load(topics_model), tmp_path / source, tmp_path / "out.jsonl")
        (row,) = read(tmp_path / "out.jsonl")
        assert [row[name] for name in "xyz"] == [None, [1.5, "Infinity"], {"a": "-Infinity"}]
    with pytest.raises(DataError, match="a column has no form in Parquet .*: write JSONL"):
        table_of(ht.load(topics_model), write_jsonl(tmp_path / "empty.jsonl", [{"text": "a", "n": {}}]), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_json_lines_may_differ_in_their_keys(topics_model: Path, tmp_path: Path) -> None:
    ragged: list[dict[str, Any]] = [
        {"text": "sail", "n": 1},
        {"text": "oven", "n": 2.5, "more": {"a": 1}},
        {"b": "x", "text": "", "n": 123456789012345678901234567890},
        {"text": "pawn", "n": "?", "more": None},
    ]
    model = ht.load(topics_model)
    write_jsonl(tmp_path / "in.jsonl", ragged)
    table_of(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", chunk_rows=2)
    for row, found in zip(ragged, read(tmp_path / "out.jsonl"), strict=True):
        assert list(found.items())[: len(row)] == list(row.items())
    table_of(model, tmp_path / "in.jsonl", tmp_path / "out.csv", chunk_rows=2)
    assert [[row[name] for name in ("text", "n", "more", "b")] for row in read(tmp_path / "out.csv")] == [
        ["sail", "1", "", ""],
        ["oven", "2.5", '{"a": 1}', ""],
        ["", "123456789012345678901234567890", "", "x"],
        ["pawn", "?", "", ""],
    ]
    with pytest.raises(
        DataError, match="column 'n' holds values that share no Parquet type, in row 2 or after .*: make every row the same"
    ):
        table_of(model, tmp_path / "in.jsonl", tmp_path / "out.parquet", chunk_rows=2)
    write_jsonl(tmp_path / "fits.jsonl", ragged[:2])
    table_of(model, tmp_path / "fits.jsonl", tmp_path / "out.parquet", chunk_rows=1)
    assert [(row["n"], row["more"]) for row in read(tmp_path / "out.parquet")] == [(1.0, None), (2.5, {"a": 1})]


@pytest.mark.parametrize("source", [".csv", ".tsv", ".parquet"])
def test_a_file_without_rows_gives_one_without_rows(topics_model: Path, tmp_path: Path, source: str) -> None:
    path = tmp_path / f"in{source}"
    if source == ".parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("text\n")
    for target in SUFFIXES:
        done = table_of(ht.load(topics_model), path, tmp_path / f"out{target}")
        assert done.num_rows == 0 and read(done.path) == []
    assert pq.read_table(tmp_path / "out.parquet").column_names[-3:] == ["prediction", "score", "probabilities"]


def known_answers(look: Callable[[], None]) -> Callable[..., list[dict[str, Any]]]:
    def predict(inputs: list[Any], advance: Callable[[float], object]) -> list[dict[str, Any]]:
        look()
        return [{"label": "a", "score": 0.5, "probabilities": {"a": 0.5, "b": 0.5}} for _ in inputs]

    return predict


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"{index} " * 300, "note": "x" * 100} for index in range(6000)]
    source = write(tmp_path / f"in{suffix}", rows)
    size = sum(len(row["text"]) + len(row["note"]) for row in rows)
    del rows

    calls = itertools.count()

    def alive() -> None:
        assert tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before < size / 2
        if next(calls) == 10:
            gc.collect()
            assert sum(type(held) is Chunk for held in gc.get_objects()) == 1, "only the chunk in work"
            tracemalloc.reset_peak()

    task = ht.TextClassification()
    few = write(tmp_path / f"few{suffix}", [{"text": "sail"}])
    # What is imported on the way is not what is measured.
    predict_table(known_answers(lambda: None), functions_of(task), task, ["a", "b"], few, tmp_path / f"done{suffix}")
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        predict_table(known_answers(alive), functions_of(task), task, ["a", "b"], source, tmp_path / f"out{suffix}", chunk_rows=100)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    source = write(tmp_path / "in.csv", [{"text": str(index)} for index in range(30)])
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == 2:
            raise error

    task = ht.TextClassification()
    with pytest.raises(error):
        predict_table(known_answers(stop), functions_of(task), task, ["a", "b"], source, tmp_path / f"out{suffix}", chunk_rows=10)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_mistake_in_the_last_row_shows_before_the_first_is_predicted(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "sail"}] * 29 + [{"text": None}])
    task = ht.TextClassification()

    def never() -> None:
        raise AssertionError

    with pytest.raises(DataError, match=r"1 of 10 given rows have no text \(row 29: None\): expected text"):
        predict_table(known_answers(never), functions_of(task), task, ["a", "b"], source, tmp_path / "out.csv", chunk_rows=10)


def test_a_file_that_grows_is_refused(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [{"text": "sail"}] * 3)

    def grow() -> None:
        with source.open("a") as file:
            file.write("oven\n")

    task = ht.TextClassification()
    with pytest.raises(DataError, match="changed while it was read: it had 3 rows"):
        predict_table(known_answers(grow), functions_of(task), task, ["a", "b"], source, tmp_path / "out.csv", chunk_rows=1)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_pairs_and_columns_of_other_names(tiny_bert: Path, tmp_path: Path) -> None:
    folder = save_untrained(
        "text-classification", tiny_bert, ["a", "b"], tmp_path / "model", text="first", text_pair="second", max_length=64
    )
    model = ht.load(folder)
    pairs = [("sail", "oven dough"), ("", "pawn"), ("deck", "")]
    rows = [{"first": first, "second": second} for first, second in pairs]
    expected = [answer["label"] for answer in model.predict(pairs, precision="fp32")]
    table_of(model, write_csv(tmp_path / "in.csv", rows), tmp_path / "a.jsonl")
    renamed = [{"x": row["first"], "second": row["second"]} for row in rows]
    table_of(model, write_csv(tmp_path / "renamed.csv", renamed), tmp_path / "b.jsonl", {"text": "x"})
    assert [row["prediction"] for row in read(tmp_path / "a.jsonl")] == expected
    assert [row["prediction"] for row in read(tmp_path / "b.jsonl")] == expected
    with pytest.raises(ConfigError, match="this model reads text, text_pair, found the role 'texts'; did you mean 'text'"):
        table_of(model, tmp_path / "in.csv", tmp_path / "c.csv", {"texts": "x"})
    single = save_untrained("text-classification", tiny_bert, ["a", "b"], tmp_path / "single", text_pair="", max_length=64)
    assert len(ht.load(single).predict(["sail"])) == 1, "no second text by name is no pair"
