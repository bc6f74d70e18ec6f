"""What `hygiene.json` says of texts, pairs, sentences and images, and where a run and `validate` tell it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

import hf_transfer as ht
from hf_transfer.data import near_duplicates
from hf_transfer.disk import read_json
from hf_transfer.evidence.hygiene import EXCERPT, describe_data, is_sampled, overlap_notes
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.files import COMPARISON_FILE, EXAMPLES_FILE, HYGIENE_FILE
from hf_transfer.task_configs import Task
from tests.conftest import Run, make_rows, make_sentences, write_jsonl

ARMS = {"full": ht.Arm(learning_rate=3e-3, num_epochs=1)}
LONG = "a sentence that stands in training and in test with another end and is longer than may be shown " * 5


def study_of(task: Task, data: Path, checkpoint: Path, max_test_rows: int | None = None, **settings: Any) -> Study:
    recipe = ht.Recipe(name="data", task=task, data=ht.DataConfig(str(data), **settings), checkpoint=str(checkpoint), arms=ARMS)
    return prepare_study(recipe, ["full"], ["all"], [0], Accelerator(cpu=True), max_test_rows)


def texts(folder: Path, train: list[dict[str, str]], **others: list[dict[str, str]]) -> Path:
    folder.mkdir()
    for split, rows in {"train": train, **others}.items():
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def test_a_person_is_told_that_documents_count(tmp_path: Path, tiny_bert: Path) -> None:
    test = [row | {"document": number // 6} for number, row in enumerate(make_rows(12, seed=9))]
    data = texts(tmp_path / "data", make_rows(30), test=test)
    assert (
        "the 12 test rows are of 2 documents (column 'document'), each one draw of the intervals"
        in study_of(ht.TextClassification(max_length=48), data, tiny_bert).notices
    )


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Give a folder whose training rows 30 to 34 are: nearly test row 0, exactly test row 1, empty, and row 3 again under two labels."""
    train, test = make_rows(30, seed=1), make_rows(12, seed=2)
    test[0] = {"text": f"{LONG} yours, Ada", "label": "boats"}
    train += [{"text": f"{LONG.upper()}\n--\nGrace", "label": "boats"}, test[1], {"text": " ", "label": "chess"}]
    train += [{"text": train[3]["text"], "label": label} for label in ("boats", "bread")]
    return texts(tmp_path / "planted", train, test=[*test, {"text": "", "label": "chess"}])


def test_what_was_planted_is_found(planted: Path, tiny_bert: Path) -> None:
    study = study_of(ht.TextClassification(max_length=32), planted, tiny_bert)
    hygiene = json.loads(json.dumps(describe_data(study, private=False), allow_nan=False))
    assert hygiene == describe_data(study, private=False), "JSON holds all of it, and it is the same twice"
    assert list(hygiene) == ["private", "splits", "overlap", "conflicts", "floors"]
    train, test = hygiene["splits"]["train"], hygiene["splits"]["test"]
    assert (train["rows"], train["empty_rows"], train["duplicate_rows"], train["conflicting_rows"]) == (34, 1, 2, 3)
    assert (test["rows"], test["empty_rows"], test["duplicate_rows"], test["conflicting_rows"]) == (13, 1, 0, 0)
    assert sum(train["label_counts"].values()) == sum(train["lengths"]["counts"]) == 34
    assert train["lengths"]["edges"] == test["lengths"]["edges"]
    overlap = hygiene["overlap"]
    assert (overlap["exact_rows"], overlap["near_rows"], overlap["threshold"]) == (1, 1, 0.8)
    assert (overlap["searched_train_rows"], overlap["searched_test_rows"]) == (34, 13)
    near, exact = overlap["pairs"]
    assert (near["train_row"], near["test_row"]) == (30, 0)
    assert 0.8 <= near["similarity"] < 1
    assert len(near["train_text"]) == EXCERPT and near["train_text"].startswith(LONG[:200].upper())
    assert (exact["train_row"], exact["test_row"], exact["similarity"]) == (31, 1, 1.0)
    assert exact["train_text"] == exact["test_text"]
    (conflict,) = hygiene["conflicts"]
    assert (conflict["split"], conflict["row_ids"]) == ("train", [3, 33, 34]), "rows as they stand in the file"
    assert {"boats", "bread"} <= set(conflict["labels"])


