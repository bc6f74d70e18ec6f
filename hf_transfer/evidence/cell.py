"""One cell of a run: an arm trained on one budget with one seed, validated, tested once, saved."""

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from hf_transfer.data.roles import Budget
from hf_transfer.errors import TrainingError
from hf_transfer.evaluation.metrics import classification_metrics
from hf_transfer.evaluation.prediction import predict_logits
from hf_transfer.evidence.environment import describe_environment
from hf_transfer.evidence.study import Rows, Study, build_arm
from hf_transfer.files import MODEL_FOLDER, PREDICTIONS_FILE, RESULT_FILE, atomic_file, write_json
from hf_transfer.models.build import count_parameters
from hf_transfer.models.saved import Sidecar, save_model
from hf_transfer.models.tuning import freeze_unused
from hf_transfer.recipe import Arm
from hf_transfer.training.device import peak_memory_bytes, reset_peak_memory
from hf_transfer.training.loop import Training, train
from hf_transfer.training.optimization import build_optimizer
from hf_transfer.training.plan import UpdatePlan

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
    unused = freeze_unused(model, study.collate(train_rows.encoded[:1]))
    trainable_parameters, total_parameters = count_parameters(model)
    done = _train(study, model, arm, train_rows, validation_rows, seed, title=f"{arm_name}  budget {budget}  seed {seed}")
    validation_metrics, _ = evaluate(study, model, validation_rows)
    test_metrics, probabilities = evaluate(study, model, study.test)
    result = {
        "arm": arm_name,
        "init": arm.init,
        "tuning": arm.tuning,
        "seed": seed,
        "budget": budget,
        "checkpoint": study.recipe.checkpoint,
        "dataset": study.recipe.data.source,
        "metrics": {"validation": validation_metrics, "test": test_metrics},
        "cost": {
            "wall_seconds": time.perf_counter() - started,
            "train_seconds": done.train_seconds,
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
        _write_cell(study, accelerator.unwrap_model(model, keep_fp32_wrapper=False), probabilities, result, folder)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return result


def _train(study: Study, model: nn.Module, arm: Arm, rows: Rows, validation_rows: Rows, seed: int, title: str) -> Training:
    """Train an arm's model on the rows of a cell."""
    settings = study.recipe.training
    plan = UpdatePlan(
        lengths=np.array([len(row) for row in rows.encoded], dtype=np.int64),
        weights=row_weights(rows.examples.labels, study.labels, settings.class_weights),
        batch_size=settings.batch_size,
        num_epochs=arm.num_epochs,
        max_tokens=study.max_tokens,
        seed=seed,
        num_processes=study.accelerator.num_processes,
    )
    can_choose = len(validation_rows) >= MIN_ROWS_TO_CHOOSE
    return train(
        model,
        build_optimizer(model, settings.optimizer, arm.learning_rate, arm.weight_decay),
        plan,
        rows.encoded,
        rows.examples.labels,
        collate=study.collate,
        row_losses=functools.partial(study.task.row_losses, label_smoothing=settings.label_smoothing),
        validate=lambda current: evaluate(study, current, validation_rows)[0],
        accelerator=study.accelerator,
        learning_rate=arm.learning_rate,
        warmup_fraction=settings.warmup_fraction,
        schedule=settings.schedule,
        max_grad_norm=settings.max_grad_norm,
        restore_best=can_choose,
        patience=settings.early_stopping_patience if can_choose else None,
        title=title,
    )


def evaluate(study: Study, model: nn.Module, rows: Rows) -> tuple[dict[str, Any], np.ndarray]:
    """Predict labelled rows and measure.

    Args:
        study: What the cells share.
        model: Unwrapped model.
        rows: (B,) rows.

    Returns:
        `loss` (mean cross-entropy, nats, unweighted), its standard error over rows (None for one row) and the task's metrics;
        probabilities (B, C).

    Raises:
        TrainingError: A logit is no finite number.
    """
    logits = predict_logits(model, rows.encoded, study.collate, study.max_tokens, study.accelerator)
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the model predicts what is no finite number: lower the learning rate, lengthen the warmup, or take --precision fp32"
        )
    labels = rows.examples.labels
    losses = study.task.row_losses(torch.from_numpy(logits), torch.from_numpy(labels)).double().numpy()
    probabilities = study.task.probabilities(logits)
    metrics: dict[str, Any] = {
        "loss": float(losses.mean()),
        "loss_standard_error": float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else None,
    }
    return metrics | classification_metrics(labels, probabilities.argmax(axis=1), probabilities), probabilities


def row_weights(labels: np.ndarray, names: list[str], class_weights: str | dict[str, float]) -> np.ndarray:
    """Give what each training row's loss counts.

    Args:
        labels: Class ids of the training rows, (B,).
        names: Label names, (C,).
        class_weights: "none", "balanced" (rows / (classes among them x rows of the class)), or weights by name, others 1.

    Returns:
        (B,) float32.
    """
    if class_weights == "none":
        return np.ones(len(labels), dtype=np.float32)
    if isinstance(class_weights, dict):
        return np.array([class_weights.get(name, 1.0) for name in names], dtype=np.float32)[labels]
    counts = np.bincount(labels, minlength=len(names))
    return (len(labels) / (np.count_nonzero(counts) * counts[labels])).astype(np.float32)


def _write_cell(study: Study, model: nn.Module, probabilities: np.ndarray, result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    checkpoint = study.architecture.checkpoint
    sidecar = Sidecar(study.recipe.to_dict()["task"], study.labels, checkpoint.base_id, checkpoint.revision, checkpoint.sha256)
    save_model(model, checkpoint.tokenizer, sidecar, folder / MODEL_FOLDER)
    examples = study.test.examples
    table = pa.table(
        {
            "row_id": examples.row_ids,
            "reference": examples.labels,
            "prediction": probabilities.argmax(axis=1),
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.ravel()), probabilities.shape[1]),
        }
    )
    with atomic_file(folder / PREDICTIONS_FILE) as temporary:
        pq.write_table(table, temporary)
    write_json(folder / RESULT_FILE, result)
