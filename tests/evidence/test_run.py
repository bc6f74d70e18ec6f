"""A whole run on a tiny model: the run folder, its numbers, and every saved arm as a model again."""

import csv
import io
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import hf_transfer as ht
from hf_transfer.errors import CheckpointError, ConfigError, DataError, RunFolderError, TrainingError
from hf_transfer.evaluation.metrics import METRICS, Predictions
from hf_transfer.evidence.fit import class_weights
from hf_transfer.models import checkpoint
from hf_transfer.tasks import text_classification
from tests.conftest import TOPICS, save_tiny_bert, write_csv

ARMS = {
    "scratch": ht.Arm(init="scratch", learning_rate=2e-3, num_epochs=2),
    "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=2),
    "top": ht.Arm(tuning="top", num_blocks=1, learning_rate=2e-3, num_epochs=2),
    "lora": ht.Arm(tuning="lora", learning_rate=2e-3, num_epochs=2),
    "full": ht.Arm(learning_rate=2e-3, num_epochs=2),
}
SEEDS = [0, 1]
BUDGETS = [30, "all"]


@pytest.fixture(scope="module")
def recipe(topics_recipe: ht.Recipe) -> ht.Recipe:
    return replace(topics_recipe, arms=ARMS)


@pytest.fixture(scope="module")
def comparison(recipe: ht.Recipe, tmp_path_factory: pytest.TempPathFactory) -> ht.Comparison:
    folder = tmp_path_factory.mktemp("runs") / "topics"
    return ht.run(recipe, arms=list(ARMS), budgets=BUDGETS, seeds=SEEDS, output_dir=folder)


def cells(comparison: ht.Comparison) -> list[Path]:
    return [comparison.folder / arm / f"budget-{budget}" / f"seed-{seed}" for arm, budget, seed in itertools.product(ARMS, BUDGETS, SEEDS)]


def test_the_run_folder_is_the_contract(comparison: ht.Comparison, recipe: ht.Recipe) -> None:
    assert {path.name for path in comparison.folder.iterdir()} == {
        *ARMS,
        "recipe.yaml",
        "hygiene.json",
        "examples.json",
        "comparison.json",
        "report.html",
    }
    for cell in cells(comparison):
        assert {path.name for path in cell.iterdir()} == {"result.json", "predictions.parquet", "model"}
    resolved = yaml.safe_load((comparison.folder / "recipe.yaml").read_text())
    assert resolved.pop("run") == {
        "arms": list(ARMS),
        "budgets": BUDGETS,
        "seeds": SEEDS,
        "max_test_rows": None,
        "search": None,
        "private_data": False,
    }
    assert ht.Recipe.from_dict(resolved) == recipe.override({"training.micro_batch_tokens": 1024})