def test_private_hygiene_holds_no_piece_of_text(planted: Path, tiny_bert: Path) -> None:
    study = study_of(ht.TextClassification(max_length=32), planted, tiny_bert)
    open_, private = describe_data(study, private=False), describe_data(study, private=True)
    assert private["private"] is True
    runs = [text.split()[start : start + 3] for text in map(str.lower, study.corpus.test.inputs) for start in range(len(text.split()) - 2)]
    in_open, in_private = ([run for run in runs if " ".join(run) in json.dumps(hygiene).lower()] for hygiene in (open_, private))
    assert len(in_open) > 10 and in_private == []
    for entry in [*open_["overlap"]["pairs"], *open_["conflicts"]]:
        entry.update({key: None for key in entry if key.endswith("text")})
    assert private == open_ | {"private": True}, "and all the rest"


def test_labels_that_contradict_those_of_another_split_are_told_for_both(tmp_path: Path, tiny_bert: Path) -> None:
    train, test = make_rows(12, seed=1), make_rows(6, seed=2)
    test[5] = {"text": train[7]["text"], "label": next(row["label"] for row in train if row["label"] != train[7]["label"])}
    data = texts(tmp_path / "contradiction", train, test=test)
    hygiene = describe_data(study_of(ht.TextClassification(max_length=32), data, tiny_bert), private=False)
    assert [(entry["split"], entry["row_ids"]) for entry in hygiene["conflicts"]] == [("train", [7]), ("test", [5])]
    assert all(entry["labels"] == [train[7]["label"], test[5]["label"]] for entry in hygiene["conflicts"])
    assert [hygiene["splits"][split]["conflicting_rows"] for split in ("train", "test")] == [1, 1]
    assert hygiene["overlap"]["exact_rows"] == 1


def test_floors_are_what_dummies_reach(tmp_path: Path, tiny_bert: Path) -> None:
    train = [row for place, row in enumerate(make_rows(90, seed=1)) if row["label"] == "boats" or place % 3]
    data = texts(tmp_path / "skewed", train, test=make_rows(300, seed=2))
    study = study_of(ht.TextClassification(max_length=32), data, tiny_bert)
    floors = describe_data(study, private=False)["floors"]
    labels = study.train.labels
    dummy = DummyClassifier(strategy="most_frequent").fit(labels, labels)
    guesses = dummy.predict(study.test.labels)
    assert floors["majority"]["accuracy"] == pytest.approx(accuracy_score(study.test.labels, guesses))
    assert floors["majority"]["f1_macro"] == pytest.approx(f1_score(study.test.labels, guesses, average="macro"))
    assert floors["majority"]["mcc"] == matthews_corrcoef(study.test.labels, guesses) == 0
    shares = np.bincount(labels) / len(labels), np.bincount(study.test.labels) / len(study.test.labels)
    # Five draws over 300 rows: a standard error of 0.012.
    assert floors["random"]["accuracy"] == pytest.approx(float(shares[0] @ shares[1]), abs=0.05)
    assert floors["random"]["accuracy"] != floors["majority"]["accuracy"]
    assert set(floors["majority"]) == set(floors["random"]) == set(study.metrics.names)


