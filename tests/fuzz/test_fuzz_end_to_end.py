import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_transfer as ht
from tests.conftest import make_rows, make_sentences
from tests.fuzz.strategies import damaged, delimited, json_lines, result_or_sentence, scalars, texts, wild_texts, write

# Each example loads a checkpoint, or runs a model.
few = settings(max_examples=settings.default.max_examples // 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


TOPICS = make_rows(30)
NAMES = make_sentences(30)
labelled = st.one_of(
    st.lists(st.fixed_dictionaries({"text": texts, "label": st.sampled_from("ab")}), max_size=20).map(lambda odd: TOPICS + odd),
    st.lists(st.fixed_dictionaries({"text": texts | scalars, "label": scalars}), max_size=3).map(lambda odd: odd + TOPICS),
    st.just(TOPICS),
)
csv_files = labelled.map(lambda rows: delimited({name: [str(row[name]) for row in rows] for name in ("text", "label")}, ","))


def validate(task: Any, source: Path, checkpoint: Path) -> str | None:
    recipe = ht.Recipe(name="fuzz", task=task, data=ht.DataConfig(str(source)), checkpoint=str(checkpoint))
    return result_or_sentence(lambda: str(ht.validate(recipe, arms=["head"])))


@few
@given(csv_data=damaged(csv_files), json_data=damaged(labelled.map(json_lines)), suffix=st.sampled_from([".csv", ".jsonl"]))
def test_any_file_of_texts_is_validated_or_refused(folder: Path, tiny_bert: Path, csv_data: bytes, json_data: bytes, suffix: str) -> None:
    path = write(folder / f"texts{suffix}", csv_data if suffix == ".csv" else json_data)
    found = validate(ht.TextClassification(max_length=32), path, tiny_bert)
    assert found is None or "training rows" in found


odd_sentences = st.lists(
    st.lists(st.tuples(texts, st.sampled_from(["O", "B-boats", "I-boats", "S-x", "E-x", "boats", ""])), max_size=6), max_size=5
).map(lambda rows: NAMES + [{"tokens": [word for word, _ in row], "ner_tags": [tag for _, tag in row]} for row in rows])


@few
@given(
    data=damaged(odd_sentences.map(json_lines))
    | damaged(st.just("\n\n".join("\n".join(map(" ".join, zip(row["tokens"], row["ner_tags"], strict=True))) for row in NAMES).encode()))
)
def test_any_file_of_words_is_validated_or_refused(folder: Path, tiny_bert: Path, data: bytes) -> None:
    path = write(folder / ("words.jsonl" if data.lstrip(b"\xef\xbb\xbf").startswith(b"{") else "words.conll"), data)
    found = validate(ht.TokenClassification(max_length=32), path, tiny_bert)
    assert found is None or "training rows" in found


@few
@given(inputs=st.lists(wild_texts | scalars | st.lists(wild_texts, max_size=3), max_size=5))
def test_any_input_is_predicted_or_refused(topics_model: Path, names_model: Path, inputs: list[Any]) -> None:
    for model in (ht.load(topics_model), ht.load(names_model)):
        answers = result_or_sentence(lambda: model.predict(inputs))  # noqa: B023
        assert answers is None or len(answers) == len(inputs)


@few
@given(rows=st.lists(texts, min_size=1, max_size=9), suffix=st.sampled_from([".csv", ".jsonl"]), is_ner=st.booleans())
def test_odd_texts_in_a_file_are_predicted_as_they_are_in_python(
    folder: Path, topics_model: Path, names_model: Path, rows: list[str], suffix: str, is_ner: bool
) -> None:
    model = ht.load(names_model if is_ner else topics_model)
    data = (
        delimited({"text": rows, "id": [str(row) for row in range(len(rows))]}, ",")
        if suffix == ".csv"
        else json_lines([{"text": row} for row in rows])
    )
    (folder / "out.jsonl").unlink(missing_ok=True)
    done = model.predict_file(write(folder / f"in{suffix}", data), folder / "out.jsonl", precision="fp32")
    assert done.num_rows == len(rows)


def test_odd_bytes_on_the_command_line_end_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from hf_transfer.cli import run_cli; run_cli()", "validate", "text", "--dataset"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([*command, b"caf\xe9\n.csv"], cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(b"error: ") and len(ended.stderr.splitlines()) == 1, ended.stderr