def test_results_hold_what_the_contract_says(comparison: ht.Comparison) -> None:
    for cell in cells(comparison):
        result = json.loads((cell / "result.json").read_text())
        assert {
            "arm",
            "init",
            "tuning",
            "seed",
            "budget",
            "checkpoint",
            "dataset",
            "metrics",
            "cost",
            "history",
            "stopped",
            "resumed_from",
            "data",
            "environment",
        } <= set(result)
        train_rows = {30: 24, "all": 72}[result["budget"]]
        assert result["data"]["train_rows"] == train_rows
        assert result["data"]["validation_rows"] == train_rows // 4
        assert result["data"]["test_rows"] == 31
        assert result["cost"]["updates"] == 2 * -(-train_rows // 8)
        assert result["cost"]["rows_seen"] == 2 * train_rows
        assert result["cost"]["peak_memory_bytes"] > 1e7
        assert 0 < result["cost"]["train_seconds"] < result["cost"]["wall_seconds"]
        assert set(result["metrics"]["validation"]) == {
            "loss",
            "loss_standard_error",
            "accuracy",
            "f1_macro",
            "mcc",
            "ece",
        }
        assert len(result["history"]) == 2
        assert result["environment"]["precision"] == "fp32"
        assert result["environment"]["num_processes"] == 1
        if result["tuning"] == "full":
            assert result["cost"]["trainable_parameters"] == result["cost"]["total_parameters"]
        else:
            assert result["cost"]["trainable_parameters"] < result["cost"]["total_parameters"] / 1.5


def test_predictions_give_back_every_number(comparison: ht.Comparison) -> None:
    metrics = {}
    for cell in cells(comparison):
        result = json.loads((cell / "result.json").read_text())
        table = pq.read_table(cell / "predictions.parquet").to_pydict()
        assert table["row_id"] == list(range(31))
        assert len(table["cluster"]) == 31
        probabilities = np.array(table["probabilities"], dtype=np.float32)
        assert table["prediction"] == probabilities.argmax(axis=1).tolist()
        references, predictions = np.array(table["reference"]), np.array(table["prediction"])
        predicted = Predictions(sorted(TOPICS), references, predictions, probabilities, np.arange(len(references) + 1))
        found = METRICS["text-classification"].of(predicted)
        for name, value in found.items():
            assert result["metrics"]["test"][name] == pytest.approx(value, abs=1e-9)
        metrics[result["arm"], result["budget"], result["seed"]] = found
    for entry in comparison.values["arms"]:
        expected = np.mean([metrics[entry["arm"], entry["budget"], seed][entry["metric"]] for seed in SEEDS])
        assert entry["mean"] == pytest.approx(expected, abs=1e-9)
        assert (entry["scope"], entry["num_seeds"]) == ("seeds+rows", 2)
    for entry in [*comparison.values["gains"], *comparison.values["pairs"]]:
        other = entry.get("baseline") or entry["other"]
        expected = np.mean(
            [
                metrics[entry["arm"], entry["budget"], s][entry["metric"]] - metrics[other, entry["budget"], s][entry["metric"]]
                for s in SEEDS
            ]
        )
        assert entry["delta"] == pytest.approx(expected, abs=1e-9)
        assert entry["ci_low"] <= entry["delta"] <= entry["ci_high"]


def test_comparison_holds_what_the_contract_says(comparison: ht.Comparison) -> None:
    values = comparison.values
    assert values["primary_metric"] == "accuracy"
    assert len(values["arms"]) == 5 * 2 * 4
    assert len(values["gains"]) == 4 * 2 * 4
    assert {gain["baseline"] for gain in values["gains"]} == {"scratch"}
    for gain in values["gains"]:
        assert (gain["verdict"] in ("helps", "no evidence", "hurts")) == (gain["metric"] == "accuracy")
        assert (gain["p_adjusted"] is not None) == (gain["metric"] == "accuracy")
        assert gain["p_adjusted"] is None or gain["p_adjusted"] >= gain["p_value"]
    assert len(values["pairs"]) == 10 * 2
    assert {pair["metric"] for pair in values["pairs"]} == {"accuracy"}
    assert values["recommendation"]["budget"] == "all"


def test_the_recommendation_is_its_own_rule(comparison: ht.Comparison) -> None:
    results = [json.loads((cell / "result.json").read_text()) for cell in cells(comparison) if "budget-all" in str(cell)]
    losses = {arm: [r["metrics"]["validation"]["loss"] for r in results if r["arm"] == arm] for arm in ARMS}
    best = min(losses, key=lambda arm: np.mean(losses[arm]))
    bound = np.mean(losses[best]) + np.std(losses[best], ddof=1) / np.sqrt(2)
    trained = {r["arm"]: r["cost"]["trainable_parameters"] for r in results}
    expected = min((arm for arm in ARMS if np.mean(losses[arm]) <= bound), key=lambda arm: trained[arm])
    assert comparison.values["recommendation"]["arm"] == expected


def test_the_table_names_every_arm_and_what_to_ship(comparison: ht.Comparison) -> None:
    table = comparison.table()
    assert "budget 30: 24 rows train, 6 validate, 31 test; mean of 2 seeds" in table
    for arm in ARMS:
        assert table.count(f"\n  {arm} ") == 2
    assert f"Ship: {comparison.values['recommendation']['arm']} (budget all" in table
    assert "Fewer than 50 validation rows (6, 18)" in table
    assert max(map(len, table.splitlines()[:7])) <= 120


RELOAD = """
import json, sys
import hf_transfer as ht
texts, *folders = json.loads(sys.argv[1])
print(json.dumps([[p["probabilities"] for p in ht.load(folder).predict(texts, precision="fp32")] for folder in folders]))
"""


def test_saved_arms_predict_the_same_in_a_fresh_process(comparison: ht.Comparison, topics_folder: Path) -> None:
    texts = [row["text"] for row in csv.DictReader(io.StringIO((topics_folder / "test.csv").read_text()))]
    folders = [comparison.folder / arm / "budget-all/seed-1" for arm in ARMS]
    done = subprocess.run([sys.executable, "-c", RELOAD, json.dumps([texts, *map(str, folders)])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, found in zip(folders, json.loads(done.stdout), strict=True):
        assert list(found[0]) == ["boats", "bread", "chess"]
        expected = np.array(pq.read_table(folder / "predictions.parquet").to_pydict()["probabilities"])
        assert np.abs(np.array([list(row.values()) for row in found]) - expected).max() < 1e-5, folder


def test_no_absolute_path_in_a_saved_model(comparison: ht.Comparison, tiny_bert: Path) -> None:
    for cell in cells(comparison):
        for path in (cell / "model").iterdir():
            if path.suffix == ".json":
                assert str(tiny_bert.parent) not in path.read_text(), path
        sidecar = json.loads((cell / "model/hf_transfer.json").read_text())
        assert sidecar["base_checkpoint"] == "tiny-bert"
        assert len(sidecar["base_sha256"]) == 64


def test_best_predicts(comparison: ht.Comparison) -> None:
    model = comparison.best()
    found = model.predict(["anchor sail mast", ""])
    assert len(found) == 2
    for row in found:
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["score"] == max(row["probabilities"].values())
    assert model.predict([]) == []
    assert model.predict(text for text in ["anchor sail mast", ""]) == found
    for wrong, message in (("anchor", "list of texts, found str"), (None, "found NoneType"), (["a", 1], "found int at position 1")):
        with pytest.raises(ConfigError, match=message):
            model.predict(wrong)


def test_the_same_run_again_is_bit_equal(comparison: ht.Comparison, recipe: ht.Recipe, tmp_path: Path) -> None:
    again = ht.run(recipe, arms=["lora", "scratch"], budgets=[30], seeds=[1], output_dir=tmp_path / "again")
    for arm in ("lora", "scratch"):
        one, other = (folder / arm / "budget-30/seed-1" for folder in (comparison.folder, again.folder))
        for name in (
            "model/adapter_model.safetensors" if arm == "lora" else "model/model.safetensors",
            "predictions.parquet",
        ):
            assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"training.label_smoothing": 0.2},
        {"training.class_weights": {"boats": 3.0}},
        {"training.optimizer": "sgd"},
        {"training.dropout": 0.5},
    ],
)
def test_a_setting_reaches_the_training(comparison: ht.Comparison, recipe: ht.Recipe, tmp_path: Path, change: dict[str, object]) -> None:
    changed = ht.run(recipe.override(change), arms=["full"], budgets=[30], seeds=[1], output_dir=tmp_path / "changed")
    one, other = (folder / "full/budget-30/seed-1/predictions.parquet" for folder in (comparison.folder, changed.folder))
    assert one.read_bytes() != other.read_bytes()


