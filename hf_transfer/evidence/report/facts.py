"""What a run folder holds, read for its report. What a run did not write (hygiene, examples, a search) is absent from it."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_transfer.disk import read_json
from hf_transfer.errors import RunFolderError, listed
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evidence.predictions import read_predictions
from hf_transfer.evidence.report.sentences import budgets_of
from hf_transfer.files import (
    COMPARISON_FILE,
    EXAMPLES_FILE,
    HYGIENE_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    SEARCH_FILE,
    cell_folder,
)
from hf_transfer.recipe import read_yaml

COMPARISON_KEYS = (
    "task",
    "labels",
    "metrics",
    "primary_metric",
    "arms",
    "gains",
    "recommendation",
    "label_efficiency",
    "training_speed",
    "failed",
)


@dataclass(frozen=True)
class Facts:
    """A finished run."""

    folder: Path
    recipe: dict[str, Any]
    """What `recipe.yaml` holds; `run` in it says which arms, budgets and seeds were trained."""
    comparison: dict[str, Any]
    results: Sequence[dict[str, Any]]
    """`result.json` of each cell that is done, few labels first, then in the order of the arms, then of the seeds."""
    hygiene: dict[str, Any] | None
    examples: dict[str, Any] | None
    search: dict[str, Any] | None

    @property
    def arms(self) -> list[str]:
        """Names of the arms with a result, in the order they were asked for."""
        return list(dict.fromkeys(entry["arm"] for entry in self.comparison["arms"]))

    @property
    def budgets(self) -> list[int | str]:
        """Budgets with a result, few labels first."""
        return budgets_of(self.comparison)

    @property
    def seeds(self) -> list[int]:
        """Seeds with a result."""
        return sorted({result["seed"] for result in self.results})

    @property
    def baseline(self) -> str | None:
        """The arm that gains are measured against, None where there is none."""
        return next((str(gain["baseline"]) for gain in self.comparison["gains"]), None)

    @property
    def finds_entities(self) -> bool:
        """Whether rows hold entities rather than one label each."""
        return bool(self.comparison["task"] == "token-classification")

    def of(self, arm: str, budget: int | str) -> list[dict[str, Any]]:
        """Give the results of an arm at a budget, a seed each."""
        return [result for result in self.results if (result["arm"], result["budget"]) == (arm, budget)]

    @functools.cached_property
    def chosen_predictions(self) -> Predictions | None:
        """What the recommended cell says of the test rows; None where its file was removed."""
        chosen = self.comparison["recommendation"]
        path = cell_folder(self.folder, chosen["arm"], chosen["budget"], chosen["seed"]) / PREDICTIONS_FILE
        return read_predictions(path, self.comparison["labels"])[0] if path.is_file() else None


def read_facts(folder: Path) -> Facts:
    """Read a finished run.

    Raises:
        RunFolderError: It is no folder of a finished run, or of one that an older version wrote.
    """
    if not (folder / COMPARISON_FILE).is_file():
        raise RunFolderError(f"{folder} holds no {COMPARISON_FILE}: expected the folder of a finished run")
    if not (folder / RECIPE_FILE).is_file():
        raise RunFolderError(f"{folder} holds no {RECIPE_FILE}: expected the folder of a finished run, with all its files")
    comparison, recipe = read_json(folder / COMPARISON_FILE), read_yaml(folder / RECIPE_FILE)
    if missing := [key for key in COMPARISON_KEYS if key not in comparison]:
        raise RunFolderError(
            f"{folder / COMPARISON_FILE} has no {listed(missing)}: an older version of this package wrote it; "
            f"run again with --config {folder / RECIPE_FILE}"
        )
    run = recipe["run"]
    paths = (
        cell_folder(folder, arm, budget, seed) / RESULT_FILE
        for budget, arm, seed in itertools.product(budgets_of(comparison), run["arms"], run["seeds"])
    )
    results = [read_json(path) for path in paths if path.is_file()]
    if not results:
        raise RunFolderError(f"{folder} holds no {RESULT_FILE} of any training: expected the folder of a finished run, with all its files")
    return Facts(
        folder=folder,
        recipe=recipe,
        comparison=comparison,
        results=results,
        hygiene=_read_if_there(folder / HYGIENE_FILE),
        examples=_read_if_there(folder / EXAMPLES_FILE),
        search=_read_if_there(folder / SEARCH_FILE),
    )


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return dict(read_json(path)) if path.is_file() else None
