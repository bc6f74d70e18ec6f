"""A grid that is interrupted, resumed, widened, or holds trainings that fail."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hf_transfer as ht
from hf_transfer import disk
from hf_transfer.disk import held
from hf_transfer.errors import ConfigError, RunFolderError, TrainingError
from hf_transfer.evidence import attempt
from tests.conftest import Run, save_tiny_bert
from tests.evidence.conftest import ARMS, GRID, assert_is_whole, finished, stamps, wait_for


def test_a_run_killed_between_cells_goes_on_and_finds_the_same(
    whole: ht.Comparison, topics_recipe: ht.Recipe, background: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = background(run)
    wait_for(lambda: finished(run), process)
    process.kill()
    process.wait()
    assert not (run / "comparison.json").exists()
    before = {cell: stamps(cell) for cell in finished(run)}
    assert 1 <= len(before) < 4
    resumed = ht.run(topics_recipe, output_dir=run, resume=True, **GRID)
    for cell, stamped in before.items():
        assert stamped.items() <= stamps(cell).items(), "a finished cell is not touched"
    assert resumed.failed == []
    assert_is_whole(run, whole)


def test_a_run_killed_while_it_writes_goes_on_and_finds_the_same(
    whole: ht.Comparison, topics_recipe: ht.Recipe, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves behind is what stands on the disk in that moment: each moment of a cell's writing is kept, and resumed."""
    shutil.rmtree(copied / "head/budget-30/seed-1")
    (copied / "comparison.json").unlink()
    moments: dict[tuple[str, ...], Path] = {}
    flush = disk._flush_to_disk

    def flushing(path: Path) -> None:
        # Temporary names are new each time.
        names = tuple(sorted(re.sub("tmp-.*", "tmp", name) for name in stamps(copied)))
        if names not in moments:
            moments[names] = shutil.copytree(copied, tmp_path / f"moment-{len(moments)}")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_flush_to_disk", flushing)
        ht.run(topics_recipe, output_dir=copied, resume=True, **GRID)
    assert_is_whole(copied, whole)
    assert len(moments) >= 8, "recipe, model, predictions and result are each flushed before and after they get their name"
    for moment in moments.values():
        for leftover in sorted(moment.rglob(".*.tmp-*"), reverse=True):
            # As it would be called by another process than this one.
            leftover.rename(leftover.with_name(f"{leftover.name}0"))
        before = {cell: stamps(cell) for cell in finished(moment)}
        assert len(before) >= 3
        ht.run(topics_recipe, output_dir=moment, resume=True, **GRID)
        for cell, stamped in before.items():
            # A card may have been half written.
            kept = {name: stamp for name, stamp in stamped.items() if ".tmp-" not in name}
            assert kept.items() <= stamps(cell).items()
        assert_is_whole(moment, whole)


def test_a_finished_run_is_shown_again_and_more_cells_are_added(
    whole: ht.Comparison, topics_recipe: ht.Recipe, copied: Path, run: Run
) -> None:
    before = {cell: stamps(cell) for cell in finished(copied)}
    assert run("run", "--output-dir", copied, "--resume")[0] == 0, "a run has a recipe of its own"
    code, out, err = run("run", "--config", copied / "recipe.yaml", "--output-dir", copied, "--resume")
    assert (code, " done: " in err, "4 trainings (4 of them finished before)" in err) == (0, False, True)
    assert whole.table() in out
    assert_is_whole(copied, whole)

    ht.run(topics_recipe, output_dir=copied, resume=True)
    assert_is_whole(copied, whole)  # What is not named is as the run has it: not the budget "all", not all arms.

    wider = ht.run(topics_recipe, arms=["full"], budgets=[40], seeds=[2], output_dir=copied, resume=True)
    section = yaml.safe_load((copied / "recipe.yaml").read_text())["run"]
    assert (section["arms"], section["budgets"], section["seeds"]) == (["scratch", "head", "full"], [30, 40], [0, 1, 2])
    assert len(finished(copied)) == len(wider.cells()) == 18
    assert {(entry["arm"], entry["budget"], entry["num_seeds"]) for entry in wider.values["arms"]} == {
        (arm, budget, 3) for arm in ("scratch", "head", "full") for budget in (30, 40)
    }
    assert {cell: stamps(cell) for cell in before} == before


