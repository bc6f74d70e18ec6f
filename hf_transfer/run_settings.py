"""Which cells of a recipe a run trains, and how it goes about it: what is asked for beside the recipe itself."""

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeGuard

from hf_transfer.errors import ConfigError, did_you_mean, listed
from hf_transfer.files import RECIPE_FILE
from hf_transfer.recipe import DEFAULT_ARMS, Recipe, read_yaml

Budget = int | Literal["all"]
"""Labelled rows an arm may use, training and validation together."""


def budget_order(budget: int | str) -> float:
    """Give what sorts budgets: "all" is the largest."""
    return float("inf") if budget == "all" else float(budget)


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
RECORDED = ("arms", "budgets", "seeds", "max_test_rows", "search", "private_data")
"""Settings that decide what a run finds or shows: the `run` section of its recipe.yaml, and of a config file."""


@dataclass(frozen=True)
class RunSettings:
    """Which cells of a recipe a run trains, and how it goes about it; from `check_settings`."""

    arms: list[str]
    budgets: list[Budget]
    seeds: list[int]
    max_test_rows: int | None = None
    """Sample size of the test rows, None = all."""
    search: int | None = None
    """Trials that every arm gets at every budget to find its hyperparameters, None = those of the recipe stand."""
    search_storage: str | None = None
    """URL of a database that the trials are kept in, None = a file of the run folder."""
    parallel: int = 1
    """Cells trained at once, one device each."""
    tracker: str | None = None
    """One of `TRACKERS`, None = none."""
    private_data: bool = False
    """Write no text or image of the data into the run folder."""
    resume: bool = False
    """Go on with what the run folder holds."""
    max_minutes: float | None = None
    """Minutes after which the run ends, the state of the training it is in saved; None = it ends when it is done."""

    def recorded(self) -> dict[str, Any]:
        """Give the `run` section of recipe.yaml."""
        return {name: getattr(self, name) for name in RECORDED}


def check_settings(
    recipe: Recipe,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | str] | None = None,
    seeds: Sequence[int] | None = None,
    max_test_rows: int | None = None,
    *,
    search: int | None = None,
    search_storage: str | None = None,
    parallel: int = 1,
    tracker: str | None = None,
    private_data: bool = False,
    resume: bool = False,
    max_minutes: float | None = None,
) -> RunSettings:
    """Check what is asked for; arms, budgets and seeds come once each.

    Raises:
        ConfigError: A value cannot be meant.
    """
    checked_arms = check_arms(recipe, arms)
    for name, number in (("max_test_rows", max_test_rows), ("search", search), ("parallel", parallel)):
        if not (_is_whole(number) and number >= 1) and (number is not None or name == "parallel"):
            raise ConfigError(f"{name} must be a number of at least 1, found {number!r}")
    is_number = isinstance(max_minutes, Real) and not isinstance(max_minutes, bool)
    if max_minutes is not None and not (is_number and 0 < max_minutes < float("inf")):
        raise ConfigError(f"max_minutes must be a number above 0, found {max_minutes!r}")
    if search_storage is not None and search is None:
        raise ConfigError("search_storage keeps the trials of a search, and none is asked for: give search (--search N), too")
    if tracker is not None and tracker not in TRACKERS:
        raise ConfigError(f"no tracker '{tracker}', there are {listed(TRACKERS)}{did_you_mean(str(tracker), TRACKERS)}")
    for name, flag in (("private_data", private_data), ("resume", resume)):
        if not isinstance(flag, bool):
            raise ConfigError(f"{name} must be true or false, found {flag!r}")
    return RunSettings(
        checked_arms,
        _check_budgets(("all",) if budgets is None else budgets),
        _check_seeds((0,) if seeds is None else seeds),
        None if max_test_rows is None else int(max_test_rows),
        None if search is None else int(search),
        search_storage,
        int(parallel),
        tracker,
        private_data,
        resume,
        None if max_minutes is None else float(max_minutes),
    )


def recorded_settings(run_folder: Path) -> dict[str, Any]:
    """Give the `run` section of the recipe.yaml that a run folder holds, unchecked; nothing where there is none to be read."""
    try:
        section = read_yaml(run_folder / RECIPE_FILE).get("run")
    except ConfigError:
        return {}
    return section if isinstance(section, dict) else {}


def check_arms(recipe: Recipe, arms: Sequence[str] | None) -> list[str]:
    """Give the arms a run trains: those named, or the four standard ones as far as the recipe has them.

    Raises:
        ConfigError: The recipe has no such arm.
    """
    if arms is None:
        return [name for name in DEFAULT_ARMS if name in recipe.arms] or list(recipe.arms)
    named = _listed("arms", arms)
    for name in named:
        if not isinstance(name, str) or name not in recipe.arms:
            raise ConfigError(
                f"recipe {recipe.name} has no arm '{name}', it has {listed(recipe.arms)}{did_you_mean(str(name), recipe.arms)}"
            )
    return list(dict.fromkeys(named))


def _check_budgets(budgets: Sequence[int | str]) -> list[Budget]:
    checked: list[Budget] = []
    for budget in _listed("budgets", budgets):
        if isinstance(budget, str) and budget == "all":
            checked.append("all")
        elif (_is_whole(budget) or (isinstance(budget, str) and budget.isdecimal() and len(budget) < 20)) and 0 < int(budget) < 2**63:
            checked.append(int(budget))
        else:
            raise ConfigError(f"a budget is a number of rows above 0, or 'all', found {budget!r}")
    return list(dict.fromkeys(checked))


def _check_seeds(seeds: Sequence[int]) -> list[int]:
    checked = []
    for seed in _listed("seeds", seeds):
        if not _is_whole(seed) or not 0 <= int(seed) < 2**32:
            raise ConfigError(f"a seed is a whole number from 0 to {2**32 - 1}, found {seed!r}")
        checked.append(int(seed))
    return list(dict.fromkeys(checked))


def _is_whole(value: Any) -> TypeGuard[int]:
    """Say whether a value is a whole number, of Python or numpy; True and False are none, though they are to Python."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _listed(what: str, values: Any) -> list[Any]:
    """Refuse what is no list of at least one value: a single word would be read letter by letter."""
    if isinstance(values, str) or not isinstance(values, Iterable) or not (found := list(values)):
        raise ConfigError(f"{what} must be a list of one or more, found {values!r}")
    return found