def test_a_moved_run_folder_still_loads(comparison: ht.Comparison, tmp_path: Path) -> None:
    shutil.copytree(comparison.folder, tmp_path / "moved")
    assert ht.load(tmp_path / "moved").predict(["anchor"]) == comparison.best().predict(["anchor"])


def test_another_base_than_the_adapters_is_refused(comparison: ht.Comparison, tmp_path: Path) -> None:
    cell = comparison.folder / "lora/budget-all/seed-0"
    other = save_tiny_bert(tmp_path / "other", initializer_range=0.05)
    with pytest.raises(CheckpointError, match=r"is not the base of adapter .*: expected weights [0-9a-f]{12} \(tiny-bert\)"):
        ht.load(cell, base=str(other))
    shutil.copytree(cell / "model", tmp_path / "alone")
    with pytest.raises(CheckpointError, match="cannot find the base of adapter .*: it was trained on tiny-bert"):
        ht.load(tmp_path / "alone")


def test_the_base_is_found_in_the_cache_where_the_embedded_one_is_not_installed(
    comparison: ht.Comparison, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(comparison.folder / "lora/budget-all/seed-0/model", tmp_path / "adapter")
    sidecar = json.loads((tmp_path / "adapter/hf_transfer.json").read_text())
    sidecar["base_checkpoint"] = "sentence-transformers/all-MiniLM-L6-v2"
    (tmp_path / "adapter/hf_transfer.json").write_text(json.dumps(sidecar))
    monkeypatch.setitem(checkpoint.EMBEDDED_CHECKPOINTS, "all-MiniLM-L6-v2", ("no_such_package", "model", sidecar["base_checkpoint"]))
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda name, **_: str(tiny_bert))
    assert ht.load(tmp_path / "adapter").predict(["anchor"]) == ht.load(comparison.folder / "lora/budget-all/seed-0").predict(["anchor"])


