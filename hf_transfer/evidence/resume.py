"""What a run folder holds of an earlier run, and whether what is asked for now goes on with it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from accelerate import Accelerator

from hf_transfer.disk import empty_folder, holds_something, read_json, remove_folder, sweep
from hf_transfer.errors import ConfigError, RunFolderError, listed
from hf_transfer.evidence.attempt import PlannedCell
from hf_transfer.evidence.cell import description_sha256, origin_of_cell
from hf_transfer.evidence.environment import describe_environment
from hf_transfer.evidence.study import Study
from hf_transfer.files import FAILURE_FILE, PREDICTIONS_FILE, RECIPE_FILE, RESULT_FILE, STATE_FOLDER
from hf_transfer.recipe import HOW_COMPUTED, Recipe, read_yaml
from hf_transfer.run_settings import RunSettings, check_settings
from hf_transfer.training.state import origin_of, state_files

SAME_SETTINGS = ("max_test_rows", "search")
"""Settings that may not change: they decide what every cell finds."""

SHOWING_DATA = ("hygiene.json", "examples.json", "report.html")
"""Files of a run folder that may hold its texts and images."""
COMPARABLE = ("device", "precision", "num_processes", "torch", "transformers")
"""What an environment may change in a result beyond its last digits."""


@dataclass(frozen=True)
class EarlierRun:
    """A run that a folder holds, finished or not."""

    recipe: Recipe
    """As it was resolved."""
    settings: RunSettings
    trained_arms: frozenset[str]
    """Arms with a cell that is finished, or begun and not failed."""


def read_earlier(folder: Path) -> EarlierRun | None:
    """Read which run a folder holds; None where it holds nothing.

    Raises:
        RunFolderError: It holds something else, or a recipe that cannot be read.
    """
    if not holds_something(folder):
        return None
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise RunFolderError(f"output folder {folder} holds other files and no {RECIPE_FILE}, so no run to resume: name another folder")
    try:
        values = read_yaml(path)
        run = values.pop("run", None)
        if not isinstance(run, dict):
            raise ConfigError("it has no section `run`, so no run wrote it")
        recipe = Recipe.from_dict(values)
        settings = check_settings(recipe, **{name: value for name, value in run.items() if value is not None})
    except (ConfigError, TypeError) as error:
        raise RunFolderError(f"cannot go on with the run in {folder}: its {RECIPE_FILE} cannot be read: {error}") from None
    cells = [path for path in folder.glob("*/budget-*/seed-*") if not (path / FAILURE_FILE).is_file()]
    trained = frozenset(cell.parts[-3] for cell in cells if (cell / RESULT_FILE).is_file() or state_files(cell / STATE_FOLDER))
    return EarlierRun(recipe, settings, trained)


def go_on(earlier: EarlierRun, recipe: Recipe, settings: RunSettings, folder: Path) -> tuple[Recipe, RunSettings]:
    """Give what a resumed run trains: the arms, budgets and seeds of both, the rest as the earlier run had it.

    What the earlier run found out by itself (columns, the size of a micro-batch) is taken from there, and so are its arms that are not
    asked for now. A run of private data stays one.

    Args:
        earlier: What the folder holds.
        recipe: Asked for now.
        settings: Asked for now.
        folder: The run folder, to name it.

    Raises:
        ConfigError: A field differs; names all that do, with both values.
    """
    kept = {arm: earlier.recipe.arms[arm] for arm in earlier.settings.arms if arm not in settings.arms}
    recipe = replace(_with_found(recipe, earlier.recipe), arms={**recipe.arms, **kept})
    differences = list(_differences("", _compared(earlier.recipe), _compared(recipe)))
    for name in SAME_SETTINGS:
        differences += _differences(name, getattr(earlier.settings, name), getattr(settings, name))
    arms_before, arms_now = (one.to_dict()["arms"] for one in (earlier.recipe, recipe))
    for arm in sorted(earlier.trained_arms):
        differences += _differences(f"arms.{arm}", arms_before[arm], arms_now[arm])
    if differences:
        raise ConfigError(
            f"cannot go on with the run in {folder}: {'; '.join(differences)}: ask for what the run has (--config {folder / RECIPE_FILE} "
            "does), or name another folder with --output-dir"
        )
    return recipe, replace(
        settings,
        arms=list(dict.fromkeys([*earlier.settings.arms, *settings.arms])),
        budgets=list(dict.fromkeys([*earlier.settings.budgets, *settings.budgets])),
        seeds=list(dict.fromkeys([*earlier.settings.seeds, *settings.seeds])),
        private_data=earlier.settings.private_data or settings.private_data,
    )


def clear_unfinished(folder: Path, study: Study, cells: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Give the cells that are not finished, after removing what is there of them but the states of their trainings.

    Cells are compared by the recipe's settings of their arms; see `drop_states_of_other_settings`.

    Raises:
        RunFolderError: A cell was trained on other data, or from other weights; nothing is removed then.
    """
    finished = [cell for cell in cells if (cell.folder(folder) / RESULT_FILE).is_file()]
    unfinished = [cell for cell in cells if cell not in finished]
    for cell in finished:
        _check_origin(cell.folder(folder), study)
    for cell in unfinished:
        _check_state(cell, folder, study)
    sweep(folder)
    for cell in finished:
        # One that was killed after the last it wrote.
        if (cell.folder(folder) / STATE_FOLDER).is_dir():
            remove_folder(cell.folder(folder) / STATE_FOLDER)
    for cell in unfinished:
        if cell.folder(folder).is_dir():
            empty_folder(cell.folder(folder), keep=[] if _is_given_up(cell, folder, study) else [STATE_FOLDER])
    return unfinished


