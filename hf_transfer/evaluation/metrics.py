"""Metrics of a classification from counts: count, merge, then divide. Weighted rows make a bootstrap a matrix of counts."""

import numpy as np

CLASSIFICATION_METRICS = ("accuracy", "f1_macro", "mcc", "ece")
"""The first is the primary one."""
NUM_BINS = 15


def classification_metrics(references: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Give accuracy, macro-F1, Matthews correlation and expected calibration error of some rows.

    Args:
        references: Class ids, (B,).
        predictions: Class ids, (B,).
        probabilities: Of each class, (B, C) float32.

    Returns:
        Metric -> value. macro-F1 averages over the classes among references and predictions, as scikit-learn does.

    Raises:
        ValueError: There are no rows.
    """
    weighted = weighted_metrics(references, predictions, probabilities, np.ones((1, len(references))))
    return {name: float(values[0]) for name, values in weighted.items()}


def weighted_metrics(
    references: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Give the metrics for each of R weightings of the same rows.

    MCC is the multi-class form of Gorodkin 2004 (https://doi.org/10.1016/j.compbiolchem.2004.09.006); ECE has 15 equal-width bins
    over the probability of the predicted class (Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599).

    Args:
        references: Class ids, (B,).
        predictions: Class ids, (B,).
        probabilities: Of each class, (B, C).
        weights: How often each row counts, (R, B).

    Returns:
        Metric -> values, (R,).

    Raises:
        ValueError: There are no rows.
    """
    if len(references) == 0:
        raise ValueError("metrics need at least one row, found none")
    num_classes = probabilities.shape[1]
    correct = (references == predictions).astype(np.float64)
    true = weights @ np.eye(num_classes)[references]
    guessed = weights @ np.eye(num_classes)[predictions]
    hits = weights @ (np.eye(num_classes)[references] * correct[:, None])
    total = weights.sum(axis=1)
    num_hits = hits.sum(axis=1)
    seen = (true + guessed) > 0
    f1 = np.divide(2 * hits, true + guessed, out=np.zeros_like(hits), where=seen)
    covariance = num_hits * total - (true * guessed).sum(axis=1)
    scale = np.sqrt((total**2 - (guessed**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1)))
    return {
        "accuracy": num_hits / total,
        "f1_macro": f1.sum(axis=1) / seen.sum(axis=1),
        "mcc": np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0),
        "ece": _calibration_errors(correct, probabilities.max(axis=1).astype(np.float32), weights) / total,
    }


def _calibration_errors(correct: np.ndarray, confidences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Give, for each weighting, the sum over bins of |correct - confidence|, (R,)."""
    bins = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps = np.zeros((len(correct), NUM_BINS))
    gaps[np.arange(len(correct)), bins] = correct - confidences
    return np.abs(weights @ gaps).sum(axis=1)
