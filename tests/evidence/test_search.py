"""The search before the cells: the same trials for every arm, again and again, killed or shared; validation chooses, test is not read."""

import json
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

import hf_transfer as ht
from hf_transfer.errors import Interrupted, SharedTrainingError, TrainingError
from hf_transfer.evidence import search as searching
from hf_transfer.evidence.attempt import why_lost
from hf_transfer.evidence.search import search_arms
from hf_transfer.evidence.search_space import arm_with, blocks_around, own_values, space_of
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.recipe import LoRA
from hf_transfer.run_settings import check_settings
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.stopping import Stopping
from tests.conftest import Run, refused
from tests.recipes.test_recipes import FOLDER, launched

ROOT = Path(__file__).parents[2]
ARMS = {
    "scratch": ht.Arm(init="scratch", learning_rate=2e-3, num_epochs=2),
    "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=1),
    "top": ht.Arm(tuning="top", num_blocks=1, learning_rate=2e-3, num_epochs=1),
    "lora": ht.Arm(tuning="lora", learning_rate=2e-3, num_epochs=1),
}


@pytest.fixture(scope="module")
def recipe(topics_recipe: ht.Recipe) -> ht.Recipe:
    return replace(topics_recipe, arms=ARMS)


def searches_of(run_folder: Path) -> dict[tuple[str, Any], dict[str, Any]]:
    found = json.loads((run_folder / "search.json").read_text())
    return {(entry["arm"], entry["budget"]): entry for entry in found["searches"]}


def without_seconds(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"trials": [{key: value for key, value in trial.items() if key != "seconds"} for trial in entry["trials"]]}


