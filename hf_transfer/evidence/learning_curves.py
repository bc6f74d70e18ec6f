"""What more labels and more updates buy: how many labels a checkpoint is worth, and how much sooner it learns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression


def label_efficiency(scores: Sequence[float], num_rows: Sequence[int], score: float, at_rows: int) -> dict[str, Any]:
    """Say how many labels a baseline needs for a score that an arm reached.

    The baseline's learning curve is made monotone (least squares, Barlow et al. 1972) and read between its budgets, linearly over the
    logarithm of the labels; never beyond them.

    Args:
        scores: Of the baseline at each budget, (K,), higher is better.
        num_rows: Labelled rows of these budgets, (K,), rising.
        score: Of the arm.
        at_rows: Labelled rows of the arm's budget.

    Returns:
        `matched`: "reached", "not reached" (by the baseline's largest budget) or "exceeded at once" (by its smallest); `baseline_rows` and
        `ratio` (of the baseline's labels to the arm's), None unless reached.
    """
    curve = isotonic_regression(np.asarray(scores, dtype=np.float64)).x
    above = np.flatnonzero(curve >= score)
    if len(above) == 0 or (above[0] == 0 and curve[0] > score):
        return {"matched": "not reached" if len(above) == 0 else "exceeded at once", "baseline_rows": None, "ratio": None}
    upper = int(above[0])
    needed = float(num_rows[upper])
    if upper > 0:
        share = (score - curve[upper - 1]) / (curve[upper] - curve[upper - 1])
        needed = float(np.exp(np.interp(share, [0, 1], np.log([num_rows[upper - 1], num_rows[upper]]))))
    return {"matched": "reached", "baseline_rows": needed, "ratio": needed / at_rows}


def training_speed(history: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]], metric: str) -> tuple[int | None, int]:
    """Say after how many updates an arm was as good as its baseline at its best, on the same validation rows.

    Args:
        history: Of the arm: what `result.json` holds for each epoch.
        baseline: Of the baseline, the same budget and seed.
        metric: Name of the metric, higher is better.

    Returns:
        Updates of the arm, None if it never was; and updates after which the baseline was at its best.
    """
    best = max(baseline, key=lambda entry: entry["validation"][metric])
    reached = (int(entry["update"]) for entry in history if entry["validation"][metric] >= best["validation"][metric])
    return next(reached, None), int(best["update"])