def test_a_run_that_is_widened_is_unfinished_until_it_is_done(
    topics_recipe: ht.Recipe, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, KeyboardInterrupt(), at=1)
    with pytest.raises(KeyboardInterrupt):
        ht.run(topics_recipe, seeds=[2], output_dir=copied, resume=True)
    assert len(finished(copied)) == 5
    with pytest.raises(RunFolderError, match="expected the folder of a finished run"):
        ht.Comparison(copied)  # The former one would count three seeds for two.


def test_another_recipe_is_refused_by_field_name(topics_recipe: ht.Recipe, copied: Path, tmp_path: Path) -> None:
    before = stamps(copied)
    changes = {"training.batch_size": 32, "task.max_length": 40, "arms.head.learning_rate": 0.5, "data.columns": {"text": "words"}}
    with pytest.raises(ConfigError) as refusal:
        ht.run(topics_recipe.override(changes), output_dir=copied, resume=True, max_test_rows=20, **GRID)
    for difference in (
        "training.batch_size: the run has 8, asked for 32;",
        "task.max_length: the run has 48, asked for 40;",
        "data.columns.text: the run has text, asked for words;",
        "arms.head.learning_rate: the run has 0.01, asked for 0.5:",
        "max_test_rows: the run has nothing, asked for 20;",
    ):
        assert difference in str(refusal.value)
    assert str(refusal.value).count(": the run has ") == 5
    assert f"ask for what the run has (--config {copied / 'recipe.yaml'} does), or name another folder" in str(refusal.value)
    assert stamps(copied) == before


def test_an_arm_that_is_not_asked_for_stays_as_it_is(topics_recipe: ht.Recipe, copied: Path) -> None:
    without = {name: replace(arm, num_epochs=1) for name, arm in ARMS.items() if name != "head"}
    ht.run(replace(topics_recipe, arms=without), arms=["full"], output_dir=copied, resume=True)
    arms = yaml.safe_load((copied / "recipe.yaml").read_text())["arms"]
    assert {name: arms[name]["num_epochs"] for name in ("scratch", "head", "full")} == {"scratch": 2, "head": 2, "full": 1}


def test_what_the_run_found_out_and_arms_without_a_cell_are_no_difference(topics_recipe: ht.Recipe, copied: Path) -> None:
    named = topics_recipe.override({"data.columns": {"text": "text"}, "arms.full.learning_rate": 1e-4})
    again = ht.run(named, output_dir=copied, resume=True, **GRID)
    assert len(again.cells()) == 4
    resolved = yaml.safe_load((copied / "recipe.yaml").read_text())
    assert resolved["training"]["micro_batch_tokens"] > 0
    assert resolved["arms"]["full"]["learning_rate"] == 1e-4


def test_a_run_of_private_data_stays_one(topics_recipe: ht.Recipe, copied: Path) -> None:
    for asked in (True, False):
        (copied / "examples.json").write_text("a text of the data")
        ht.run(topics_recipe, output_dir=copied, resume=True, private_data=asked, **GRID)
        assert yaml.safe_load((copied / "recipe.yaml").read_text())["run"]["private_data"] is True
        examples = copied / "examples.json"
        assert not examples.exists() or "a text of the data" not in examples.read_text()