@pytest.fixture(scope="module")
def found(recipe: ht.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a run with a search."""
    folder = tmp_path_factory.mktemp("runs") / "topics"
    ht.run(recipe, arms=list(ARMS), budgets=[30, "all"], output_dir=folder, search=3)
    return folder


@pytest.mark.parametrize(
    "arm",
    [
        *ARMS.values(),
        ht.Arm(learning_rate=1e-4, num_epochs=1, weight_decay=0.0),
        ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=5, lora=LoRA(r=1)),
    ],
)
def test_an_arms_own_values_are_in_its_space(arm: ht.Arm) -> None:
    space = space_of(arm, blocks_around(arm))
    own = own_values(arm, space)
    assert arm_with(arm, own) == arm
    for field, bounds in space.items():
        if isinstance(bounds, tuple):
            assert bounds[0] < own[field] < bounds[1]
        else:
            assert len(set(bounds)) == len(bounds) > 1
            assert own[field] in bounds
    assert ("lora.r" in space) == (arm.tuning == "lora")
    assert ("num_blocks" in space) == (arm.tuning == "top")


def test_the_adapters_scale_keeps_its_ratio_to_the_rank() -> None:
    arm = ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=5, lora=LoRA(r=8, lora_alpha=24, lora_dropout=0.1))
    assert arm_with(arm, {"lora.r": 16}).lora == LoRA(r=16, lora_alpha=48, lora_dropout=0.1)


def test_every_arm_gets_the_same_number_of_trials_its_own_setting_first(found: Path, recipe: ht.Recipe) -> None:
    searches = searches_of(found)
    assert list(searches) == [(arm, budget) for budget in (30, "all") for arm in ARMS]
    for (name, _), entry in searches.items():
        assert [trial["number"] for trial in entry["trials"]] == [0, 1, 2]
        assert entry["trials"][0]["params"] == own_values(recipe.arms[name], entry["space"])
        assert len({json.dumps(trial["params"]) for trial in entry["trials"]}) == 3
        for trial in entry["trials"]:
            assert set(trial["params"]) == set(entry["space"])
    assert json.loads((found / "search.json").read_text())["storage"] == "search.db"
    # Two blocks are all the model has.
    assert searches["top", "all"]["space"]["num_blocks"] == [1, 2]
    assert {entry["validation_rows"] for entry in searches.values()} == {6, 18}


def test_the_least_validation_loss_is_chosen_and_trained(found: Path, recipe: ht.Recipe) -> None:
    for (name, budget), entry in searches_of(found).items():
        chosen = entry["chosen"]
        assert chosen["validation_loss"] == min(trial["validation_loss"] for trial in entry["trials"])
        assert entry["trials"][chosen["number"]]["params"] == chosen["params"]
        result = json.loads((found / name / f"budget-{budget}" / "seed-0" / "result.json").read_text())
        assert result["settings"] == asdict(arm_with(recipe.arms[name], chosen["params"]))
        # The cell repeats the trial that was chosen: the same rows and seed.
        assert result["metrics"]["validation"]["loss"] == pytest.approx(chosen["validation_loss"], abs=1e-6)


def search(recipe: ht.Recipe, folder: Path, num_trials: int, storage: str | None = None, seeds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Search the lora arm at budget 30 without training any cell -> the search's entry."""
    folder.mkdir(exist_ok=True)
    settings = check_settings(recipe, ["lora"], [30], seeds, search=num_trials, search_storage=storage)
    study = prepare_study(recipe, ["lora"], [30], seeds, make_accelerator("fp32"))
    search_arms(study, settings, folder)
    return searches_of(folder)["lora", 30]


def begin_search(recipe: ht.Recipe, folder: Path, num_trials: int, storage: str | None = None) -> subprocess.Popen[str]:
    """Do the same in a process of its own."""
    code = """
import json, sys
from pathlib import Path
import hf_transfer as ht
from tests.evidence.test_search import search

recipe, folder, num_trials, storage = json.loads(sys.argv[1])
search(ht.Recipe.from_dict(recipe), Path(folder), num_trials, storage)
"""
    arguments = json.dumps([recipe.to_dict(), str(folder), num_trials, storage])
    command = [sys.executable, "-W", "error", "-c", code, arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_search_goes_on_with_the_same_trials(
    found: Path, recipe: ht.Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = begin_search(recipe, tmp_path, 3)
    assert killed.stderr is not None
    assert any("trial 1 of 3: validation loss" in line for line in killed.stderr)
    # In the middle of its second trial, most likely; where does not matter.
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "search.json").exists()
    whole = search(recipe, tmp_path, 3)
    told = capsys.readouterr().err
    assert "trial 1 of 3: " not in told
    assert "trial 3 of 3: " in told
    assert without_seconds(whole) == without_seconds(searches_of(found)["lora", 30])
    # The search of a finished run is read, not done again, for other seeds, too.
    assert search(recipe, tmp_path, 3, seeds=(1, 2)) == whole
    assert ", trial " not in capsys.readouterr().err


@contextmanager
def pretended(study: Study, arm: ht.Arm, *more: Any) -> Iterator[SimpleNamespace]:
    """Tell a loss that depends on the arm's settings, at once."""
    yield SimpleNamespace(validation={"loss": abs(math.log10(arm.learning_rate) + 2.2) + 1 / arm.num_epochs + arm.weight_decay})


def test_the_same_search_gives_the_same_trials_wherever_it_was_broken_off(
    recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "trained", pretended)
    whole = search(recipe, tmp_path / "whole", 9)
    assert len({json.dumps(trial["params"]) for trial in whole["trials"]}) == 9
    left = [2, 3, 0, 1]
    broken_off = 0

    @contextmanager
    def broken(*arguments: Any) -> Iterator[SimpleNamespace]:
        nonlocal broken_off
        if left and left[0] == 0:
            left.pop(0)
            broken_off += 1
            raise KeyboardInterrupt
        if left:
            left[0] -= 1
        with pretended(*arguments) as found:
            yield found

    monkeypatch.setattr(searching, "trained", broken)
    while True:
        with suppress(KeyboardInterrupt):
            again = search(recipe, tmp_path / "broken", 9)
            break
    assert broken_off == 4
    assert without_seconds(again) == without_seconds(whole)
    # A longer search begins with the trials of a shorter one.
    shorter = search(recipe, tmp_path / "shorter", 6)
    assert without_seconds(shorter)["trials"] == without_seconds(whole)["trials"][:6]


def test_two_processes_share_one_storage(recipe: ht.Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    processes = [begin_search(recipe, tmp_path / name, 6, storage) for name in ("one", "two")]
    told = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], told
    assert 6 <= sum(", trial " in line and "of 6: validation loss" in line for line in told.splitlines()) <= 7, told
    one, two = (searches_of(tmp_path / name)["lora", 30] for name in ("one", "two"))
    assert one == two
    assert [trial["number"] for trial in one["trials"]] == list(range(6))
    assert one["trials"][0]["params"] == own_values(recipe.arms["lora"], one["space"])
    assert len({json.dumps(trial["params"]) for trial in one["trials"]}) == 6
    # A machine that joins when all are there trains nothing.
    capsys.readouterr()
    assert search(recipe, tmp_path / "three", 6, storage) == one
    assert ", trial " not in capsys.readouterr().err


def test_a_machine_whose_clock_is_late_displaces_no_trial(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "trained", pretended)
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    more = search(recipe, tmp_path / "more", 6, storage)
    with sqlite3.connect(tmp_path / "shared.db") as database:
        database.execute("UPDATE trials SET datetime_complete = '2001-01-01 00:00:00' WHERE number = 5")
    database.close()
    fewer = search(recipe, tmp_path / "fewer", 5, storage)
    assert [trial["params"] for trial in fewer["trials"]] == [trial["params"] for trial in more["trials"][:5]]


def test_accelerates_processes_train_each_trial_together(topics_folder: Path, tiny_bert: Path, tmp_path: Path) -> None:
    words = ["--dataset", topics_folder, "--checkpoint", tiny_bert, "--max-length", 32, "--epochs", 1, "--arms", "lora", "--search", 3]
    done = launched(FOLDER / "newsgroups.py", 2, *words, "--output-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert sum("of 3: validation loss" in line for line in done.stderr.splitlines()) == 3, "one process tells"
    entry = searches_of(tmp_path / "run")["lora", "all"]
    assert [trial["number"] for trial in entry["trials"]] == [0, 1, 2]
    result = json.loads((tmp_path / "run" / "lora" / "budget-all" / "seed-0" / "result.json").read_text())
    assert result["settings"]["learning_rate"] == entry["chosen"]["params"]["learning_rate"]
    assert result["metrics"]["validation"]["loss"] == pytest.approx(entry["chosen"]["validation_loss"], abs=1e-5)


def test_a_share_that_died_with_the_recipes_own_setting_holds_up_nobody(recipe: ht.Recipe, tmp_path: Path) -> None:
    from optuna import load_study

    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    whole = search(recipe, tmp_path / "one", 2, storage)
    shared = load_study(study_name=whole["study"], storage=storage)
    assert len(shared.trials) == 2
    with sqlite3.connect(tmp_path / "shared.db") as database:
        database.execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 0")
    database.close()
    again = search(recipe, tmp_path / "two", 2, storage)
    assert without_seconds(again) == without_seconds(whole)


def test_test_rows_are_not_read(recipe: ht.Recipe, tmp_path: Path) -> None:
    class Unread:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"test.{name} is read")

    settings = check_settings(recipe, ["head", "lora"], [30], search=1)
    study = prepare_study(recipe, ["head", "lora"], [30], [0], make_accelerator("fp32"))
    search_arms(replace(study, test=Unread()), settings, tmp_path)
    assert len(searches_of(tmp_path)) == 2


def test_a_trial_that_diverges_is_spent(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = []

    def trained(*arguments: Any) -> Any:
        spent.append(arguments)
        if len(spent) in (1, 3):
            raise TrainingError("the loss is no finite number")
        return train(*arguments)

    train = searching.trained
    monkeypatch.setattr(searching, "trained", trained)
    entry = search(recipe, tmp_path, 3)
    assert len(spent) == 3
    assert [trial["validation_loss"] is None for trial in entry["trials"]] == [True, False, True]
    assert entry["chosen"]["number"] == 1


def test_where_all_diverge_the_recipes_own_values_stand(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any) -> Any:
        raise TrainingError("the loss is no finite number")

    monkeypatch.setattr(searching, "trained", diverge)
    entry = search(recipe, tmp_path, 7)
    assert len(entry["trials"]) == 7
    assert entry["chosen"] == {"number": 0, "params": own_values(recipe.arms["lora"], entry["space"]), "validation_loss": None}


def test_a_bug_ends_the_search_and_lacking_memory_a_trial(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_with(error: Exception) -> None:
        def fail(*arguments: Any) -> Any:
            raise error

        monkeypatch.setattr(searching, "trained", fail)

    fail_with(RuntimeError("a shape of ours is wrong"))
    with pytest.raises(RuntimeError, match="a shape of ours"):
        search(recipe, tmp_path, 2)
    fail_with(MemoryError())
    assert [trial["validation_loss"] for trial in search(recipe, tmp_path, 2)["trials"]] == [None, None]


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_cell_with_settings_that_were_searched_goes_on_from_its_state(
    recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_failed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(searching, "trained", pretended)
    folder = tmp_path / "run"
    cell = folder / "scratch/budget-30/seed-0"
    asked: dict[str, Any] = {"arms": ["scratch"], "budgets": [30], "search": 4, "output_dir": folder}
    with monkeypatch.context() as patch:
        looks: list[int] = []
        patch.setattr(Stopping, "is_asked", property(lambda self: looks.append(1) or len(looks) > 3))
        with pytest.raises(Interrupted, match="its state saved"):
            ht.run(recipe, **asked)
    assert searches_of(folder)["scratch", 30]["chosen"]["number"] > 0, "the recipe's own settings would show nothing"
    if has_failed:
        (cell / "failure.json").write_text(json.dumps({"error": "memory does not suffice"}))
    begun = shutil.copytree(folder, tmp_path / "begun")
    ht.run(recipe, **asked, resume=True)
    assert len(json.loads((cell / "result.json").read_text())["resumed_from"]) == 1
    # Settings that another search chose are another training.
    (begun / "search.json").unlink()
    (begun / "search.db").unlink()
    other = ht.Arm(init="scratch", learning_rate=1e-4, num_epochs=1)
    monkeypatch.setattr("hf_transfer.evidence.search.arm_with", lambda arm, params: other)
    ht.run(recipe, **asked | {"output_dir": begun}, resume=True)
    assert json.loads((begun / cell.relative_to(folder) / "result.json").read_text())["resumed_from"] == []
    assert "begun with other settings than the search chose now" in capsys.readouterr().err


def test_what_a_finished_cell_was_trained_with_stands(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "trained", pretended)
    before = search(recipe, tmp_path, 2)
    # As where a run goes on on a device of another precision.
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda accelerator: "bf16"))
    cell = tmp_path / "lora/budget-30/seed-0"
    cell.mkdir(parents=True)
    (cell / "result.json").write_text("{}")
    assert search(recipe, tmp_path, 2) == before
    (cell / "result.json").unlink()
    assert search(recipe, tmp_path, 2)["study"] != before["study"]


def test_a_process_that_is_lost_alone_is_lost_for_all() -> None:
    assert why_lost(TrainingError("no memory"), 1) == "no memory"
    assert why_lost(TrainingError("no memory"), 2) is None
    assert why_lost(SharedTrainingError("no finite number"), 2) == "no finite number"
    assert why_lost(MemoryError(), 2) is None


def test_what_is_searched_is_part_of_the_name(recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any) -> Any:
        raise TrainingError("the loss is no finite number")

    monkeypatch.setattr(searching, "trained", diverge)
    changes: list[dict[str, Any]] = [{}, {"arms.lora.lora.lora_dropout": 0.1}, {"training.batch_size": 4}, {"task.max_length": 24}]
    names = [search(recipe.override(change), tmp_path / str(number), 1)["study"] for number, change in enumerate(changes)]
    assert len(set(names)) == 4
    # How an update is computed makes no other search.
    assert search(recipe.override({"training.micro_batch_tokens": 64}), tmp_path / "small", 1)["study"] == names[0]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("trials.db", "must be the URL of a database (sqlite:///trials.db, postgresql://USER:PASSWORD@HOST/NAME), found 'trials.db'"),
        ("oracel://me:hush@host/db", "SQLAlchemy knows no database 'oracel'"),
        ("sqlite:////nowhere/at/all.db", "search_storage sqlite:////nowhere/at/all.db cannot be opened: unable to open database file"),
        ("postgresql://me:hush@host/db?password=hush", "postgresql://me:***@host/db needs the Python package of postgresql"),
        ("postgresql://me:hush@host:port/db", "found postgresql://..."),
        ("sqlite:///README.md", "file is not a database"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_sentence(
    run: Run, topics_folder: Path, tiny_bert: Path, url: str, expected: str, tmp_path: Path
) -> None:
    url = url.replace("README.md", str(ROOT / "README.md"))
    words = ["run", "text", "--dataset", topics_folder, "--checkpoint", tiny_bert, "--search", 2, "--search-storage", url]
    sentence = refused(run(*words))
    assert expected in sentence
    assert "hush" not in sentence