def test_pairs_of_texts_are_compared_as_pairs(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [
        {"text": row["text"], "text_pair": other["text"], "label": row["label"]}
        for row, other in zip(make_rows(30, seed=1), make_rows(30, seed=5), strict=True)
    ]
    test = [{**rows[4], "text_pair": f"{rows[4]['text_pair']}!"}, {**rows[5], "text_pair": rows[6]["text_pair"]}, *rows[7:9]]
    hygiene = describe_data(
        study_of(ht.TextClassification(max_length=64), texts(tmp_path / "pairs", rows, test=test), tiny_bert), private=False
    )
    assert hygiene["overlap"]["near_rows"] == 1
    assert hygiene["overlap"]["exact_rows"] == 2
    assert hygiene["overlap"]["pairs"][0]["train_row"] == 4
    assert hygiene["overlap"]["pairs"][0]["test_text"] == f"{test[0]['text']}\n{test[0]['text_pair']}"[:EXCERPT]


def test_sentences(tmp_path: Path, tiny_bert: Path) -> None:
    train, test = make_sentences(30, seed=1), make_sentences(60, seed=2)
    test[2] = {"tokens": [*train[9]["tokens"], "!"], "ner_tags": [*train[9]["ner_tags"], "O"]}
    contradicted = {"tokens": train[4]["tokens"], "ner_tags": ["B-chess", *train[4]["ner_tags"][1:]]}
    train += [contradicted, {"tokens": [], "ner_tags": []}]
    data = texts(tmp_path / "sentences", train, validation=train[:2], test=[*test, {"tokens": [], "ner_tags": []}])
    study = study_of(ht.TokenClassification(max_length=32), data, tiny_bert)
    hygiene = json.loads(json.dumps(describe_data(study, private=False), allow_nan=False))
    assert list(hygiene["splits"]) == ["train", "validation", "test"]
    of_train, of_test = hygiene["splits"]["train"], hygiene["splits"]["test"]
    assert set(of_train["label_counts"]) == {"boats", "chess"}
    assert (of_train["lengths"]["unit"], of_train["empty_rows"], of_test["empty_rows"]) == ("words", 1, 1)
    assert hygiene["overlap"]["near_rows"] == 1
    assert (hygiene["overlap"]["pairs"][0]["train_row"], hygiene["overlap"]["pairs"][0]["test_row"]) == (9, 2)
    (conflict,) = hygiene["conflicts"]
    assert conflict["row_ids"] == [4, 30]
    assert conflict["text"] == " ".join(train[4]["tokens"])
    assert " ".join(contradicted["ner_tags"]) in conflict["labels"]
    outside = np.mean([tag == "O" for row in test for tag in row["ner_tags"]])
    assert hygiene["floors"]["majority"] == {"f1": 0, "precision": 0, "recall": 0, "accuracy": pytest.approx(outside)}
    assert 0 < hygiene["floors"]["random"]["f1"] < 0.3


def test_images_are_compared_by_their_files(photos_folder: Path, tiny_vit: Path) -> None:
    study = study_of(ht.ImageClassification(), photos_folder, tiny_vit)
    hygiene = json.loads(json.dumps(describe_data(study, private=False), allow_nan=False))
    overlap = hygiene["overlap"]
    assert (overlap["near_rows"], overlap["threshold"], overlap["exact_rows"], overlap["pairs"]) == (None, None, 0, [])
    assert "byte for byte" in overlap["method"]
    assert hygiene["splits"]["train"]["lengths"] == {"unit": "pixels of the longer side", "edges": [32, 45], "counts": [90]}
    picture = study.corpus.test.inputs[0]
    uri = study.task.show(picture)["image"]
    assert uri.startswith("data:image/png;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert shown.size == picture.size == (40, 32), "never enlarged"


def test_dropped_overlap_and_a_sample_of_test_are_told_as_they_are(planted: Path, tiny_bert: Path) -> None:
    task = ht.TextClassification(max_length=32)
    dropped = describe_data(study_of(task, planted, tiny_bert, drop_overlap=True), private=False)
    assert (dropped["splits"]["train"]["rows"], dropped["splits"]["train"]["empty_rows"]) == (33, 1)
    assert dropped["overlap"]["exact_rows"] == 1, "it stood there, and was dropped"
    assert [pair["train_row"] for pair in dropped["overlap"]["pairs"]] == [30]
    sampled = describe_data(study_of(task, planted, tiny_bert, max_test_rows=1), private=False)
    assert sampled["overlap"]["searched_test_rows"] == sampled["splits"]["test"]["rows"] == 1
    assert sampled["overlap"]["exact_rows"] == 1, "of all test rows, as result.json has it"


def test_a_test_split_without_labels_is_left_out(tmp_path: Path, tiny_bert: Path) -> None:
    rows = make_rows(20, seed=1)
    unlabelled = [{"text": row["text"]} for row in rows[:5]]
    data = texts(tmp_path / "unlabelled", rows, validation=make_rows(7, seed=3), test=unlabelled)
    hygiene = describe_data(study_of(ht.TextClassification(max_length=32), data, tiny_bert), private=False)
    assert {split: found["rows"] for split, found in hygiene["splits"].items()} == {"train": 20, "test": 7}
    assert hygiene["overlap"]["exact_rows"] == 0


def test_a_sampled_search_is_told_as_one(planted: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(ht.TextClassification(max_length=32), planted, tiny_bert)
    whole = describe_data(study, private=False)
    assert not is_sampled(whole) and "sample" not in whole["overlap"]["method"]
    monkeypatch.setattr(near_duplicates, "MAX_CANDIDATES", 0)
    sampled = describe_data(study, private=False)
    assert is_sampled(sampled) and "sample" in sampled["overlap"]["method"]
    searched = sampled["overlap"]["searched_train_rows"]
    assert searched < 34
    sampled["overlap"]["near_rows"] = 3
    assert overlap_notes(sampled)[0] == f"3 training rows nearly stand in test too (of {searched} looked at, similarity of at least 0.8)"


def test_a_run_writes_it_first_and_tells_what_is_near(planted: Path, tiny_bert: Path, run: Run, tmp_path: Path) -> None:
    words = ["--dataset", planted, "--checkpoint", tiny_bert, "--arms", "head", "--epochs", 1, "--max-length", 32]
    code, _, told = run("run", "text", *words, "--output-dir", tmp_path / "run")
    assert code == 0, told
    assert "note: 1 training rows nearly stand in test too (similarity of at least 0.8)\n" in told
    assert "note: 3 rows hold an input that stands under another label too\n" in told
    written = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in (HYGIENE_FILE, EXAMPLES_FILE, COMPARISON_FILE)}
    assert sorted(written, key=written.__getitem__) == list(written), "comparison.json comes last and marks the run as finished"
    hygiene = read_json(tmp_path / "run" / HYGIENE_FILE)
    assert hygiene["overlap"]["near_rows"] == 1 and hygiene["private"] is False
    code, out, told = run("validate", "text", *words)
    assert code == 0, told
    near = "1 more nearly stand in test, 2 repeat an earlier one; inputs that stand under another label too: 3 in training, 0 in test"
    assert near in out


def test_a_private_run_writes_no_text(planted: Path, tiny_bert: Path, run: Run, tmp_path: Path) -> None:
    words = ["--dataset", planted, "--checkpoint", tiny_bert, "--arms", "head", "--epochs", 1, "--max-length", 32, "--private-data"]
    code, _, told = run("run", "text", *words, "--output-dir", tmp_path / "run")
    assert code == 0, told
    rows = [json.loads(line)["text"] for split in ("train", "test") for line in (planted / f"{split}.jsonl").read_text().splitlines()]
    for name in (HYGIENE_FILE, EXAMPLES_FILE):
        path = tmp_path / "run" / name
        assert read_json(path)["private"] is True
        assert not [text for text in rows if len(text) > 10 and text[:20] in path.read_text()]
    assert read_json(tmp_path / "run" / EXAMPLES_FILE)["worst_errors"], "what there is to say without text is said"