def _check_state(cell: PlannedCell, folder: Path, study: Study) -> None:
    """Refuse to go on with the state of a training on other data, from other weights, or of an arm with other settings.

    Raises:
        RunFolderError: Names what changed.
    """
    found = origin_of(cell.folder(folder) / STATE_FOLDER)
    if found is None or _is_given_up(cell, folder, study):
        return
    now = origin_of_cell(study, cell.arm_name, cell.arm)
    names = {
        "data": "data",
        "checkpoint": f"checkpoint {study.recipe.checkpoint}",
        "description": f"config, tokenizer or image processor of checkpoint {study.recipe.checkpoint}",
        "arm": f"settings of arm {cell.arm_name}",
    }
    if changed := [name for key, name in names.items() if found[key] != now[key]]:
        _refuse_changed(folder, cell.folder(folder), changed, "was begun")


def _is_given_up(cell: PlannedCell, folder: Path, study: Study) -> bool:
    """Say whether a cell failed and is now tried with other settings, so that the state of its training is of no use."""
    found = origin_of(cell.folder(folder) / STATE_FOLDER)
    return (cell.folder(folder) / FAILURE_FILE).is_file() and found is not None and found["arm"] != asdict(cell.arm)


def drop_states_of_other_settings(folder: Path, cells: Sequence[PlannedCell]) -> list[str]:
    """Remove the states of trainings with other settings than a search, done anew, has chosen; tell of each.

    Args:
        folder: The run folder.
        cells: Unfinished, with the settings chosen.
    """
    dropped = []
    for cell in cells:
        found = origin_of(cell.folder(folder) / STATE_FOLDER)
        if found is not None and found["settings"] != asdict(cell.arm):
            remove_folder(cell.folder(folder) / STATE_FOLDER)
            dropped.append(f"note: {cell}: begun with other settings than the search chose now, so it is trained from its beginning")
    return dropped


def hide_data(folder: Path) -> None:
    """Remove what an earlier run wrote that may show its data: this one's is private."""
    for name in SHOWING_DATA:
        (folder / name).unlink(missing_ok=True)


def mixture_notes(folder: Path, finished: Sequence[PlannedCell], left: Sequence[PlannedCell], accelerator: Accelerator) -> list[str]:
    """Tell in what the finished cells were trained otherwise than those to come will be, and those begun before than they go on."""
    now = describe_environment(accelerator)

    def others(environments: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
        for name in COMPARABLE:
            if values := sorted({str(found[name]) for found in environments if found[name] != now[name]}):
                yield name, listed(values)

    results = [read_json(cell.folder(folder) / RESULT_FILE)["environment"] for cell in finished]
    begun = [found["environment"] for cell in left if (found := origin_of(cell.folder(folder) / STATE_FOLDER)) is not None]
    return [
        *(
            f"cells finished before have {name} {values}, those to come {now[name]}: they differ by more than their arms"
            for name, values in others(results)
        ),
        *(f"trainings begun before with {name} {values} go on with {now[name]}: each is a mixture" for name, values in others(begun)),
    ]


def _check_origin(cell: Path, study: Study) -> None:
    result = read_json(cell / RESULT_FILE)
    if not (cell / PREDICTIONS_FILE).is_file():
        raise RunFolderError(f"{cell / PREDICTIONS_FILE} is gone: bring it back, or remove {cell} to train it again")
    weights = result["chain"][-1]["checkpoint_sha256"]
    found = {
        "data": (result["data"]["fingerprint"], study.corpus.fingerprint),
        f"checkpoint {study.recipe.checkpoint}": (weights, weights and study.architecture.checkpoint.sha256),
        f"config, tokenizer or image processor of checkpoint {study.recipe.checkpoint}": (
            result["description_sha256"],
            description_sha256(study),
        ),
    }
    if changed := [what for what, (before, now) in found.items() if before != now]:
        _refuse_changed(cell.parents[2], cell, changed, "was trained")


def _refuse_changed(folder: Path, cell: Path, changed: Sequence[str], what: str) -> NoReturn:
    raise RunFolderError(
        f"cannot go on with the run in {folder}: the {listed(changed)} changed since {'/'.join(cell.parts[-3:])} {what}: "
        "bring it back, or name another folder with --output-dir"
    )


def _with_found(recipe: Recipe, before: Recipe) -> Recipe:
    """Fill what a run finds out where nobody says it from what the earlier run found."""
    found: dict[str, Any] = {}
    if recipe.training.micro_batch_tokens is None:
        found["training.micro_batch_tokens"] = before.training.micro_batch_tokens
    if recipe.task.kind == before.task.kind:
        columns = {role: getattr(before.task, role) for role in recipe.task.roles if getattr(recipe.task, role, "") is None}
        found |= {f"task.{role}": column for role, column in columns.items()}
    # Two of them may belong together, and are checked together then.
    task = {path.removeprefix("task."): found.pop(path) for path in list(found) if path.startswith("task.")}
    return recipe.override(found).merge({"task": task})


def _compared(recipe: Recipe) -> dict[str, Any]:
    """Give a recipe's fields without its arms, each column once, whoever named it: the task or the data."""
    values = recipe.to_dict()
    del values["arms"]
    values["data"]["columns"] = recipe.columns
    values["training"] = {name: value for name, value in values["training"].items() if name not in HOW_COMPUTED}
    values["task"] = {name: value for name, value in values["task"].items() if name not in recipe.task.roles}
    return values


def _differences(path: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(f"{path}.{name}" if path else name, before.get(name), now.get(name))
    elif before != now:
        yield f"{path}: the run has {_told(before)}, asked for {_told(now)}"


def _told(value: Any) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
