"""What the cells of a run say together: each arm's test metrics, gains over scratch, pairs, and which arm to ship."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.evaluation.metrics import Metrics
from hf_transfer.evidence.predictions import read_predictions
from hf_transfer.evidence.statistics import Estimate, estimate, holm, resample_metrics
from hf_transfer.files import PREDICTIONS_FILE, RESULT_FILE, cell_folder, read_json
from hf_transfer.run_settings import Budget

VERDICT_LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """A finished cell, read back."""

    result: dict[str, Any]
    resampled: dict[str, np.ndarray]
    """Metric -> its values on bootstrap samples of the test rows, (R,)."""

    def metric(self, name: str) -> float:
        """Give a test metric."""
        return float(self.result["metrics"]["test"][name])


Cells = Mapping[tuple[str, Budget], Sequence[Cell]]
"""(arm, budget) -> its cells, a seed each."""


def read_cells(
    run_folder: Path, arms: Sequence[str], budgets: Sequence[Budget], seeds: Sequence[int], metrics: Metrics, labels: Sequence[str]
) -> Cells:
    """Read the finished cells of a run.

    Args:
        run_folder: Of the run.
        arms: Names.
        budgets: Rows, or "all".
        seeds: One cell each.
        metrics: Of the task.
        labels: Label names, (C,).
    """
    return {
        (arm, budget): [_read_cell(cell_folder(run_folder, arm, budget, seed), metrics, labels) for seed in seeds]
        for budget, arm in itertools.product(budgets, arms)
    }


def compare(cells: Cells, metrics: Sequence[str]) -> dict[str, Any]:
    """Give what `comparison.json` holds.

    Args:
        cells: All cells of a run, the same seeds for each arm and budget.
        metrics: Names of the task's metrics, the primary one first.
    """
    primary_metric = metrics[0]
    gains = [
        _difference(cells, arm, baseline, budget, metric) | {"baseline": baseline}
        for arm, budget in cells
        for baseline in [_baseline(cells, budget)]
        if baseline is not None and arm != baseline
        for metric in metrics
    ]
    primary = [gain for gain in gains if gain["metric"] == primary_metric]
    for gain in gains:
        gain.update(p_adjusted=None, verdict=None)
    for gain, p_adjusted in zip(primary, holm([gain["p_value"] for gain in primary]), strict=True):
        helps = "helps" if gain["delta"] > 0 else "hurts"
        gain.update(p_adjusted=p_adjusted, verdict=helps if p_adjusted < VERDICT_LEVEL else "no evidence")
    return {
        "primary_metric": primary_metric,
        "arms": [_arm_entry(cells, arm, budget, metric) for arm, budget in cells for metric in metrics],
        "gains": gains,
        "pairs": [
            _difference(cells, arm, other, budget, primary_metric) | {"other": other}
            for budget in dict.fromkeys(budget for _, budget in cells)
            for other, arm in itertools.combinations([arm for arm, at in cells if at == budget], 2)
        ],
        "recommendation": recommend(cells),
    }


def recommend(cells: Cells) -> dict[str, Any]:
    """Choose the arm to ship, by validation alone.

    At the largest budget, of the arms whose mean validation loss is within one standard error of the best arm's, the one with the
    fewest trainable parameters, then the fewest updates; the seed with the median loss.
    """
    budget: Budget = max((budget for _, budget in cells), key=lambda budget: float("inf") if budget == "all" else budget)
    losses = {arm: [_validation(cell)["loss"] for cell in group] for (arm, at), group in cells.items() if at == budget}
    best = min(losses, key=lambda arm: float(np.mean(losses[arm])))
    if len(losses[best]) > 1:
        error, over = float(np.std(losses[best], ddof=1) / np.sqrt(len(losses[best]))), "seeds"
    else:
        error, over = _validation(cells[best, budget][0])["loss_standard_error"] or 0.0, "rows"
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
    return Cell(read_json(folder / RESULT_FILE), resample_metrics(metrics, read_predictions(folder / PREDICTIONS_FILE, labels)))


def _baseline(cells: Cells, budget: Budget) -> str | None:
    """Give the arm that gains are measured against: the one trained whole from scratch, the one called so if there are several."""
    from_scratch = [
        arm
        for (arm, at), group in cells.items()
        if at == budget and group[0].result["init"] == "scratch" and group[0].result["tuning"] == "full"
    ]
    return "scratch" if "scratch" in from_scratch else next(iter(from_scratch), None)


def _arm_entry(cells: Cells, arm: str, budget: Budget, metric: str) -> dict[str, Any]:
    group = cells[arm, budget]
    found = estimate([cell.metric(metric) for cell in group], np.mean([cell.resampled[metric] for cell in group], axis=0))
    wall_seconds = float(np.mean([cell.result["cost"]["wall_seconds"] for cell in group]))
    entry = {"arm": arm, "budget": budget, "metric": metric, "mean": found.mean, **_interval(found, metric)}
    return entry | {"num_seeds": len(group), "wall_seconds": wall_seconds}


def _difference(cells: Cells, arm: str, other: str, budget: Budget, metric: str) -> dict[str, Any]:
    """Estimate arm minus other, paired by seed and by test row."""
    pairs = list(zip(cells[arm, budget], cells[other, budget], strict=True))
    found = estimate(
        [mine.metric(metric) - theirs.metric(metric) for mine, theirs in pairs],
        np.mean([mine.resampled[metric] - theirs.resampled[metric] for mine, theirs in pairs], axis=0),
    )
    return {
        "arm": arm,
        "budget": budget,
        "metric": metric,
        "delta": found.mean,
        **_interval(found, metric, span=1),
        "p_value": found.p_value,
    }


def _interval(found: Estimate, metric: str, span: int = 0) -> dict[str, Any]:
    """Give the interval, cut at what the metric (or, with a span of 1, a difference of two) can be at all: a t interval knows no bounds."""
    low, high = (-1, 1) if metric == "mcc" else (0, 1)
    bounds = (low - span * high, high - span * low)
    return {"ci_low": max(found.ci_low, bounds[0]), "ci_high": min(found.ci_high, bounds[1]), "scope": found.scope}


def _validation(cell: Cell) -> dict[str, Any]:
    return dict(cell.result["metrics"]["validation"])
