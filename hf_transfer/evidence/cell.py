"""One cell of a run: an arm trained on one budget with one seed, validated, tested once, saved."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_transfer.data.hub import EMBEDDED, is_local_dataset
from hf_transfer.data.roles import Budget
from hf_transfer.errors import TrainingError
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evaluation.prediction import predict_logits
from hf_transfer.evidence.environment import describe_environment
from hf_transfer.evidence.predictions import write_predictions
from hf_transfer.evidence.study import MIN_ROWS_TO_NORM, Rows, Study, build_arm
from hf_transfer.files import MODEL_FOLDER, PREDICTIONS_FILE, RESULT_FILE, write_json
from hf_transfer.models.build import count_parameters
from hf_transfer.models.saved import Sidecar, save_model
from hf_transfer.models.tuning import depths_of, freeze_unused, trainable_batch_norms
from hf_transfer.recipe import Arm
from hf_transfer.tasks.items import item_losses, to_probabilities
from hf_transfer.training.batches import Batches
from hf_transfer.training.device import peak_memory_bytes, reset_peak_memory
from hf_transfer.training.loop import Training, train
from hf_transfer.training.optimization import build_optimizer
from hf_transfer.training.plan import UpdatePlan
from hf_transfer.training.regularization import StartingPoint, Unfreezing

MIN_ROWS_TO_CHOOSE = 50
"""Validation rows below which neither early stopping nor the best state is chosen: the loss is too noisy there."""


def run_cell(study: Study, arm_name: str, budget: Budget, seed: int, folder: Path) -> dict[str, Any]:
    """Train, choose by validation, read test once, and write the cell's folder; `result.json` comes last and marks it whole.

    Args:
        study: What the cells share.
        arm_name: Arm of the recipe.
        budget: Rows, or "all".
        seed: Draws rows, new parameters, order and dropout.
        folder: Where the cell is written, by the main process.

    Returns:
        What `result.json` holds.

    Raises:
        TrainingError: The loss became no number.
    """
    started = time.perf_counter()
    accelerator, arm = study.accelerator, study.recipe.arms[arm_name]
    reset_peak_memory(accelerator)
    train_rows, validation_rows = study.draw(budget, seed)
    model = build_arm(study.architecture, arm, seed, study.task.PEFT_TASK_TYPE)
    unused = freeze_unused(model, study.collate(train_rows.layout.windows[:1]))
    trainable_parameters, total_parameters = count_parameters(model)
    done = _train(study, model, arm, train_rows, validation_rows, seed, title=f"{arm_name}  budget {budget}  seed {seed}")
    validation_metrics, _ = evaluate(study, model, validation_rows)
    test_metrics, predicted = evaluate(study, model, study.test)
    chain = study.architecture.checkpoint.chain if arm.init == "pretrained" else []
    chain = [*chain, _describe_step(study, arm_name, budget, seed, len(train_rows))]
    result = {
        "arm": arm_name,
        "init": arm.init,
        "tuning": arm.tuning,
        "seed": seed,
        "budget": budget,
        "checkpoint": study.recipe.checkpoint,
        "dataset": study.recipe.data.source,
        "metrics": {"validation": validation_metrics, "test": test_metrics},
        "chain": chain,
        "cost": {
            "wall_seconds": time.perf_counter() - started,
            "train_seconds": done.train_seconds,
            "wait_seconds": done.wait_seconds,
            "cache_seconds": 0.0,
            "updates": done.updates,
            "rows_seen": done.rows_seen,
            "tokens_seen": done.tokens_seen,
            "peak_memory_bytes": peak_memory_bytes(accelerator),
            "trainable_parameters": trainable_parameters,
            "total_parameters": total_parameters,
        },
        "history": done.history,
        "stopped": done.stopped,
        "best_epoch": done.best_epoch,
        "frozen_unused": unused,
        "resumed_from": [],
        "data": {
            "train_rows": len(train_rows),
            "validation_rows": len(validation_rows),
            "test_rows": len(study.test),
            "dropped_rows": study.corpus.dropped_rows,
            "fingerprint": study.corpus.fingerprint,
            "overlap_rows": study.corpus.overlap_rows,
        },
        "environment": describe_environment(accelerator),
    }
    if accelerator.is_main_process:
        _write_cell(study, accelerator.unwrap_model(model, keep_fp32_wrapper=False), predicted, result, folder)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return result


def _train(study: Study, model: nn.Module, arm: Arm, rows: Rows, validation_rows: Rows, seed: int, title: str) -> Training:
    """Train an arm's model on the rows of a cell."""
    settings = study.recipe.training
    layout = rows.layout
    weights = class_weights(rows.labels, study.labels, settings.class_weights, study.task) * loss_shares(study, rows)
    norms = trainable_batch_norms(model)
    if norms and study.accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    plan = UpdatePlan(
        lengths=layout.lengths,
        weights=np.array([weights[items].sum() for items in layout.items]),
        row_of_window=layout.row_of_window,
        balance=rows.examples.strata if settings.sampling == "balanced" else None,
        batch_size=settings.batch_size,
        num_epochs=arm.num_epochs,
        max_tokens=None if norms else study.max_tokens,
        least_rows=MIN_ROWS_TO_NORM * study.accelerator.num_processes if norms else 1,
        seed=seed,
        num_processes=study.accelerator.num_processes,
    )
    model.to(study.accelerator.device)
    head = study.architecture.head
    depths = depths_of(model, head) if arm.layer_decay is not None or arm.gradual_unfreezing is not None else None
    pulled = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in head} if arm.l2_sp is not None else {}
    optimizer = build_optimizer(
        model,
        settings.optimizer,
        arm.learning_rate,
        arm.weight_decay,
        depths,
        layer_decay=1.0 if arm.layer_decay is None else arm.layer_decay,
        undecayed=pulled,
    )
    unfreezing = starting_point = None
    if arm.gradual_unfreezing is not None and depths is not None:
        unfreezing = Unfreezing(model, depths, plan.num_updates, arm.gradual_unfreezing)
    if arm.l2_sp is not None:
        starting_point = StartingPoint(optimizer, list(pulled.values()), arm.l2_sp)
    augments = arm.tuning in ("full", "lora") if arm.augment is None else arm.augment
    batches = Batches(
        layout,
        rows.labels,
        weights.astype(np.float32),
        study.collate,
        study.task.item_logits,
        rows.examples.row_ids,
        augment=study.task.augmenter(study.architecture.checkpoint.processor, study.recipe.task) if augments else None,
        label_smoothing=settings.label_smoothing,
        focal_gamma=settings.focal_gamma,
    )
    can_choose = len(validation_rows) >= MIN_ROWS_TO_CHOOSE
    return train(
        model,
        optimizer,
        plan,
        batches,
        validate=lambda current: evaluate(study, current, validation_rows)[0],
        accelerator=study.accelerator,
        learning_rate=arm.learning_rate,
        warmup_fraction=settings.warmup_fraction,
        schedule=settings.schedule,
        max_grad_norm=settings.max_grad_norm,
        restore_best=can_choose,
        patience=settings.early_stopping_patience if can_choose else None,
        unfreezing=unfreezing,
        starting_point=starting_point,
        num_workers=study.num_workers,
        title=title,
    )


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
        TrainingError: A logit is no finite number.
    """
    layout = rows.layout
    logits = predict_logits(model, layout, study.collate, study.task.item_logits, study.max_tokens, study.accelerator, study.num_workers)
    if not np.isfinite(logits).all():
        raise TrainingError(
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


def class_weights(labels: np.ndarray, names: Sequence[str], weights: str | dict[str, float], task: ModuleType) -> np.ndarray:
    """Give what each training item's loss counts by its class.

    Args:
        labels: Class ids of the training items, (M,).
        names: Label names, (C,).
        weights: "none", "balanced" (items / (classes among them x items of the class)), or weights by name, others 1.
        task: The task's functions, which know the names.

    Returns:
        (M,) float64.
    """
    if isinstance(weights, dict):
        return task.weights_by_class(weights, names)[labels]
    if weights == "none":
        return np.ones(len(labels))
    counts = np.bincount(labels, minlength=len(names))
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


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


def _describe_step(study: Study, arm_name: str, budget: Budget, seed: int, num_rows: int) -> dict[str, Any]:
    """Give this training as a link of a chain: from what, on what, how; no path of the machine."""
    recipe, checkpoint = study.recipe, study.architecture.checkpoint
    arm = recipe.arms[arm_name]
    source = str(recipe.data.source)
    is_path = is_local_dataset(source) and not source.startswith(EMBEDDED)
    is_pretrained = arm.init == "pretrained"
    return {
        "checkpoint": checkpoint.base_id if is_pretrained else None,
        "checkpoint_sha256": checkpoint.sha256 if is_pretrained else None,
        "architecture": study.architecture.config.model_type,
        "task": recipe.task.kind,
        "dataset": Path(source).expanduser().resolve().name if is_path else source,
        "num_labels": len(study.labels),
        "arm": arm_name,
        "tuning": arm.tuning,
        "budget": budget,
        "seed": seed,
        "train_rows": num_rows,
    }


def _write_cell(study: Study, model: nn.Module, predicted: Predictions, result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    checkpoint = study.architecture.checkpoint
    sidecar = Sidecar(
        task=study.recipe.to_dict()["task"],
        labels=study.labels,
        base_checkpoint=checkpoint.base_id,
        base_revision=checkpoint.revision,
        base_sha256=checkpoint.sha256,
        pooling=study.architecture.pooling,
        chain=result["chain"],
    )
    save_model(model, checkpoint.processor, sidecar, folder / MODEL_FOLDER)
    write_predictions(folder / PREDICTIONS_FILE, study.test.examples.row_ids, predicted, as_lists=study.task.MANY_ITEMS)
    write_json(folder / RESULT_FILE, result)
