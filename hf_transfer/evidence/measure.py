"""Labelled rows predicted and measured: loss, its standard error over rows, and the task's metrics."""

from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.errors import DivergedError
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evaluation.prediction import predict_logits
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.tasks.items import item_losses, to_probabilities


def evaluate(study: Study, model: nn.Module, rows: Rows) -> tuple[dict[str, Any], Predictions]:
    """Predict labelled rows and measure.

    Args:
        study: What the cells share.
        model: Unwrapped model.
        rows: (B,) rows.

    Returns:
        `loss` (mean cross-entropy of the items, nats, without class weights), its standard error over rows (None for one row) and the
        task's metrics; the predictions.

    Raises:
        DivergedError: A logit is no finite number.
    """
    layout = rows.layout
    logits = predict_logits(model, layout, study.collate, study.task.item_logits, study.max_tokens, study.accelerator, study.num_workers)
    if not np.isfinite(logits).all():
        raise DivergedError(
            "the model predicts what is no finite number: lower the learning rate, lengthen the warmup, or take --precision fp32"
        )
    losses = item_losses(torch.from_numpy(logits), torch.from_numpy(rows.labels)).double().numpy()
    probabilities = to_probabilities(logits)
    predictions = study.task.decode(probabilities, layout.first_item, study.labels)
    predicted = Predictions(study.labels, rows.labels, predictions, probabilities, layout.first_item)
    loss, error = _mean_over_rows(losses, loss_shares(study, rows), layout.row_of_item, len(rows))
    return {"loss": loss, "loss_standard_error": error} | study.metrics.of(predicted), predicted


def loss_shares(study: Study, rows: Rows) -> np.ndarray:
    """Give what each item counts by its row, (M,), as the task says."""
    num_items = np.diff(rows.layout.first_item)
    return np.repeat(study.task.item_shares(num_items, study.recipe.task), num_items)


def _mean_over_rows(losses: np.ndarray, shares: np.ndarray, row_of_item: np.ndarray, num_rows: int) -> tuple[float, float | None]:
    """Give the mean loss of items, and its standard error over rows, whose items are no independent draws.

    The error is that of a ratio of two sums over rows (Cochran 1977, section 2.11); with one item a row it is the ordinary one.

    Args:
        losses: (M,).
        shares: What each counts, (M,).
        row_of_item: (M,).
        num_rows: B.
    """
    sums, sizes = (np.bincount(row_of_item, weights=values, minlength=num_rows) for values in (losses * shares, shares))
    if sizes.sum() == 0:
        return 0.0, None
    mean = sums.sum() / sizes.sum()
    if num_rows < 2:
        return float(mean), None
    residuals = sums - mean * sizes
    return float(mean), float(np.sqrt(num_rows / (num_rows - 1) * (residuals**2).sum()) / sizes.sum())
