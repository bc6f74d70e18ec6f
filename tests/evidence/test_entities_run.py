"""Named entities through a whole run: long documents, the loss by word and by row, the numbers and the answers."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2

import hf_transfer as ht
from hf_transfer.data.tags import find_entities
from hf_transfer.evidence.arms import build_arm
from hf_transfer.evidence.fit import fit
from hf_transfer.evidence.measure import _mean_over_rows, evaluate
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.tasks.items import item_losses
from hf_transfer.training.optimization import build_optimizer, rate_factor
from tests.conftest import make_sentences, write_jsonl

ARMS = {
    "scratch": ht.Arm(init="scratch", learning_rate=3e-3, num_epochs=3),
    "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=2),
    "lora": ht.Arm(tuning="lora", learning_rate=2e-3, num_epochs=2),
    "full": ht.Arm(learning_rate=5e-3, num_epochs=25),
}
SHORT = ht.Arm(learning_rate=3e-3, num_epochs=3)


def joined(rows: list[dict[str, list[str]]]) -> dict[str, list[str]]:
    """Make one document of many sentences."""
    return {key: [word for row in rows for word in row[key]] for key in ("tokens", "ner_tags")}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of sentences among which documents of 3,000 words and more stand, in training and in test."""
    folder = tmp_path_factory.mktemp("documents")
    long = {split: joined(make_sentences(500, seed=seed)) for split, seed in (("train", 3), ("test", 4))}
    assert all(len(row["tokens"]) >= 3000 for row in long.values())
    write_jsonl(folder / "train.jsonl", [*make_sentences(40, seed=1), long["train"]])
    write_jsonl(folder / "test.jsonl", [long["test"], *make_sentences(20, seed=2), {"tokens": [], "ner_tags": []}])
    return folder


def recipe_of(documents: Path, tiny_bert: Path, **task: object) -> ht.Recipe:
    return ht.Recipe(
        name="names",
        task=ht.TokenClassification(max_length=32, **task),
        data=ht.DataConfig(str(documents)),
        checkpoint=str(tiny_bert),
        arms=ARMS,
        training=ht.TrainingConfig(batch_size=8, precision="fp32", dropout=0.0, micro_batch_tokens=256),
    )


@pytest.fixture(scope="module")
def comparison(documents: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> ht.Comparison:
    return ht.run(recipe_of(documents, tiny_bert), output_dir=tmp_path_factory.mktemp("runs") / "names")


def test_no_word_is_lost_and_the_scores_are_seqevals(comparison: ht.Comparison, documents: Path) -> None:
    rows = [json.loads(line) for line in (documents / "test.jsonl").read_text().splitlines()]
    for arm in ARMS:
        cell = comparison.folder / arm / "budget-all" / "seed-0"
        result = json.loads((cell / "result.json").read_text())
        labels = json.loads((cell / "model" / "hf_transfer.json").read_text())["labels"]
        table = pq.read_table(cell / "predictions.parquet").to_pydict()
        assert table["row_id"] == list(range(22))
        references, predictions = ([[labels[tag] for tag in row] for row in table[name]] for name in ("reference", "prediction"))
        assert references == [row["ner_tags"] for row in rows]
        assert [len(row) for row in predictions] == [len(row["tokens"]) for row in rows] == [len(row) for row in table["probabilities"]]
        strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        test = result["metrics"]["test"]
        assert list(test) == ["loss", "loss_standard_error", "f1", "precision", "recall", "accuracy"]
        assert test["f1"] == pytest.approx(seqeval.f1_score(references, predictions, **strict), abs=1e-12)
        assert test["precision"] == pytest.approx(seqeval.precision_score(references, predictions, **strict), abs=1e-12)
        assert test["recall"] == pytest.approx(seqeval.recall_score(references, predictions, **strict), abs=1e-12)
        # Legal tags: strict and lenient counting agree.
        assert test["f1"] == pytest.approx(seqeval.f1_score(references, predictions), abs=1e-12)
    assert comparison.values["primary_metric"] == "f1"
    assert {entry["metric"] for entry in comparison.values["gains"]} == {"f1", "precision", "recall", "accuracy"}
    assert "f1" in comparison.table()
    for gain in comparison.values["gains"]:
        ours, theirs = (
            json.loads((comparison.folder / arm / "budget-all" / "seed-0" / "result.json").read_text())["metrics"]["test"][gain["metric"]]
            for arm in (gain["arm"], gain["baseline"])
        )
        assert gain["delta"] == pytest.approx(ours - theirs, abs=1e-9)
    full = next(entry for entry in comparison.values["arms"] if (entry["arm"], entry["metric"]) == ("full", "f1"))
    assert full["mean"] > 0.5, "something was learned"
    assert full["ci_low"] <= full["mean"] <= full["ci_high"]


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_saved_model_answers_as_it_was_tested(comparison: ht.Comparison, documents: Path, arm: str) -> None:
    cell = comparison.folder / arm / "budget-all" / "seed-0"
    model = ht.load(cell)
    rows = [json.loads(line) for line in (documents / "test.jsonl").read_text().splitlines()]
    answers = model.predict([row["tokens"] for row in rows], precision="fp32")
    table = pq.read_table(cell / "predictions.parquet").to_pydict()
    found = 0
    for row, predicted, probabilities, answer in zip(rows, table["prediction"], table["probabilities"], answers, strict=True):
        tags = [model.labels[tag] for tag in predicted]
        text = " ".join(row["tokens"])
        expected = find_entities(tags)
        found += len(expected)
        starts = np.cumsum([0, *(len(word) + 1 for word in row["tokens"])])
        assert [(entity["start"], entity["end"], entity["label"]) for entity in answer["entities"]] == [
            (starts[entity.start], starts[entity.end] - 1, entity.type) for entity in expected
        ]
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in answer["entities"])
        chances = [of_word[tag] for of_word, tag in zip(probabilities, predicted, strict=True)]
        assert [entity["score"] for entity in answer["entities"]] == pytest.approx(
            [np.mean(chances[entity.start : entity.end]) for entity in expected], abs=1e-4
        )
    assert answers[21] == {"entities": []}
    assert found > 100 or arm != "full"
    (answer,) = model.predict(["of anchor,  queen"]) if arm == "full" else [None]
    if answer:
        assert [(entity["text"], entity["start"]) for entity in answer["entities"]] == [("anchor", 3), ("queen", 12)]


def prepared(recipe: ht.Recipe) -> Study:
    return prepare_study(recipe, ["full"], ["all"], [0], Accelerator(cpu=True))


@pytest.mark.parametrize("loss_per", ["word", "row"])
def test_the_same_updates_as_a_plain_loop_over_whole_rows(documents: Path, tiny_bert: Path, loss_per: str) -> None:
    """A row's windows share an update; its loss is sum(w l) / sum(w) over words, w = 1 or 1 / words of the row."""
    study = prepared(recipe_of(documents, tiny_bert, loss_per=loss_per))
    rows, validation_rows = study.draw("all", 0)
    ours = build_arm(study.architecture, SHORT, 0, "TOKEN_CLS")
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    done = fit(study, ours, SHORT, rows, validation_rows, 0, "x")
    assert done.rows_seen == 3 * len(rows)

    plain = build_arm(study.architecture, SHORT, 0, "TOKEN_CLS").eval()
    optimizer = build_optimizer(plain, "adamw", 3e-3, 0.01)
    per_epoch = -(-len(rows) // 8)
    for update in range(3 * per_epoch):
        epoch, place = divmod(update, per_epoch)
        batch = np.random.default_rng([0, 1, epoch]).permutation(len(rows))[place * 8 : place * 8 + 8]
        total, weight = torch.zeros(()), 0.0
        for row in batch:
            for window in rows.encoded[row]:
                logits = study.task.item_logits(plain(**study.collate([window])).logits, [window])
                labels = torch.from_numpy(rows.examples.labels[row][window.items])
                share = 1 / len(rows.examples.labels[row]) if loss_per == "row" else 1.0
                total = total + share * torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
                weight += share * len(labels)
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate_factor(update, 3 * per_epoch, 0.1, "linear")
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(dict(ours.named_parameters())[name], parameter, atol=1e-5), name
        assert parameter.shape == before[name].shape
    assert max(float((parameter.detach() - before[name]).abs().max()) for name, parameter in plain.named_parameters()) > 1e-3


def test_the_loss_and_its_error_are_over_rows(documents: Path, tiny_bert: Path) -> None:
    for loss_per in ("word", "row"):
        study = prepared(recipe_of(documents, tiny_bert, loss_per=loss_per))
        model = build_arm(study.architecture, ARMS["full"], 0, "TOKEN_CLS").eval()
        metrics, predicted = evaluate(study, model, study.test)
        losses = item_losses(torch.from_numpy(predicted.probabilities).log(), torch.from_numpy(predicted.references)).numpy()
        by_row = study.test.layout.split(losses)
        filled = [row for row in by_row if len(row)]
        expected = losses.mean() if loss_per == "word" else np.mean([row.mean() for row in filled])
        assert metrics["loss"] == pytest.approx(float(expected), abs=1e-5)


def test_the_error_of_the_loss_is_the_jackknifes_over_rows() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, 400)
    row_of_item = np.repeat(np.arange(400), sizes)
    losses = rng.gamma(1.0, 1.0, len(row_of_item)) + rng.gamma(1.0, 1.0, 400)[row_of_item]
    for shares in (np.ones(len(losses)), 1 / sizes[row_of_item]):
        mean, error = _mean_over_rows(losses, shares, row_of_item, 400)
        assert mean == pytest.approx(np.average(losses, weights=shares))
        totals, weights = (np.bincount(row_of_item, weights=values) for values in (losses * shares, shares))
        left_out = (totals.sum() - totals) / (weights.sum() - weights)
        assert error == pytest.approx(np.sqrt(399) * left_out.std(), rel=0.02)
    assert _mean_over_rows(losses[:9], np.ones(9), np.arange(9), 9)[1] == pytest.approx(losses[:9].std(ddof=1) / 3)
    assert _mean_over_rows(losses[:1], np.ones(1), np.zeros(1, dtype=int), 1)[1] is None


def test_a_sentence_of_100_000_words_works(tiny_bert: Path, tmp_path: Path) -> None:
    long = joined(make_sentences(8000, seed=9))
    rows = [*make_sentences(30, seed=1), {key: values[:100_000] for key, values in long.items()}]
    lines = "\n\n".join("\n".join(f"{w}\t{t}" for w, t in zip(row["tokens"], row["ner_tags"], strict=True)) for row in rows)
    (tmp_path / "notes.conll").write_text(lines, encoding="utf-8")
    recipe = recipe_of(tmp_path / "notes.conll", tiny_bert, loss_per="row").override({"arms.head.num_epochs": 1, "task.max_length": 64})
    comparison = ht.run(recipe, arms=["head"], output_dir=tmp_path / "run")
    data = json.loads((comparison.folder / "head/budget-all/seed-0/result.json").read_text())["data"]
    assert data["train_rows"] + data["validation_rows"] + data["test_rows"] == 31
