"""The search before a run's cells: every arm gets the same number of trials at every budget, and validation loss chooses.

A trial trains an arm on the rows that the first seed draws, with values from `search_space.space_of`, and is measured by the mean
validation loss of the state that would be kept. The first trial is the recipe's own setting, so a search never chooses worse on
validation than the recipe. Test rows are not read.
"""

import functools
import gc
import hashlib
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_transfer.disk import read_json, write_json
from hf_transfer.errors import CheckpointError
from hf_transfer.evidence.arms import check_arm
from hf_transfer.evidence.attempt import why_lost
from hf_transfer.evidence.cell import trained
from hf_transfer.evidence.fit import MIN_ROWS_TO_CHOOSE
from hf_transfer.evidence.search_space import Space, arm_with, blocks_around, own_values, space_of
from hf_transfer.evidence.search_storage import Trial, Trials, describe_trials, file_url, open_storage, without_password
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.files import RESULT_FILE, SEARCH_DATABASE, SEARCH_FILE, cell_folder
from hf_transfer.recipe import HOW_COMPUTED, Arm
from hf_transfer.run_settings import Budget, RunSettings
from hf_transfer.training.processes import on_main_process, say

UNCOMPARED = (*HOW_COMPUTED, "precision")
"""Training settings that two searches may differ in and still be one. The precision that "auto" came to is compared instead."""


def check_search_storage(settings: RunSettings, accelerator: Accelerator) -> None:
    """Open the database of trials that a user names, so that a mistake shows before any training.

    Raises:
        ConfigError: The URL is none, or cannot be opened.
        InstallationError: Its driver is missing.
    """
    url = settings.search_storage
    if url is not None:
        on_main_process(accelerator, lambda: open_storage(url).engine.dispose())


def search_arms(study: Study, settings: RunSettings, run_folder: Path) -> dict[tuple[str, Budget], Arm]:
    """Search every arm at every budget, and write `search.json`; what it holds already, or the database, is not done again.

    Args:
        study: What the cells share.
        settings: Arms, budgets, the first of the seeds, the number of trials and their storage.
        run_folder: Of the run.

    Returns:
        (arm, budget) -> its settings with the values chosen.

    Raises:
        RunFolderError: The storage fails.
    """
    assert settings.search is not None
    accelerator, path = study.accelerator, run_folder / SEARCH_FILE
    url = settings.search_storage or file_url(run_folder / SEARCH_DATABASE)
    told = without_password(url) if settings.search_storage else SEARCH_DATABASE
    done = on_main_process(accelerator, lambda: read_json(path)["searches"] if path.is_file() else [])
    entries = {(entry["arm"], entry["budget"]): entry for entry in done}
    keys = [(name, budget) for budget, name in itertools.product(settings.budgets, settings.arms)]
    # Another device may compute in another precision, which is another search: the arm's cells to come train as those that are done.
    fixed = on_main_process(accelerator, lambda: [key for key in keys if key in entries and _has_cell(run_folder, *key, settings.seeds)])
    chosen = {}
    for name, budget in keys:
        earlier = entries.get((name, budget))
        # The seed of the run's beginning stands: all seeds of an arm train with the same settings, those asked for later, too.
        search = _plan(study, name, budget, earlier["seed"] if earlier else settings.seeds[0], settings.search)
        is_same = earlier is not None and (earlier["study"], len(earlier["trials"])) == (search.study_name, search.num_trials)
        if not is_same and (name, budget) not in fixed:
            entries[name, budget] = _run(study, search, url, is_shared=settings.search_storage is not None)
            if accelerator.is_main_process:
                write_json(path, {"num_trials": settings.search, "storage": told, "searches": list(entries.values())})
        chosen[name, budget] = arm_with(search.arm, entries[name, budget]["chosen"]["params"])
    accelerator.wait_for_everyone()
    return chosen


def _has_cell(run_folder: Path, arm: str, budget: Budget, seeds: Sequence[int]) -> bool:
    return any((cell_folder(run_folder, arm, budget, seed) / RESULT_FILE).is_file() for seed in seeds)


@dataclass(frozen=True)
class _Search:
    """What is searched."""

    arm_name: str
    arm: Arm
    """The recipe's."""
    budget: Budget
    seed: int
    num_trials: int
    space: Space
    study_name: str
    """Trials of one name are comparable."""


