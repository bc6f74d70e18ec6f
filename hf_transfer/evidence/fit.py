"""One training of a cell: an arm's settings put into plan, optimizer and loop."""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import nn

from hf_transfer.evidence.arms import MIN_ROWS_TO_NORM, augments
from hf_transfer.evidence.measure import evaluate, loss_shares
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.models.tuning import depths_of, prepare_blocks, trainable_batch_norms
from hf_transfer.recipe import Arm
from hf_transfer.training.batches import Batches
from hf_transfer.training.loop import train
from hf_transfer.training.optimization import build_optimizer
from hf_transfer.training.plan import UpdatePlan
from hf_transfer.training.record import Training
from hf_transfer.training.regularization import StartingPoint, Unfreezing
from hf_transfer.training.state import Saving
from hf_transfer.training.tracking import Log

MIN_ROWS_TO_CHOOSE = 50
"""Validation rows below which neither early stopping nor the best state is chosen: the loss is too noisy there."""


def fit(
    study: Study,
    model: nn.Module,
    arm: Arm,
    rows: Rows,
    validation_rows: Rows,
    seed: int,
    title: str,
    log: Log | None = None,
    saving: Saving | None = None,
) -> Training:
    """Train an arm's model.

    Args:
        study: What the cells share.
        model: From `build_arm`, on its device; changed in place.
        arm: Its settings.
        rows: That train.
        validation_rows: That choose the state kept, where they are enough.
        seed: Draws order, augmentation and dropout.
        title: Of the progress bar.
        log: As of `loop.train`, and so is what follows.
        saving: Where its state is saved.

    Raises:
        TrainingError: The training cannot go on.
        Interrupted: The run is asked to end.
    """
    settings = study.recipe.training
    plan, batches = lay_plan(study, model, arm, rows, seed)
    if trainable_batch_norms(model) and study.accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer, unfreezing, starting_point = _regularized(model, arm, study.architecture.head, settings.optimizer, plan.num_updates)
    prepare_blocks(model, settings.activation_checkpointing, settings.compile)
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
        plain_kernels=settings.activation_checkpointing or settings.compile,
        log=log,
        title=title,
        saving=saving,
        stopping=study.stopping,
    )


def lay_plan(study: Study, model: nn.Module, arm: Arm, rows: Rows, seed: int) -> tuple[UpdatePlan, Batches]:
    """Give which rows make which update of an arm's training, and what their windows are made of; arguments as of `fit`."""
    settings, layout, num_processes = study.recipe.training, rows.layout, study.accelerator.num_processes
    weights = class_weights(rows.labels, study.labels, settings.class_weights, study.task) * loss_shares(study, rows)
    is_normed = bool(trainable_batch_norms(model))
    plan = UpdatePlan(
        lengths=layout.lengths,
        weights=np.array([weights[items].sum() for items in layout.items]),
        row_of_window=layout.row_of_window,
        balance=rows.examples.strata if settings.sampling == "balanced" else None,
        batch_size=settings.batch_size,
        num_epochs=arm.num_epochs,
        max_tokens=None if is_normed else study.max_tokens,
        least_rows=MIN_ROWS_TO_NORM * num_processes if is_normed else 1,
        seed=seed,
        num_processes=num_processes,
    )
    batches = Batches(
        layout,
        rows.labels,
        weights.astype(np.float32),
        study.collate,
        study.task.item_logits,
        rows.examples.row_ids,
        augment=study.task.augmenter(study.architecture.checkpoint.processor, study.recipe.task) if augments(arm) else None,
        label_smoothing=settings.label_smoothing,
        focal_gamma=settings.focal_gamma,
        unit="patches" if study.task.READS_FILES else "tokens",
    )
    return plan, batches


def _regularized(
    model: nn.Module, arm: Arm, head: frozenset[str], optimizer: str, num_updates: int
) -> tuple[torch.optim.Optimizer, Unfreezing | None, StartingPoint | None]:
    """Give the optimizer with an arm's layer decay, and what holds its blocks back or pulls them to where they are now."""
    ordered = arm.layer_decay is not None or arm.gradual_unfreezing is not None
    depths = depths_of(model, head) if ordered else {}
    pulled = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in head} if arm.l2_sp is not None else {}
    layer_decay = 1.0 if arm.layer_decay is None else arm.layer_decay
    built = build_optimizer(model, optimizer, arm.learning_rate, arm.weight_decay, depths, layer_decay, undecayed=pulled)
    unfreezing = None if arm.gradual_unfreezing is None else Unfreezing(model, depths, num_updates, arm.gradual_unfreezing)
    starting_point = None if arm.l2_sp is None else StartingPoint(built, list(pulled.values()), arm.l2_sp)
    return built, unfreezing, starting_point


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
