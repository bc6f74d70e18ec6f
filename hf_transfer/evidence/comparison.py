"""What the cells of a run say together: each arm's test metrics, gains over scratch, pairs, and which arm to ship."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.disk import read_json
from hf_transfer.evaluation.metrics import Metrics
from hf_transfer.evidence.learning_curves import label_efficiency, training_speed
from hf_transfer.evidence.predictions import read_predictions
from hf_transfer.evidence.statistics import Estimate, estimate, holm, minimum_detectable, row_values
from hf_transfer.files import PREDICTIONS_FILE, RESULT_FILE, cell_folder
from hf_transfer.run_settings import Budget, budget_order

VERDICT_LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """A finished cell, read back."""

    result: dict[str, Any]
    values: dict[str, np.ndarray]
    """Metric -> what each cluster of test rows adds to it, (G,); their mean is the metric."""

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.result["seed"])


Cells = Mapping[tuple[str, Budget], Sequence[Cell]]
"""(arm, budget) -> its finished cells, at least one, a seed each."""


def read_cells(
    run_folder: Path, arms: Sequence[str], budgets: Sequence[Budget], seeds: Sequence[int], metrics: Metrics, labels: Sequence[str]
) -> Cells:
    """Read the finished cells of a run; an arm and budget without any is left out.

    Args:
        run_folder: Of the run.
        arms: Names.
        budgets: Rows, or "all".
        seeds: One cell each.
        metrics: Of the task.
        labels: Label names, (C,).
    """
    folders = {
        (arm, budget): [cell_folder(run_folder, arm, budget, seed) for seed in seeds] for budget, arm in itertools.product(budgets, arms)
    }
    finished = {key: [folder for folder in group if (folder / RESULT_FILE).is_file()] for key, group in folders.items()}
    return {key: [_read_cell(folder, metrics, labels) for folder in group] for key, group in finished.items() if group}


def compare(
    cells: Cells, task: str, metrics: Sequence[str], labels: Sequence[str], failed: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Give what `comparison.json` holds.

    Two arms are compared on the seeds that both have finished.

    Args:
        cells: All finished cells of a run.
        task: Its kind.
        metrics: Names of the task's metrics, the primary one first.
        labels: Label names, (C,).
        failed: `arm`, `budget`, `seed` and `error` of the cells that could not be finished.
    """
    budgets = sorted({budget for _, budget in cells}, key=lambda budget: _num_rows(cells, budget))
    baselines = {budget: _baseline(cells, budget) for budget in budgets}
    compared = [
        (arm, baseline, budget)
        for arm, budget in cells
        for baseline in [baselines[budget]]
        if baseline is not None and arm != baseline and _paired(cells, arm, baseline, budget)
    ]
    found = {
        (arm, budget, metric): _difference(cells, arm, baseline, budget, metric) for arm, baseline, budget in compared for metric in metrics
    }
    adjusted = holm([found[arm, budget, metrics[0]].p_value for arm, _, budget in compared])
    gains = []
    for (arm, baseline, budget), p_adjusted in zip(compared, adjusted, strict=True):
        for metric in metrics:
            gain = found[arm, budget, metric]
            entry = {"arm": arm, "baseline": baseline, "budget": budget, "metric": metric, **_describe_difference(gain, metric)}
            entry |= {"p_adjusted": None, "verdict": None, "minimum_detectable": None}
            if metric == metrics[0]:
                direction = "helps" if gain.mean > 0 else "hurts"
                entry["p_adjusted"] = p_adjusted
                entry["verdict"] = direction if p_adjusted < VERDICT_LEVEL else "no evidence"
                entry["minimum_detectable"] = _finite(minimum_detectable(gain, len(compared)))
            gains.append(entry)
    pairs = [
        {"arm": arm, "other": other, "budget": budget, "metric": metrics[0]}
        | _describe_difference(_difference(cells, arm, other, budget, metrics[0]), metrics[0])
        for budget in budgets
        for other, arm in itertools.combinations([arm for arm, at in cells if at == budget], 2)
        if _paired(cells, arm, other, budget)
    ]
    return {
        "task": task,
        "labels": list(labels),
        "metrics": list(metrics),
        "primary_metric": metrics[0],
        "arms": [_arm_entry(cells, arm, budget, metric) for arm, budget in cells for metric in metrics],
        "gains": gains,
        "pairs": pairs,
        "label_efficiency": _label_efficiency(cells, compared, metrics[0]),
        "training_speed": [_training_speed(cells, *key, metrics[0]) for key in compared],
        "recommendation": recommend(cells),
        "failed": [dict(failure) for failure in failed],
    }


