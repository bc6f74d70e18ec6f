"""The surest errors and the labels that are probably wrong, on labels that were made wrong on purpose."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

import hf_transfer as ht
from hf_transfer.data.tags import find_entities
from hf_transfer.disk import read_json
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evidence.errors import _surest, average, describe_errors, find_label_errors
from hf_transfer.evidence.hygiene import EXCERPT, MAX_SHOWN
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.files import EXAMPLES_FILE
from hf_transfer.tasks import text_classification
from tests.conftest import make_rows, make_sentences, write_jsonl

ARMS = {"full": ht.Arm(learning_rate=3e-3, num_epochs=1)}


def rows_of(probabilities: np.ndarray, references: np.ndarray) -> Predictions:
    return Predictions(
        [f"class {index}" for index in range(probabilities.shape[1])],
        references,
        probabilities.argmax(axis=1),
        probabilities.astype(np.float32),
        np.arange(len(references) + 1),
    )


def planted(num_rows: int, share: float, seed: int, skill: float = 3.0, num_classes: int = 4) -> tuple[Predictions, np.ndarray]:
    """Give what a decent model, of unequal confidence by class, says of rows of which a share has a wrong label, and which those are."""
    rng = np.random.default_rng(seed)
    true = rng.integers(num_classes, size=num_rows)
    logits = rng.normal(0, 1, (num_rows, num_classes)) + np.linspace(0, 1, num_classes)
    logits[np.arange(num_rows), true] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = rng.random(num_rows) < share
    return rows_of(probabilities, np.where(wrong, (true + rng.integers(1, num_classes, num_rows)) % num_classes, true)), wrong


@pytest.mark.parametrize("seed", range(3))
def test_most_planted_label_errors_are_found_and_few_others(seed: int) -> None:
    predicted, wrong = planted(2000, 0.05, seed, skill=4.0)
    found = find_label_errors(predicted)
    assert (found & wrong).sum() > 0.66 * wrong.sum()
    assert (found & wrong).sum() > 0.95 * found.sum()
    surest = _surest(predicted, found, predicted.probabilities.max(axis=1))
    assert len(surest) == MAX_SHOWN and wrong[surest].mean() >= 0.9


@pytest.mark.parametrize("seed", range(3))
def test_several_seeds_together_know_more_than_one(seed: int) -> None:
    one, wrong = planted(2000, 0.05, seed, skill=1.5)
    rng = np.random.default_rng(seed)

    def another() -> Predictions:
        logits = np.log(one.probabilities) + rng.normal(0, 2, one.probabilities.shape)
        return rows_of(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), one.references)

    seeds = [another() for _ in range(5)]
    together = average(seeds, text_classification.decode)

    def precision(predicted: Predictions) -> float:
        return float(wrong[find_label_errors(predicted)].mean())

    assert precision(together) > max(precision(one) for one in seeds)


def test_the_definition_row_by_row() -> None:
    predicted, _ = planted(300, 0.2, seed=1, skill=2.0)
    probabilities = predicted.probabilities.astype(np.float64)
    thresholds = [probabilities[predicted.references == label, label].mean() for label in range(4)]
    for row, found in enumerate(find_label_errors(predicted)):
        confident = [label for label in range(4) if probabilities[row, label] >= thresholds[label]]
        likeliest = max(confident, key=lambda label: probabilities[row, label], default=None)
        label = predicted.references[row]
        assert found == (likeliest is not None and likeliest != label and probabilities[row].max() > probabilities[row, label])


def test_right_labels_and_a_model_that_knows_nothing_raise_no_suspicion() -> None:
    predicted, _ = planted(500, 0.0, seed=2, skill=30.0)
    assert not find_label_errors(predicted).any()
    unsure = rows_of(np.full((40, 4), 0.25), np.arange(40) % 4)
    assert not find_label_errors(unsure).any()
    one = rows_of(np.array([[0.1, 0.9]]), np.array([0]))
    assert not find_label_errors(one).any(), "nothing is known of a class that no label names"
    assert find_label_errors(rows_of(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))).tolist() == []


def test_permuted_rows_permute_the_answer() -> None:
    predicted, _ = planted(400, 0.1, seed=3)
    order = np.random.default_rng(0).permutation(400)
    permuted = rows_of(predicted.probabilities[order], predicted.references[order])
    assert find_label_errors(permuted).tolist() == find_label_errors(predicted)[order].tolist()


def study_of(task: Any, data: Path, checkpoint: Path, train: list[dict], test: list[dict]) -> Study:
    data.mkdir()
    write_jsonl(data / "train.jsonl", train)
    write_jsonl(data / "test.jsonl", test)
    recipe = ht.Recipe(name="data", task=task, data=ht.DataConfig(str(data)), checkpoint=str(checkpoint), arms=ARMS)
    return prepare_study(recipe, ["full"], ["all"], [0], Accelerator(cpu=True))


def sure_of(study: Study, classes: np.ndarray, confidences: np.ndarray) -> Predictions:
    """Give predictions of these classes with these confidences; the other classes share the rest."""
    num_classes = len(study.labels)
    probabilities = np.repeat((1 - confidences)[:, None] / (num_classes - 1), num_classes, axis=1)
    probabilities[np.arange(len(classes)), classes] = confidences
    return Predictions(study.labels, study.test.labels, classes, probabilities.astype(np.float32), study.test.layout.first_item)


def test_texts_are_described_as_the_contract_says(tmp_path: Path, tiny_bert: Path) -> None:
    test = [*make_rows(40, seed=2), {"text": "", "label": "chess"}, {"text": "long " * 200, "label": "boats"}]
    study = study_of(ht.TextClassification(max_length=32), tmp_path / "rows", tiny_bert, make_rows(60, seed=1), test)
    right, rng = study.test.labels, np.random.default_rng(0)
    wrong = np.isin(np.arange(42), [3, 40, 41])
    confidences = rng.uniform(0.5, 0.8, 42) + 0.19 * wrong
    confidences[40] = 0.999
    predicted = sure_of(study, np.where(wrong, (right + 1) % 3, right), confidences)
    found = describe_errors(study, {7: predicted}, "full", "all", 7, private=False)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == ["private", "arm", "budget", "seed", "worst_errors", "suspected_label_errors"]
    assert (found["private"], found["arm"], found["budget"], found["seed"]) == (False, "full", "all", 7)
    assert {entry["row_id"] for entry in found["worst_errors"]} == {3, 40, 41}
    assert [entry["confidence"] for entry in found["worst_errors"]] == sorted(confidences[wrong].astype(np.float32).tolist(), reverse=True)
    first = found["worst_errors"][0]
    assert (first["row_id"], first["text"], first["image"], first["reference"]) == (40, "", None, "chess")
    assert first["prediction"] == study.labels[predicted.predictions[40]]
    assert first["reference_probability"] == pytest.approx(0.0005, abs=1e-5)
    assert {entry["row_id"] for entry in found["suspected_label_errors"]} == {3, 40, 41}
    texts = {entry["row_id"]: entry["text"] for entry in found["suspected_label_errors"]}
    assert texts[3] == test[3]["text"][:EXCERPT] and texts[41].endswith("…") and len(texts[41]) == EXCERPT
    private = describe_errors(study, {7: predicted}, "full", "all", 7, private=True)
    for kind in ("worst_errors", "suspected_label_errors"):
        assert private[kind] == [entry | {"text": None} for entry in found[kind]]


def test_sentences_are_described_around_the_word(tmp_path: Path, tiny_bert: Path) -> None:
    test = make_sentences(30, seed=2)
    long = {key: [word for row in make_sentences(60, seed=3) for word in row[key]] for key in ("tokens", "ner_tags")}
    test += [{"tokens": [], "ner_tags": []}, long]
    study = study_of(ht.TokenClassification(max_length=32), tmp_path / "rows", tiny_bert, make_sentences(40, seed=1), test)
    tags = [*(tag for row in test for tag in row["ner_tags"])]
    first_item = study.test.layout.first_item
    # An entity of row 5, one in the middle of the long row, and an empty word stretch of row 0 are seen otherwise.
    in_row_5 = first_item[5] + next(place for place, tag in enumerate(test[5]["ner_tags"]) if tag == "B-boats" or tag == "B-chess")
    in_long = first_item[31] + next(place for place, tag in enumerate(long["ner_tags"]) if place > 300 and tag == "O")
    classes = study.test.labels.copy()
    classes[in_row_5] = study.labels.index("O")
    classes[in_long] = study.labels.index("B-chess")
    confidences = np.full(len(tags), 0.9)
    confidences[[in_row_5, in_long]] = 0.95, 0.99
    predicted = sure_of(study, classes, confidences)
    found = describe_errors(study, {0: predicted}, "full", "all", 0, private=False)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [entry["row_id"] for entry in found["worst_errors"]] == [31, 5]
    assert {31, 5} == {entry["row_id"] for entry in found["suspected_label_errors"]}
    for entry in found["worst_errors"]:
        row = test[entry["row_id"]]
        start, end = entry["first_word"], entry["first_word"] + len(entry["words"])
        assert entry["words"] == row["tokens"][start:end] and len(" ".join(entry["words"])) <= EXCERPT
        whole = [(each.start, each.end, each.type) for each in find_entities(row["ner_tags"]) if each.start >= start and each.end <= end]
        shown = {(each["start"] + start, each["end"] + start, each["label"]) for each in entry["reference"]}
        assert set(whole) <= shown and len(shown) <= len(whole) + 2
    long_entry, short_entry = found["worst_errors"]
    assert len(" ".join(long_entry["words"])) > EXCERPT - 20 and short_entry["words"] == test[5]["tokens"]
    assert long_entry["word"] == in_long - first_item[31] - long_entry["first_word"]
    assert {"start": long_entry["word"], "end": long_entry["word"] + 1, "label": "chess"} in long_entry["prediction"]
    assert (short_entry["confidence"], short_entry["first_word"]) == (pytest.approx(0.95), 0)
    assert len(short_entry["prediction"]) < len(short_entry["reference"])
    private = describe_errors(study, {0: predicted}, "full", "all", 0, private=True)
    assert private["worst_errors"] == [entry | {"words": None} for entry in found["worst_errors"]]
    assert [entry["words"] for entry in private["suspected_label_errors"]] == [None, None]


def test_a_word_longer_than_an_excerpt_is_cut(tmp_path: Path, tiny_bert: Path) -> None:
    test = [*make_sentences(3, seed=2), {"tokens": ["the", "x" * 1000, "the"], "ner_tags": ["O", "B-boats", "O"]}]
    study = study_of(ht.TokenClassification(max_length=32), tmp_path / "rows", tiny_bert, make_sentences(40, seed=1), test)
    predicted = sure_of(study, np.zeros_like(study.test.labels), np.full(len(study.test.labels), 0.9))
    (entry,) = [
        entry for entry in describe_errors(study, {0: predicted}, "full", "all", 0, private=False)["worst_errors"] if entry["row_id"] == 3
    ]
    assert (len(entry["words"]), len(entry["words"][0]), entry["word"]) == (1, EXCERPT, 0)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_run_of_images_writes_its_examples(photos_folder: Path, tiny_vit: Path, tmp_path: Path, seeds: list[int]) -> None:
    recipe = ht.Recipe(
        name="photos", task=ht.ImageClassification(), data=ht.DataConfig(str(photos_folder)), checkpoint=str(tiny_vit), arms=ARMS
    )
    ht.run(recipe, arms=["full"], seeds=seeds, output_dir=tmp_path / "run")
    found = read_json(tmp_path / "run" / EXAMPLES_FILE)
    comparison = read_json(tmp_path / "run" / "comparison.json")["recommendation"]
    assert (found["arm"], found["budget"], found["seed"]) == (comparison["arm"], comparison["budget"], comparison["seed"])
    assert 0 < len(found["worst_errors"]) <= MAX_SHOWN
    for entry in found["worst_errors"] + found["suspected_label_errors"]:
        assert entry["image"].startswith("data:image/png;base64,") and entry["text"] is None
        assert entry["reference"] != entry["prediction"]