def test_a_person_is_told_of_cells_trained_otherwise(topics_recipe: ht.Recipe, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "scratch/budget-30/seed-0/result.json"
    result = json.loads(path.read_text())
    result["environment"]["precision"] = "bf16"
    path.write_text(json.dumps(result))
    ht.run(topics_recipe, output_dir=copied, resume=True, **GRID)
    assert "cells finished before" not in capsys.readouterr().err, "none are to come"
    ht.run(topics_recipe, output_dir=copied, resume=True, **GRID | {"seeds": [0, 1, 2]})
    told = [line for line in capsys.readouterr().err.splitlines() if "cells finished before" in line]
    assert told == ["note: cells finished before have precision bf16, those to come fp32: they differ by more than their arms"]


def test_other_data_or_weights_are_refused(topics_recipe: ht.Recipe, copied: Path, topics_folder: Path, tmp_path: Path) -> None:
    before = stamps(copied)
    source, checkpoint = topics_folder.parent / "moved", tmp_path / "weights"
    shutil.copytree(topics_folder, tmp_path / "data")
    save_tiny_bert(checkpoint, initializer_range=0.05)
    config = shutil.copytree(topics_recipe.checkpoint, tmp_path / "config") / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    recorded = yaml.safe_load((copied / "recipe.yaml").read_text())
    cases = (("data", {"source": str(tmp_path / "data")}), ("checkpoint", str(checkpoint)), ("checkpoint", str(config.parent)))
    for field, value in cases:
        # As if what stands under the same name had changed.
        changed = recorded[field] | value if field == "data" else value
        (copied / "recipe.yaml").write_text(yaml.safe_dump(recorded | {field: changed}, sort_keys=False))
        if field == "data":
            with (tmp_path / "data/train.csv").open("a") as file:
                file.write("anchor and sail,boats\n")
        with pytest.raises(RunFolderError, match=f"the .*{field}.* changed since .*/budget-30/seed-[01] was trained"):
            ht.run(
                topics_recipe.override({field: value} if field == "checkpoint" else {"data.source": value["source"]}),
                output_dir=copied,
                resume=True,
                **GRID,
            )
    (copied / "recipe.yaml").write_bytes(before["recipe.yaml"][1])
    assert not source.exists()
    assert {name: content for name, (_, content) in stamps(copied).items()} == {name: content for name, (_, content) in before.items()}


@pytest.mark.parametrize(("name", "message"), [("result.json", "is damaged and cannot be read"), ("predictions.parquet", "is gone")])
def test_a_finished_training_that_lost_a_file_is_named(topics_recipe: ht.Recipe, copied: Path, name: str, message: str) -> None:
    lost = next(copied.glob(f"head/budget-*/seed-*/{name}"))
    if name == "result.json":
        lost.write_text('{"half')
    else:
        lost.unlink()
    before = stamps(copied)
    with pytest.raises(RunFolderError, match=rf"{name} {message}"):
        ht.run(topics_recipe, output_dir=copied, resume=True, **GRID)
    assert stamps(copied) == before


@pytest.mark.parametrize("kept", [0, 500])
def test_damaged_predictions_of_a_finished_training_are_named(topics_recipe: ht.Recipe, copied: Path, kept: int) -> None:
    lost = next(copied.glob("head/budget-*/seed-*/predictions.parquet"))
    lost.write_bytes(lost.read_bytes()[:kept])
    with pytest.raises(RunFolderError, match="predictions.parquet is damaged and cannot be read"):
        ht.run(topics_recipe, output_dir=copied, resume=True, **GRID)


def test_a_comparison_that_recommends_nothing_is_named(copied: Path) -> None:
    for content in ("{}", "[]", '{"recommendation": {}}'):
        (copied / "comparison.json").write_text(content)
        with pytest.raises(RunFolderError, match="comparison.json recommends no arm, budget and seed: --resume writes it anew"):
            ht.load(copied)


def test_a_resumed_run_that_there_is_not_begins_and_says_so(
    topics_recipe: ht.Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for _ in range(2):
        ht.run(topics_recipe, output_dir=tmp_path / "run", resume=True, arms=["head"], budgets=[60], seeds=[0])
        told.append("run holds no run to go on with, so one begins" in capsys.readouterr().err)
    assert told == [True, False]


def test_a_mistyped_folder_to_go_on_with_is_named(run: Run, tmp_path: Path) -> None:
    code, _, err = run("run", "--output-dir", tmp_path / "typo", "--resume")
    assert (code, "error: there is no run in " in err, "typo to go on with; name a recipe (" in err) == (2, True, True)
    assert not (tmp_path / "typo").exists()


def test_models_may_be_removed_before_a_run_goes_on(topics_recipe: ht.Recipe, copied: Path) -> None:
    removed = list(copied.glob("*/budget-*/seed-*/model"))
    for model in removed:
        shutil.rmtree(model)
    assert ht.run(topics_recipe, output_dir=copied, resume=True, **GRID).failed == []
    assert removed and not any(model.exists() for model in removed)


def test_a_folder_that_holds_no_run_is_not_touched(topics_recipe: ht.Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    (tmp_path / "mine/.hidden.tmp-1").write_text("keep")
    with pytest.raises(RunFolderError, match=r"holds other files and no recipe\.yaml"):
        ht.run(topics_recipe, output_dir=tmp_path / "mine", resume=True, **GRID)
    for text, message in (
        ("a: [", "is no YAML"),
        ("name: topics", "no section `run`"),
        ("name: topics\nrun: {arms: [full], seeds: [x]}", "a seed is a whole number"),
        ("name: topics\nrun: {arm: [full]}", "unexpected keyword argument 'arm'"),
        ("nam: topics\nrun: {}", "nam"),
    ):
        (tmp_path / "mine/recipe.yaml").write_text(text)
        with pytest.raises(RunFolderError, match=f"recipe.yaml cannot be read: .*{message}"):
            ht.run(topics_recipe, output_dir=tmp_path / "mine", resume=True, **GRID)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [".hidden.tmp-1", "notes.txt", "recipe.yaml"]


def test_two_runs_do_not_write_to_one_folder(topics_recipe: ht.Recipe, copied: Path) -> None:
    with held(copied), pytest.raises(RunFolderError, match="another process is writing"):
        ht.run(topics_recipe, output_dir=copied, resume=True, **GRID)
    ht.run(topics_recipe, output_dir=copied, resume=True, **GRID)


def test_a_training_that_fails_leaves_the_others_be_and_is_tried_again(topics_recipe: ht.Recipe, run: Run, tmp_path: Path) -> None:
    config, folder = tmp_path / "asked.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(topics_recipe.to_dict() | {"run": GRID | {"arms": ["wild", "head"]}}))
    asked = ["run", "--config", config, "--output-dir", folder]
    code, out, err = run(*asked)
    assert code == 2
    assert (
        err.splitlines()[-1]
        == "error: 2 of 4 trainings failed, the table is of the others: --resume tries them again, with other settings if you give them"
    )
    assert "\n  head " in out and "\n  wild " not in out and "\nFailed: wild, budget 30, seed 1: " in out
    told = [line for line in err.splitlines() if " failed: " in line]
    assert [line.split(": ")[:2] for line in told] == [
        ["1 of 4 failed", "wild, budget 30, seed 0"],
        ["3 of 4 failed", "wild, budget 30, seed 1"],
    ]
    comparison = ht.Comparison(folder)
    written = [json.loads((folder / f"wild/budget-30/seed-{seed}/failure.json").read_text()) for seed in (0, 1)]
    assert comparison.failed == written
    for seed, entry in enumerate(written):
        assert {name: entry[name] for name in ("arm", "budget", "seed")} == {"arm": "wild", "budget": 30, "seed": seed}
        assert re.match(r"behind update 3 of 6 the model predicts|the (loss|gradient) of update \d of 6", entry["error"])
        assert "is no finite number" in entry["error"] and "lower the learning rate" in entry["error"]
        assert os.listdir(folder / f"wild/budget-30/seed-{seed}") == ["failure.json"]
    assert {entry["arm"] for entry in comparison.values["arms"]} == {"head"}

    head = stamps(folder / "head")
    # Nothing of this arm is finished, so its rate may change.
    code, out, err = run(*asked, "--resume", "--set", "arms.wild.learning_rate=1e-3")
    assert code == 0, err
    assert "\n1 of 2 done: wild, budget 30, seed 0" in err
    assert ht.Comparison(folder).failed == []
    assert stamps(folder / "head") == head
    assert not list(folder.rglob("failure.json"))


def test_two_processes_agree_on_what_failed_and_what_is_left(topics_recipe: ht.Recipe, tmp_path: Path) -> None:
    config, script, folder = tmp_path / "asked.yaml", tmp_path / "train.py", tmp_path / "run"
    config.write_text(yaml.safe_dump(topics_recipe.to_dict()))
    script.write_text(f"import hf_transfer as ht\n\nht.main(ht.load_recipe({str(config)!r}))\n")
    launch = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    on_two = ["--multi_gpu", "--main_process_port", "0", "--num_processes", "2"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, *on_two, str(script), "--output-dir", str(folder)]

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        asked = ["--arms", "wild", "head", "--budgets", "30", *flags]
        return subprocess.run([*command, *asked], capture_output=True, text=True, timeout=300)

    done = run()
    assert done.returncode != 0
    assert done.stderr.count("error: 1 of 2 trainings failed") == 1
    assert "Connection closed" not in done.stderr, "no process waited for one that had gone"
    assert [entry["arm"] for entry in ht.Comparison(folder).failed] == ["wild"]
    head = stamps(folder / "head")

    done = run("--resume", "--seeds", "0", "1", "--set", "arms.wild.learning_rate=1e-3")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 done: head, budget 30, seed 1" in done.stderr
    comparison = ht.Comparison(folder)
    assert (comparison.failed, len(comparison.cells())) == ([], 4)
    assert head.items() <= stamps(folder / "head").items()
    for cell in finished(folder):
        assert json.loads((cell / "result.json").read_text())["environment"]["num_processes"] == 2


def test_where_every_training_fails_there_is_no_comparison(topics_recipe: ht.Recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training of the run could be finished; the first: .*no finite number"):
        ht.run(topics_recipe, arms=["wild"], budgets=[30], output_dir=tmp_path / "run")
    assert not (tmp_path / "run/comparison.json").exists()
    assert (tmp_path / "run/wild/budget-30/seed-0/failure.json").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError("no more")])
def test_want_of_memory_fails_one_cell(topics_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    breaking(monkeypatch, error, at=1)
    comparison = ht.run(topics_recipe, output_dir=tmp_path / "run", **GRID)
    (failed,) = comparison.failed
    assert (failed["arm"], failed["seed"]) == ("head", 0)
    assert failed["error"].startswith("memory does not suffice")
    assert os.listdir(tmp_path / "run/head/budget-30/seed-0") == ["failure.json"]
    assert len(comparison.cells()) == 3


def test_a_bug_ends_the_run_and_what_is_finished_stays(
    whole: ht.Comparison, topics_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, RuntimeError("shapes do not match"), at=2)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            ht.run(topics_recipe, output_dir=tmp_path / "run", **GRID)
    assert len(finished(tmp_path / "run")) == 2
    ht.run(topics_recipe, output_dir=tmp_path / "run", resume=True, **GRID)
    assert_is_whole(tmp_path / "run", whole)


def test_an_interrupted_run_says_how_to_go_on(topics_recipe: ht.Recipe, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "asked.yaml"
    config.write_text(yaml.safe_dump(topics_recipe.to_dict() | {"run": GRID}))
    breaking(monkeypatch, KeyboardInterrupt(), at=1)
    code, out, err = run("run", "--config", config, "--output-dir", tmp_path / "run")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted; --resume goes on from what was finished and saved"
    assert len(finished(tmp_path / "run")) == 1
    code, _, err = run("run", "--config", config, "--output-dir", tmp_path / "run")
    assert code == 2
    assert "already holds an unfinished run: go on with it (--resume), name another with --output-dir, or move this one away" in err


def breaking(monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int) -> None:
    """Let one cell, counted from 0, break after it has written half of its folder."""
    run_cell, tried = attempt.run_cell, itertools.count()

    def run_or_break(study: Any, arm_name: str, arm: ht.Arm, budget: Any, seed: int, folder: Path, *rest: Any) -> dict[str, Any]:
        if next(tried) == at:
            folder.mkdir(parents=True)
            (folder / "predictions.parquet").write_text("half")
            raise error
        return run_cell(study, arm_name, arm, budget, seed, folder, *rest)

    monkeypatch.setattr(attempt, "run_cell", run_or_break)
