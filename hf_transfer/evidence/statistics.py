"""Intervals, p-values and what a design could have found: seeds and test rows are both random, and crossed.

The estimand of an arm, or of a difference between two, is its mean over training draws (a seed redraws the budget's rows, the new
weights and the order) and over test rows. All seeds are measured on the same test rows, as several readers read the same cases, and the
analysis is that of such studies (Dorfman, Berbaum & Metz 1992, https://doi.org/10.1097/00004424-199209000-00015; Hillis 2007,
https://doi.org/10.1002/sim.2532).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_transfer.evaluation.metrics import Metrics, Predictions

LEVEL = 0.95
POWER = 0.8
CHUNK = 4096
"""Rows left out at once."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and the p-value of its being 0."""

    mean: float
    ci_low: float
    ci_high: float
    p_value: float
    scope: str
    """"rows" (one seed: other test rows) or "seeds+rows" (another training draw, too)."""
    error: float
    """Standard error of the mean."""
    freedom: float
    """Degrees of freedom of the t interval."""


def row_values(metrics: Metrics, predicted: Predictions, clusters: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Give what each cluster of test rows adds to each metric: jackknife pseudo-values (Efron & Tibshirani 1993, section 11.5).

    Of a mean over rows (accuracy) they are the rows' own values; of macro-F1, MCC or entity F1 they are its linear part at each row. They
    are shifted so that their mean is the metric itself.

    Args:
        metrics: Of the task.
        predicted: The test rows and what a model says of them.
        clusters: Rows that are no independent draws (equal inputs, one document) hold the same number, (B,); None = every row its own.

    Returns:
        Metric -> values in order of the clusters' numbers, (G,).
    """
    counts = metrics.count(predicted)
    if clusters is not None:
        numbers, cluster_of = np.unique(clusters, return_inverse=True)
        if len(numbers) < len(counts):
            summed = np.zeros((len(numbers), counts.shape[1]))
            np.add.at(summed, cluster_of, counts)
            counts = summed
        else:
            counts = counts[np.argsort(clusters)]
    total, num_clusters = counts.sum(axis=0), len(counts)
    whole = {metric: float(values[0]) for metric, values in metrics.divide(total[None]).items()}
    if num_clusters < 2:
        return {metric: np.array([value]) for metric, value in whole.items()}
    chunks = [metrics.divide(total - counts[start : start + CHUNK]) for start in range(0, num_clusters, CHUNK)]
    values = {}
    for metric, value in whole.items():
        left_out = np.concatenate([chunk[metric] for chunk in chunks])
        values[metric] = value + (num_clusters - 1) * (left_out.mean() - left_out)
    return values


def estimate(values: np.ndarray) -> Estimate:
    """Estimate a mean over seeds and rows, both random and crossed, by analysis of variance.

    With mean squares A (seeds), B (rows) and E (rest), the variance of the mean is (A + max(B - E, 0)) / (S G) and its degrees of freedom
    are Satterthwaite's in the form of Hillis 2007, where that of the seeds alone counts: (S - 1) ((A + max(B - E, 0)) / A)^2. A is not
    believed there to be smaller than E, which it estimates when seeds make no difference: a few seeds that agree by chance would
    otherwise pass for certainty. With one seed it is a t interval over rows.

    Where nothing varies at all, the interval is as wide as what shows in none of G rows may be common, 1 - 0.025^(1/G) (Clopper & Pearson
    1934; about 3.7 / G), and the p-value is that of G equal signs.

    Args:
        values: Of a metric, or of a paired difference of one, (S, G).
    """
    num_seeds, num_rows = values.shape
    mean = float(values.mean())
    scope = "rows" if num_seeds == 1 else "seeds+rows"
    if num_rows < 2:
        return Estimate(mean, -np.inf, np.inf, 1.0, scope, np.inf, 1.0)
    if num_seeds == 1:
        freedom = num_rows - 1.0
        variance = float(values.var(ddof=1)) / num_rows
    else:
        seeds, rows, rest = _mean_squares(values)
        # A score of G rows is a multiple of 1 / G: seeds that agree to the row may differ by what that hides (Sheppard 1898).
        seeds = max(seeds, min(rest, 1 / (12 * num_rows)))
        of_rows = max(rows - rest, 0.0)
        variance = (seeds + of_rows) / values.size
        believed = max(seeds, rest)
        freedom = (num_seeds - 1) * ((believed + of_rows) / believed) ** 2 if believed > 0 else num_rows - 1.0
    error = float(np.sqrt(variance))
    if error < np.finfo(np.float32).eps:
        half = 1 - ((1 - LEVEL) / 2) ** (1 / num_rows)
        p_value = 1.0 if abs(mean) <= half else 2.0 ** (1 - num_rows)
        return Estimate(mean, mean - half, mean + half, p_value, scope, 0.0, freedom)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return Estimate(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)), scope, error, freedom)


def minimum_detectable(found: Estimate, family: int) -> float:
    """Give the smallest true gain that such a design calls in four of five runs, at a level that holds whatever else Holm's family finds.

    It is a multiple of the standard error (Bloom 1995, https://doi.org/10.1177/0193841X9501900504), and no less than half the interval.

    Args:
        found: Of the gain.
        family: Gains that are tested together.
    """
    level = (1 - LEVEL) / family
    multiple = stats.t.ppf(1 - level / 2, found.freedom) + stats.t.ppf(POWER, found.freedom)
    return max(float(multiple) * found.error, found.ci_high - found.mean)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one family for their number (Holm 1979, https://www.jstor.org/stable/4615733)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Give the mean squares of seeds, of rows and of the rest, of (S, G) values with one observation a cell.

    Searle, Casella & McCulloch 1992, Variance Components, section 4.3.
    """
    num_seeds, num_rows = values.shape
    mean, by_seed, by_row = values.mean(), values.mean(axis=1), values.mean(axis=0)
    seeds = num_rows * float(((by_seed - mean) ** 2).sum()) / (num_seeds - 1)
    rows = num_seeds * float(((by_row - mean) ** 2).sum()) / (num_rows - 1)
    rest = float(((values - by_seed[:, None] - by_row + mean) ** 2).sum()) / ((num_seeds - 1) * (num_rows - 1))
    return seeds, rows, rest