def recommend(cells: Cells) -> dict[str, Any]:
    """Choose the arm to ship, by validation alone.

    At the largest budget, of the arms whose mean validation loss is within one standard error of the best arm's, the one with the
    fewest trainable parameters, then the fewest updates; the seed with the median loss. The losses are those of the seeds that all arms
    have finished, where there are any: a seed draws the validation rows, and some draws are easy.
    """
    budget = max((budget for _, budget in cells), key=budget_order)
    finished = {arm: group for (arm, at), group in cells.items() if at == budget}
    shared = set.intersection(*({cell.seed for cell in group} for group in finished.values()))
    compared = {arm: [cell for cell in group if cell.seed in shared or not shared] for arm, group in finished.items()}
    losses = {arm: [_validation(cell)["loss"] for cell in group] for arm, group in compared.items()}
    best = min(losses, key=lambda arm: float(np.mean(losses[arm])))
    if len(losses[best]) > 1:
        error, over = float(np.std(losses[best], ddof=1) / np.sqrt(len(losses[best]))), "seeds"
    else:
        error, over = _validation(compared[best][0])["loss_standard_error"] or 0.0, "rows"
    close = [arm for arm in losses if np.mean(losses[arm]) <= np.mean(losses[best]) + error]

    def size(arm: str) -> tuple[int, float]:
        cost = [cell.result["cost"] for cell in cells[arm, budget]]
        return cost[0]["trainable_parameters"], float(np.mean([entry["updates"] for entry in cost]))

    chosen = min(close, key=size)
    by_loss = sorted(cells[chosen, budget], key=lambda cell: _validation(cell)["loss"])
    seed = by_loss[(len(by_loss) - 1) // 2].result["seed"]
    loss = f"{np.mean(losses[chosen]):.3f}"
    if len(losses) == 1:
        reason = f"the only arm (validation loss {loss})"
    elif chosen == best:
        reason = f"lowest validation loss ({loss}); no arm within its standard error ({error:.3f}) trains fewer parameters"
    else:
        reason = (
            f"fewest trainable parameters ({size(chosen)[0]:,}) among the arms whose validation loss ({loss}) is within one standard "
            f"error ({error:.3f}, over {over}) of the best ({best}, {np.mean(losses[best]):.3f})"
        )
    return {"arm": chosen, "budget": budget, "seed": seed, "reason": reason}


def _read_cell(folder: Path, metrics: Metrics, labels: Sequence[str]) -> Cell:
    predicted, clusters = read_predictions(folder / PREDICTIONS_FILE, labels)
    return Cell(read_json(folder / RESULT_FILE), row_values(metrics, predicted, clusters))


def _baseline(cells: Cells, budget: Budget) -> str | None:
    """Give the arm that gains are measured against: the one trained whole from scratch, the one called so if there are several."""
    from_scratch = [
        arm
        for (arm, at), group in cells.items()
        if at == budget and group[0].result["init"] == "scratch" and group[0].result["tuning"] == "full"
    ]
    return "scratch" if "scratch" in from_scratch else next(iter(from_scratch), None)


def _num_rows(cells: Cells, budget: Budget) -> int:
    """Give the labelled rows of a budget: those that train and those that validate."""
    data = next(group[0].result["data"] for (_, at), group in cells.items() if at == budget)
    return int(data["train_rows"] + data["validation_rows"])


def _arm_entry(cells: Cells, arm: str, budget: Budget, metric: str) -> dict[str, Any]:
    group = cells[arm, budget]
    found = estimate(np.stack([cell.values[metric] for cell in group]))
    return {
        "arm": arm,
        "budget": budget,
        "num_rows": _num_rows(cells, budget),
        "metric": metric,
        "mean": found.mean,
        **_interval(found, metric),
        "num_seeds": len(group),
        "wall_seconds": float(np.mean([cell.result["cost"]["wall_seconds"] for cell in group])),
    }


def _paired(cells: Cells, arm: str, other: str, budget: Budget) -> list[tuple[Cell, Cell]]:
    """Give the cells of two arms that share a seed."""
    theirs = {cell.seed: cell for cell in cells[other, budget]}
    return [(cell, theirs[cell.seed]) for cell in cells[arm, budget] if cell.seed in theirs]


def _difference(cells: Cells, arm: str, other: str, budget: Budget, metric: str) -> Estimate:
    """Estimate arm minus other, paired by seed and by test row."""
    return estimate(np.stack([mine.values[metric] - theirs.values[metric] for mine, theirs in _paired(cells, arm, other, budget)]))


def _describe_difference(found: Estimate, metric: str) -> dict[str, Any]:
    return {"delta": found.mean, **_interval(found, metric, span=1), "p_value": found.p_value}


def _interval(found: Estimate, metric: str, span: int = 0) -> dict[str, Any]:
    """Give the interval, cut at what the metric (or, with a span of 1, a difference of two) can be at all: a t interval knows no bounds."""
    low, high = (-1, 1) if metric == "mcc" else (0, 1)
    bounds = (low - span * high, high - span * low)
    return {"ci_low": max(found.ci_low, bounds[0]), "ci_high": min(found.ci_high, bounds[1]), "scope": found.scope}


def _label_efficiency(cells: Cells, compared: Sequence[tuple[str, str, Budget]], metric: str) -> list[dict[str, Any]]:
    """Say for each arm and budget how many labels its baseline needs for as much; nothing where that has one budget only."""
    entries = []
    for arm, baseline, budget in compared:
        budgets = sorted((at for name, at in cells if name == baseline), key=lambda at: _num_rows(cells, at))
        if len(budgets) < 2:
            continue
        num_rows = [_num_rows(cells, at) for at in budgets]
        curves = [_scores(cells, baseline, at, metric) for at in budgets]
        mine, rows = _scores(cells, arm, budget, metric), _num_rows(cells, budget)
        found = label_efficiency(
            [float(np.mean(list(curve.values()))) for curve in curves], num_rows, float(np.mean(list(mine.values()))), rows
        )
        by_seed = [
            label_efficiency([curve[seed] for curve in curves], num_rows, score, rows)["ratio"]
            for seed, score in mine.items()
            if all(seed in curve for curve in curves)
        ]
        entries.append({"arm": arm, "budget": budget, "num_rows": rows, "baseline": baseline, **found, "ratio_by_seed": by_seed})
    return entries


def _scores(cells: Cells, arm: str, budget: Budget, metric: str) -> dict[int, float]:
    """Give a metric by seed."""
    return {cell.seed: float(cell.values[metric].mean()) for cell in cells[arm, budget]}


def _training_speed(cells: Cells, arm: str, baseline: str, budget: Budget, metric: str) -> dict[str, Any]:
    """Say after how many updates an arm validated as well as its baseline at its best: the median over the seeds where it did."""
    speeds = [
        training_speed(mine.result["history"], theirs.result["history"], metric) for mine, theirs in _paired(cells, arm, baseline, budget)
    ]
    reached = [updates for updates, _ in speeds if updates is not None]
    return {
        "arm": arm,
        "budget": budget,
        "baseline": baseline,
        "updates": float(np.median(reached)) if reached else None,
        "baseline_updates": float(np.median([updates for _, updates in speeds])),
        "num_reached": len(reached),
        "num_seeds": len(speeds),
    }


def _finite(number: float) -> float | None:
    """Give None for what JSON does not hold."""
    return number if np.isfinite(number) else None


def _validation(cell: Cell) -> dict[str, Any]:
    return dict(cell.result["metrics"]["validation"])
