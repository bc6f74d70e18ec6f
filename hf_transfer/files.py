"""Where things lie in a run folder and in the cache, and who may write there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_transfer.disk import check_writable, expanded, held, holds_something, read_json
from hf_transfer.errors import ConfigError, RunFolderError

RECIPE_FILE = "recipe.yaml"
COMPARISON_FILE = "comparison.json"
HYGIENE_FILE = "hygiene.json"
EXAMPLES_FILE = "examples.json"
REPORT_FILE = "report.html"
RESULT_FILE = "result.json"
FAILURE_FILE = "failure.json"
PREDICTIONS_FILE = "predictions.parquet"
MODEL_FOLDER = "model"
SIDECAR_FILE = "hf_transfer.json"
CARD_FILE = "README.md"
SEARCH_FILE = "search.json"
SEARCH_DATABASE = "search.db"
LOGS_FOLDER = "logs"
STATE_FOLDER = "state"
CACHE_GIB = 20.0
"""What the cache may take where the user says nothing."""


def cache_folder() -> Path:
    """Give the folder of what may be computed again: `HF_TRANSFER_CACHE`, or `hf_transfer` where the system keeps caches."""
    given = os.environ.get("HF_TRANSFER_CACHE")
    return expanded(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hf_transfer")


def arrays_folder() -> Path:
    """Give the folder in it that holds arrays, and nothing of anybody else's: what is old there may be removed."""
    return cache_folder() / "arrays"


def cache_limit_bytes() -> int:
    """Give the bytes its arrays may take: `HF_TRANSFER_CACHE_GIB`, 20 where it is not set.

    Raises:
        ConfigError: It is set to no number.
    """
    given = os.environ.get("HF_TRANSFER_CACHE_GIB", str(CACHE_GIB))
    try:
        limit = int(float(given) * 2**30)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise ConfigError(f"HF_TRANSFER_CACHE_GIB must be a number of GiB, found {given!r}: give 0 or more")
    return limit


def cell_folder(run_folder: Path, arm: str, budget: int | str, seed: int) -> Path:
    """Give the folder of one arm x budget x seed: `scratch/budget-512/seed-0`."""
    return run_folder / arm / f"budget-{budget}" / f"seed-{seed}"


def run_folder_of(model_folder: Path) -> Path | None:
    """Give the run folder that a cell's `model/` folder lies in, or None where it was moved out of one."""
    parents = model_folder.resolve().parents
    return parents[3] if len(parents) > 3 and (parents[3] / RECIPE_FILE).is_file() else None


def model_folder_of(folder: Path) -> Path:
    """Give the folder of a model: of a run the recommended one, of a cell its own; any other folder as it is.

    Raises:
        RunFolderError: The run is unfinished, or its model was removed.
    """
    if (folder / COMPARISON_FILE).is_file():
        run = folder
        try:
            chosen = read_json(run / COMPARISON_FILE)["recommendation"]
            folder = cell_folder(run, chosen["arm"], chosen["budget"], chosen["seed"])
        except (TypeError, LookupError):
            raise RunFolderError(f"{run / COMPARISON_FILE} recommends no arm, budget and seed: --resume writes it anew") from None
        if not Path(os.path.normpath(folder)).is_relative_to(os.path.normpath(run)):
            raise RunFolderError(f"{run / COMPARISON_FILE} recommends a model outside the run's folder: it was changed by hand, run again")
        if not (folder / MODEL_FOLDER).is_dir():
            raise RunFolderError(f"the run's recommended model is gone: expected {folder / MODEL_FOLDER}; give the folder of another cell")
    elif (folder / RECIPE_FILE).is_file():
        raise RunFolderError(f"the run in {folder} is unfinished: it has no {COMPARISON_FILE}; give the folder of a cell that is done")
    if (folder / FAILURE_FILE).is_file() and (folder / MODEL_FOLDER).is_dir():
        # The best state of a training that diverged.
        return folder / MODEL_FOLDER
    if not (folder / RESULT_FILE).is_file():
        return folder
    if not (folder / MODEL_FOLDER).is_dir():
        raise RunFolderError(f"{folder} has a {RESULT_FILE} and no {MODEL_FOLDER} folder: the model was removed")
    return folder / MODEL_FOLDER


@contextmanager
def open_run_folder(folder: Path, resume: bool = False) -> Iterator[None]:
    """Have a run folder, new or resumed, for this process alone until the block ends.

    It is looked into when it is held: of two processes that find it empty the second would else write over what the first one, the quicker,
    has finished by then.

    Raises:
        RunFolderError: Another process has it, it cannot be created or written to, or holds something and is not to be resumed.
    """
    check_writable(folder)
    with held(folder):
        if not resume:
            _check_unclaimed(folder)
        yield


def _check_unclaimed(folder: Path) -> None:
    if holds_something(folder):
        marks = {COMPARISON_FILE: "another run", RECIPE_FILE: "an unfinished run"}
        what = next((what for mark, what in marks.items() if (folder / mark).exists()), None)
        go_on = "" if what is None else "go on with it (--resume), "
        raise RunFolderError(
            f"output folder {folder} already holds {what or 'other files'}: {go_on}name another with --output-dir, or move this one away"
        )