def test_a_generator_of_arms_is_a_list_of_arms(recipe: ht.Recipe, tmp_path: Path) -> None:
    found = ht.run(recipe, arms=(arm for arm in ["head"]), budgets=[30], output_dir=tmp_path / "out")
    assert {entry["arm"] for entry in found.values["arms"]} == {"head"}


def test_a_model_that_predicts_no_number_is_a_training_error(recipe: ht.Recipe, tmp_path: Path) -> None:
    one_update = {"arms.full.num_epochs": 1, "training.batch_size": 100, "training.warmup_fraction": 0}
    wild = recipe.override(one_update | {"arms.full.learning_rate": 1e30})
    with pytest.raises(TrainingError, match="no finite number: lower the learning rate"):
        ht.run(wild, arms=["full"], output_dir=tmp_path / "wild")
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("model*"))


def test_an_impossible_draw_is_refused_before_anything_is_written(recipe: ht.Recipe, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", [{"text": text, "label": text} for text in ("a", "a", "b", "b")])
    (tmp_path / "test.csv").write_text("text,label\nc,a\n")
    with pytest.raises(DataError, match="no training row can be set aside"):
        ht.run(recipe.override({"data.source": str(data.parent)}), arms=["full"], output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("none", [1, 1, 1, 1]),
        ("balanced", [4 / 6, 4 / 6, 4 / 6, 2]),
        ({"bread": 3.0}, [1, 1, 1, 3]),
    ],
)
def test_class_weights(weights: str | dict[str, float], expected: list[float]) -> None:
    found = class_weights(np.array([0, 0, 0, 1]), ["boats", "bread", "chess"], weights, text_classification)
    assert found.tolist() == pytest.approx(expected)


def test_what_is_refused_writes_nothing(comparison: ht.Comparison, recipe: ht.Recipe, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="already holds another run"):
        ht.run(recipe, arms=["head"], output_dir=comparison.folder)
    for changes, options, message in [
        ({}, {"arms": ["hed"]}, "no arm 'hed'.*did you mean 'head'"),
        ({}, {"budgets": [500]}, "more than the 90 training rows"),
        ({}, {"budgets": [5]}, "too small for 3 classes: at least 6"),
        ({}, {"budgets": ["some"]}, "found 'some'"),
        ({}, {"budgets": 30}, "budgets must be a list of one or more, found 30"),
        ({}, {"budgets": "all"}, "budgets must be a list of one or more, found 'all'"),
        ({}, {"budgets": ["\u00b2"]}, "a budget is a number of rows above 0"),
        ({}, {"arms": "full"}, "arms must be a list of one or more, found 'full'"),
        ({}, {"arms": []}, "arms must be a list of one or more"),
        ({}, {"seeds": [-1]}, "a seed is a whole number from 0 to 4294967295, found -1"),
        ({}, {"seeds": [1.5]}, "a seed is a whole number"),
        ({}, {"seeds": [2**70]}, "a seed is a whole number"),
        ({}, {"max_test_rows": 0}, "max_test_rows must be a number of at least 1, found 0"),
        ({}, {"max_test_rows": "x"}, "max_test_rows must be a number"),
        ({"arms": {"recipe.yaml": {"learning_rate": 1e-3, "num_epochs": 1}}}, {}, "arms.recipe.yaml"),
        ({"arms.scratch.keep_head": True}, {}, "arms.scratch: keep_head keeps a checkpoint's output layer"),
        ({"arms.lora.lora.target_modules": ["query", "LayerNorm"]}, {"arms": ["lora"]}, "LoRA cannot adapt target_modules"),
        ({"data.source": None}, {}, "names no data"),
        ({"task.max_length": 100}, {}, "max_length 100 is more than the 64 tokens"),
        (
            {"arms.lora.lora.target_modules": ["query", "valeu"]},
            {"arms": ["head", "lora"]},
            "'valeu' matches no module",
        ),
        ({"arms.top.num_blocks": 5}, {"arms": ["top"]}, "has 2"),
        ({"training.class_weights": {"boat": 2.0}}, {}, "class_weights names 'boat'.*did you mean 'boats'"),
    ]:
        with pytest.raises(ValueError, match=message):
            ht.run(recipe.override(changes), output_dir=tmp_path / "none", **options)
    assert list(tmp_path.iterdir()) == []
