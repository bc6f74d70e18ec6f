"""Intervals and p-values: over test rows with one seed, over seeds and rows with several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_transfer.evaluation.metrics import Metrics, Predictions

NUM_RESAMPLES = 2000
CHUNK = 250
RESAMPLING_SEED = 20260102
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, and the p-value of its being 0."""

    mean: float
    ci_low: float
    ci_high: float
    p_value: float
    scope: str
    """"rows" (one seed: other test rows) or "seeds+rows" (another training draw, too)."""


def resample_metrics(metrics: Metrics, predicted: Predictions) -> dict[str, np.ndarray]:
    """Give each metric on `NUM_RESAMPLES` bootstrap samples of the test rows (Efron & Tibshirani 1993, chapter 13).

    The samples are the same for every call with as many rows, so differences between arms are paired.

    Args:
        metrics: Of the task.
        predicted: The test rows and what a model says of them.

    Returns:
        Metric -> values, (NUM_RESAMPLES,).
    """
    num_rows = predicted.num_rows
    counts = metrics.count(predicted)
    rng = np.random.default_rng(RESAMPLING_SEED)
    chunks = []
    for _ in range(NUM_RESAMPLES // CHUNK):
        drawn = rng.integers(num_rows, size=(CHUNK, num_rows)) + num_rows * np.arange(CHUNK)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=CHUNK * num_rows).reshape(CHUNK, num_rows).astype(np.float64)
        chunks.append(metrics.divide(weights @ counts))
    return {metric: np.concatenate([chunk[metric] for chunk in chunks]) for metric in chunks[0]}


def estimate(by_seed: Sequence[float], resampled: np.ndarray) -> Estimate:
    """Estimate a metric, or a paired difference of one, from its value per seed and its bootstrap over test rows.

    With one seed, the bootstrap's percentile interval and its two-sided p-value. With several, a t interval over the seeds whose
    variance also holds the bootstrap's variance of the mean over seeds (the few degrees of freedom make it wide rather than narrow).

    Args:
        by_seed: The value with each seed, (S,).
        resampled: The mean over seeds on each bootstrap sample of the rows, (R,).
    """
    mean = float(np.mean(by_seed))
    if len(by_seed) == 1:
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        tail = 1 + min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
        return Estimate(mean, float(low), float(high), float(min(1.0, 2 * tail / (len(resampled) + 1))), "rows")
    error = float(np.sqrt(np.var(by_seed, ddof=1) / len(by_seed) + np.var(resampled, ddof=1)))
    freedom = len(by_seed) - 1
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    # Without any spread the difference is exactly what it is: certainly 0, or certainly not.
    p_value = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, p_value, "seeds+rows")


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one family for their number (Holm 1979, https://www.jstor.org/stable/4615733)."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted
