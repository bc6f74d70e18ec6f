"""A run folder moved to another path, with its base beside it or not, loads, reports, predicts and goes on."""

import json
import os
import shutil
from pathlib import Path

import pytest

import hf_transfer as ht
from hf_transfer.errors import CheckpointError
from tests.conftest import Run, make_rows, write_csv
from tests.evidence.conftest import finished

TEXT = "the sail of a boat"


@pytest.mark.parametrize("is_relative", [True, False])
def test_a_run_that_was_moved_with_its_base_is_as_it_was(
    tiny_bert: Path, topics_folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_relative: bool
) -> None:
    there, here = tmp_path / "there", tmp_path / "here/deep"
    shutil.copytree(tiny_bert, there / "bases/tiny")
    shutil.copytree(topics_folder, there / "topics")
    monkeypatch.chdir(there)
    base = Path("bases/tiny") if is_relative else there / "bases/tiny"
    recipe = ht.Recipe(
        name="topics",
        task=ht.TextClassification(max_length=32),
        data=ht.DataConfig("topics" if is_relative else str(there / "topics")),
        checkpoint=str(base),
        arms={
            "scratch": ht.Arm(init="scratch", learning_rate=2e-3, num_epochs=1),
            "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=1),
            "top": ht.Arm(tuning="top", num_blocks=1, learning_rate=1e-2, num_epochs=1),
            "lora": ht.Arm(tuning="lora", learning_rate=1e-2, num_epochs=1),
            "full": ht.Arm(learning_rate=2e-3, num_epochs=1),
        },
        training=ht.TrainingConfig(batch_size=8, precision="fp32"),
    )
    asked = {"arms": list(recipe.arms), "budgets": [30], "seeds": [0]}
    before = ht.run(recipe, output_dir="runs/x", **asked)
    cells = [cell.relative_to(before.folder) for cell in before.cells()]
    answers = {cell: ht.load(before.folder / cell).predict([TEXT]) for cell in cells}
    table = before.table()

    here.parent.mkdir()
    there.rename(here)
    monkeypatch.chdir(tmp_path)
    moved = here / "runs/x"
    for name in (moved, Path(os.path.relpath(moved))):
        after = ht.Comparison(name)
        assert after.table() == table
        assert [cell.relative_to(name) for cell in after.cells()] == cells
        assert len(cells) == 5
        assert ht.load(name).predict([TEXT]) == after.best().predict([TEXT])
        assert "lora" in after.report()
    for cell in cells:
        for folder in (moved / cell, moved / cell / "model"):
            assert ht.load(folder).predict([TEXT]) == answers[cell], cell
    source = write_csv(tmp_path / "new.csv", make_rows(5))
    code, _, err = run("predict", moved / "lora/budget-30/seed-0", "--input", source, "--output", tmp_path / "out.csv")
    assert code == 0, err
    assert run("report", moved)[0] == 0

    if is_relative:
        monkeypatch.chdir(here)
        again = ht.run(recipe, output_dir="runs/x", resume=True, **asked | {"seeds": [0, 1]})
        assert len(again.cells()) == 10
    else:
        # Its paths are no longer there; --resume says so instead of training on something else.
        code, _, err = run("run", "--output-dir", moved, "--resume", "--seeds", 0, 1)
        assert code == 2
        assert f"{there}" in err.splitlines()[-1] and "does not exist" in err.splitlines()[-1]
    for cell in finished(moved):
        assert str(tmp_path) not in json.dumps(json.loads((cell / "model/hf_transfer.json").read_text()))


def test_a_run_that_was_moved_away_from_its_base_says_what_it_misses(
    tiny_bert: Path, topics_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bert, tmp_path / "bases/tiny")
    recipe = ht.Recipe(
        name="topics",
        task=ht.TextClassification(max_length=32),
        data=ht.DataConfig(str(topics_folder)),
        checkpoint="bases/tiny",
        arms={"lora": ht.Arm(tuning="lora", learning_rate=1e-2, num_epochs=1)},
        training=ht.TrainingConfig(batch_size=8, precision="fp32"),
    )
    answer = ht.run(recipe, arms=["lora"], budgets=[30], output_dir="runs/x").best().predict([TEXT])
    shutil.copytree(tmp_path / "runs/x", tmp_path / "elsewhere/far/x")
    (tmp_path / "bases").rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"cannot find the base of adapter .*: it was trained on tiny \(weights"):
        ht.load(tmp_path / "elsewhere/far/x")
    assert ht.load(tmp_path / "elsewhere/far/x", base=str(tmp_path / "kept/tiny")).predict([TEXT]) == answer
