"""A whole run told to TensorBoard: a run a cell, with what result.json says, and nothing of the data."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import hf_transfer as ht
from hf_transfer.errors import InstallationError
from hf_transfer.training import loop, tracking
from tests.conftest import TOPICS
from tests.training.test_tracking import scalars

ARMS = {
    "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=2),
    "lora": ht.Arm(tuning="lora", learning_rate=2e-3, num_epochs=2),
}


@pytest.fixture
def recipe(topics_recipe: ht.Recipe) -> ht.Recipe:
    return replace(topics_recipe, arms=ARMS, training=ht.TrainingConfig(batch_size=4, precision="fp32", class_weights={"boats": 2.0}))


def test_a_run_a_cell_holds_the_numbers_of_its_result(recipe: ht.Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ht.run(recipe, arms=["head", "lora"], output_dir=folder, search=2, tracker="tensorboard")
    assert {path.name for path in (folder / "logs").iterdir()} == {"head", "lora"}, "trials are no runs"
    for arm in ARMS:
        result = json.loads((folder / arm / "budget-all" / "seed-0" / "result.json").read_text())
        found = scalars(folder / "logs" / arm / "budget-all" / "seed-0")
        updates = result["cost"]["updates"]
        assert [update for update, _ in found["train/update_loss"]] == list(range(10, updates + 1, 10))
        assert found["train/loss"] == [(entry["update"], pytest.approx(entry["train_loss"])) for entry in result["history"]]
        assert found["validation/loss"] == [(entry["update"], pytest.approx(entry["validation"]["loss"])) for entry in result["history"]]
        assert found["test/accuracy"] == [(updates, pytest.approx(result["metrics"]["test"]["accuracy"]))]
        assert found["cost/tokens_seen"] == [(updates, result["cost"]["tokens_seen"])]
        assert all(value > 0 for _, value in found["train/rows_per_second"])
        assert found["train/learning_rate"]
        (written,) = (folder / "logs" / arm / "budget-all" / "seed-0").glob("*/hparams.yml")
        settings = written.read_text()
        assert f"arm.learning_rate: {result['settings']['learning_rate']}" in settings
    logged = b"".join(path.read_bytes() for path in (folder / "logs").rglob("*") if path.is_file())
    for word in ("anchor", "harbour", "flour", "yeast", "queen", "knight", *TOPICS):
        assert word.encode() not in logged
    assert str(tmp_path).encode() not in logged


def test_a_training_that_goes_on_keeps_what_was_logged_before(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is done once more, because it was killed behind its last state, is drawn once."""
    recipe = recipe.override({"training.save_every": 15})
    folder = tmp_path / "run"
    accumulate = loop.accumulate
    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", lambda *given: accumulate(*given) if given[3] < 22 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ht.run(recipe, arms=["lora"], output_dir=folder, tracker="tensorboard")
    ht.run(recipe, arms=["lora"], output_dir=folder, tracker="tensorboard", resume=True)
    result = json.loads((folder / "lora/budget-all/seed-0/result.json").read_text())
    assert result["resumed_from"] == [15]
    found = scalars(folder / "logs/lora/budget-all/seed-0")
    assert [update for update, _ in found["train/update_loss"]] == list(range(10, result["cost"]["updates"] + 1, 10))
    assert [update for update, _ in found["train/loss"]] == [entry["update"] for entry in result["history"]]


def test_a_tracker_that_is_not_installed_is_said_before_anything(
    recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="pip install mlflow"):
        ht.run(recipe, output_dir=tmp_path / "run", tracker="mlflow")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_loses_no_run(
    recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tracking.TensorBoardTracker, "log", fail)
    comparison = ht.run(recipe, arms=["head"], output_dir=tmp_path / "run", tracker="tensorboard")
    assert comparison.values["recommendation"]["arm"] == "head"
    assert capsys.readouterr().err.count("is not tracked any more") == 1