def _plan(study: Study, name: str, budget: Budget, seed: int, num_trials: int) -> _Search:
    arm = study.recipe.arms[name]
    space = space_of(arm, [number for number in blocks_around(arm) if _has_blocks(study, arm, number)])
    training = {field: value for field, value in asdict(study.recipe.training).items() if field not in UNCOMPARED}
    compared = {
        "task": asdict(study.recipe.task),
        "training": training,
        "arm": asdict(arm),
        "space": space,
        "data": [study.corpus.fingerprint, study.labels],
        "checkpoint": study.architecture.checkpoint.sha256,
        "precision": study.accelerator.mixed_precision,
    }
    digest = hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]
    study_name = f"{study.recipe.name}/{name}/budget-{budget}/seed-{seed}/{digest}"
    return _Search(name, arm, budget, seed, num_trials, space, study_name)


def _has_blocks(study: Study, arm: Arm, num_blocks: int) -> bool:
    try:
        check_arm(study.architecture, replace(arm, num_blocks=num_blocks), study.recipe.training, study.task.PEFT_TASK_TYPE)
    except CheckpointError:
        return False
    return True


def _run(study: Study, search: _Search, url: str, is_shared: bool) -> dict[str, Any]:
    """Train trials until those that count are there, and give the search's entry of `search.json`.

    Args:
        study: What the cells share.
        search: What is searched.
        url: Of the database.
        is_shared: Others may be working on it.
    """
    accelerator = study.accelerator
    train_rows, validation_rows = study.draw(search.budget, search.seed)
    title = f"search {search.arm_name}, budget {search.budget}"
    if len(validation_rows) < MIN_ROWS_TO_CHOOSE:
        say(
            accelerator,
            f"note: {title}: its trials are compared on {len(validation_rows)} validation rows, below {MIN_ROWS_TO_CHOOSE}: much of "
            "what they choose is chance",
        )
    opened: list[Trials] = []

    def begin() -> None:
        own = own_values(search.arm, search.space)
        opened.append(Trials(open_storage(url), search.study_name, search.space, own, search.num_trials))
        if not is_shared:
            opened[0].give_up_running()

    try:
        on_main_process(accelerator, begin)
        while asked := on_main_process(accelerator, lambda: opened[0].ask()):
            number, params = asked
            started = time.perf_counter()
            trial_title = f"{title}, trial {number + 1} of {search.num_trials}"
            loss = _validation_loss(study, arm_with(search.arm, params), train_rows, validation_rows, search.seed, trial_title)
            on_main_process(accelerator, functools.partial(_tell, opened, loss))
            outcome = "diverged" if loss == math.inf else f"validation loss {loss:.4f}"
            say(accelerator, f"{trial_title}: {outcome} ({_describe(params)}), {time.perf_counter() - started:.0f} s")
        trials: list[Trial] = on_main_process(accelerator, lambda: opened[0].finished())
    finally:
        for database in opened:
            database.close()
    entry = {
        "arm": search.arm_name,
        "budget": search.budget,
        "seed": search.seed,
        "study": search.study_name,
        "validation_rows": len(validation_rows),
        "space": {field: list(bounds) for field, bounds in search.space.items()},
        **describe_trials(trials),
    }
    best, own = entry["chosen"], trials[0]
    if best["number"]:
        against = "diverged" if own.validation_loss is None else f"{own.validation_loss:.4f}"
        say(accelerator, f"{title}: {_describe(best['params'])}: validation loss {best['validation_loss']:.4f}, the recipe's own {against}")
    else:
        say(accelerator, f"{title}: no trial was better than the recipe's own values")
    return entry


def _tell(opened: list[Trials], loss: float) -> None:
    opened[0].tell(loss)


def _validation_loss(study: Study, arm: Arm, train_rows: Rows, validation_rows: Rows, seed: int, title: str) -> float:
    """Train an arm and give the mean validation loss of the state that would be kept; infinity where the training cannot go on."""
    try:
        with trained(study, arm, train_rows, validation_rows, [], seed, title) as found:
            return float(found.validation["loss"])
    except (MemoryError, RuntimeError) as error:
        if why_lost(error, study.accelerator.num_processes) is None:
            raise
    # The failed model is only freed now that the error, which holds its frames, is gone.
    gc.collect()
    study.accelerator.free_memory()
    return math.inf


def _describe(params: dict[str, Any]) -> str:
    return ", ".join(f"{field} {value:.3g}" for field, value in params.items())
