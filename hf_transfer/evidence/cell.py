"""One cell of a run: an arm trained on one budget with one seed, validated, tested once, saved."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_transfer.data.hub import EMBEDDED, is_local_dataset
from hf_transfer.disk import expanded, make_folder, remove_folder, sha256_of_files, write_json
from hf_transfer.errors import DivergedError
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evidence.arms import build_arm
from hf_transfer.evidence.cached_prefix import Reading, reading_cached
from hf_transfer.evidence.environment import describe_environment
from hf_transfer.evidence.fit import fit
from hf_transfer.evidence.measure import evaluate
from hf_transfer.evidence.predictions import write_predictions
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.files import LOGS_FOLDER, MODEL_FOLDER, PREDICTIONS_FILE, RESULT_FILE, STATE_FOLDER
from hf_transfer.models.build import count_parameters
from hf_transfer.models.saved import Sidecar, save_model
from hf_transfer.models.sharding import whole_weights
from hf_transfer.models.tuning import freeze_unused
from hf_transfer.recipe import Arm
from hf_transfer.run_settings import Budget
from hf_transfer.training.device import peak_memory_bytes, reset_loss_scale, reset_peak_memory
from hf_transfer.training.record import Training
from hf_transfer.training.state import Saving, newest_update, resumed_from
from hf_transfer.training.tracking import Log, named, tracked

Weights = dict[str, torch.Tensor] | None
DESCRIBING = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "preprocessor_config.json", "processor_config.json"),
)
"""Files of a checkpoint that decide, beside its weights, what a model computes, and of what."""


@dataclass(frozen=True)
class TrainedArm:
    """An arm's model after its training, and what it was read and measured with."""

    model: nn.Module
    training: Training
    validation: dict[str, Any]
    """Its metrics on the validation rows."""
    reading: Reading
    """Its rows: those that train, those that validate, and what else was asked for."""
    trainable_parameters: int
    total_parameters: int
    frozen_unused: list[str]


@contextmanager
def trained(
    study: Study,
    arm: Arm,
    train_rows: Rows,
    validation_rows: Rows,
    more_rows: Sequence[Rows],
    seed: int,
    title: str,
    log: Log | None = None,
    saving: Saving | None = None,
    keep: Callable[[nn.Module], None] | None = None,
) -> Iterator[TrainedArm]:
    """Build an arm's model, train and validate it; what is read from the cache can be until the block ends.

    Args:
        study: What the cells share.
        arm: Its settings.
        train_rows: That train.
        validation_rows: That choose the state kept.
        more_rows: Others that the model will be measured on.
        seed: Draws new parameters, order, augmentation and dropout.
        title: Of the progress bar.
        log: As of `training.loop.train`, and so is what follows.
        saving: Where its state is saved.
        keep: Takes the model in its best state where the training diverges after that was known; None = nobody does.

    Raises:
        TrainingError: The training cannot go on.
        Interrupted: The run is asked to end.
    """
    accelerator = study.accelerator
    reset_peak_memory(accelerator)
    reset_loss_scale(accelerator)
    model = build_arm(study.architecture, arm, seed, study.task.PEFT_TASK_TYPE)
    unused = freeze_unused(model, study.collate(train_rows.layout.windows[:1]))
    counts = count_parameters(model)
    model.to(accelerator.device)
    try:
        with reading_cached(study, model, arm, [train_rows, validation_rows, *more_rows], title) as reading:
            done = fit(reading.study, model, arm, reading.rows[0], reading.rows[1], seed, title, log, saving)
            validation, _ = evaluate(reading.study, model, reading.rows[1])
            yield TrainedArm(model, done, validation, reading, *counts, unused)
    except DivergedError as error:
        if keep is not None and error.best is not None:
            keep(model)
        raise
    finally:
        # Of a training that diverged, too: another may follow.
        accelerator.free_memory()


def run_cell(study: Study, arm_name: str, arm: Arm, budget: Budget, seed: int, folder: Path, tracker: str | None = None) -> dict[str, Any]:
    """Train, choose by validation, read test once, and write the cell's folder; `result.json` comes last and marks it whole.

    Args:
        study: What the cells share.
        arm_name: Arm of the recipe.
        arm: Its settings: the recipe's, or those that a search chose.
        budget: Rows, or "all".
        seed: Draws rows, new parameters, order and dropout.
        folder: Where the cell is written, by the main process.
        tracker: What the training is logged to, None = nothing.

    Returns:
        What `result.json` holds.

    Raises:
        TrainingError: The training cannot go on. Where it diverged, its best state is in the cell's folder as a model.
        Interrupted: The run is asked to end; the state of the training is in the cell's folder.
    """
    accelerator = study.accelerator
    train_rows, validation_rows = study.draw(budget, seed)
    title = title_of(arm_name, budget, seed)
    step = _describe_step(study, arm_name, arm, budget, seed, len(train_rows))
    chain = [*(study.architecture.checkpoint.chain if arm.init == "pretrained" else []), step]
    run_folder = folder.parents[2]
    tracking = tracked(
        tracker if accelerator.is_main_process else None,
        study.recipe.name,
        folder.relative_to(run_folder).as_posix(),
        _describe_settings(study, arm, step),
        run_folder / LOGS_FOLDER,
        newest_update(folder / STATE_FOLDER),
    )
    settings = study.recipe.training
    saving = Saving(folder / STATE_FOLDER, origin_of_cell(study, arm_name, arm), settings.save_every, settings.save_minutes)

    def keep(model: nn.Module) -> None:
        weights = whole_weights(model)
        if accelerator.is_main_process:
            make_folder(folder)
            _save_model(study, model, weights, chain, folder)

    with tracking as log:
        # A tracker that takes its time to begin is no cost of the training.
        started = time.perf_counter()
        with trained(study, arm, train_rows, validation_rows, [study.test], seed, title, log, saving, keep) as found:
            test_metrics, predicted = evaluate(found.reading.study, found.model, found.reading.rows[2])
        cost = _cost_of(found, accelerator, saving.earlier_seconds + time.perf_counter() - started)
        if log is not None:
            log(found.training.updates, named("test", test_metrics) | named("cost", cost))
    done = found.training
    result = {
        "arm": arm_name,
        "init": arm.init,
        "tuning": arm.tuning,
        "seed": seed,
        "budget": budget,
        "checkpoint": study.recipe.checkpoint,
        "description_sha256": saving.origin["description"],
        "dataset": study.recipe.data.source,
        "metrics": {"validation": found.validation, "test": test_metrics},
        "settings": asdict(arm),
        "chain": chain,
        "cost": cost,
        "out_of_memory": done.out_of_memory,
        "history": done.history,
        "stopped": done.stopped,
        "best_epoch": done.best_epoch,
        "frozen_blocks": found.reading.frozen_blocks,
        "frozen_unused": found.frozen_unused,
        "resumed_from": resumed_from(folder / STATE_FOLDER),
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
    weights = whole_weights(found.model)
    if accelerator.is_main_process:
        _write_cell(study, found.model, weights, predicted, result, folder)
    accelerator.wait_for_everyone()
    return result


def origin_of_cell(study: Study, arm_name: str, arm: Arm) -> dict[str, Any]:
    """Give what a cell's training is of, beside budget and seed, and in what environment: what to compare before its state is gone on with.

    Args:
        study: What the cells share.
        arm_name: Arm of the recipe, whose settings are its `arm`.
        arm: What the cell trains with, its `settings`: the recipe's, or those that a search chose.
    """
    return {
        "data": study.corpus.fingerprint,
        "checkpoint": study.architecture.checkpoint.sha256 if arm.init == "pretrained" else None,
        "description": description_sha256(study),
        "arm": asdict(study.recipe.arms[arm_name]),
        "settings": asdict(arm),
        "environment": describe_environment(study.accelerator),
    }


def description_sha256(study: Study) -> str:
    """Give the hash of what the checkpoint holds beside weights, config and tokenizer: scratch takes them, too."""
    folder = study.architecture.checkpoint.folder
    return sha256_of_files([path for name in DESCRIBING if (path := folder / name).is_file()])


def title_of(arm_name: str, budget: Budget, seed: int) -> str:
    """Give what the progress and the errors of a cell's training are headed by."""
    return f"{arm_name}  budget {budget}  seed {seed}"


def _cost_of(found: TrainedArm, accelerator: Accelerator, wall_seconds: float) -> dict[str, float]:
    done = found.training
    return {
        "wall_seconds": wall_seconds,
        "train_seconds": done.train_seconds,
        "wait_seconds": done.wait_seconds,
        "cache_seconds": found.reading.seconds,
        "updates": done.updates,
        "rows_seen": done.rows_seen,
        "tokens_seen": done.tokens_seen,
        "peak_memory_bytes": peak_memory_bytes(accelerator),
        "trainable_parameters": found.trainable_parameters,
        "total_parameters": found.total_parameters,
    }


def _describe_settings(study: Study, arm: Arm, step: dict[str, Any]) -> dict[str, Any]:
    """Give what a tracker keeps beside a training: its step, the arm's settings and the recipe's; no name of a label."""
    training = asdict(study.recipe.training)
    if isinstance(training["class_weights"], dict):
        training["class_weights"] = "by label"
    return {"step": step, "arm": asdict(arm), "training": training}


def _describe_step(study: Study, arm_name: str, arm: Arm, budget: Budget, seed: int, num_rows: int) -> dict[str, Any]:
    """Give this training as a link of a chain: from what, on what, how; no path of the machine."""
    recipe, checkpoint = study.recipe, study.architecture.checkpoint
    source = str(recipe.data.source)
    is_path = is_local_dataset(source) and not source.startswith(EMBEDDED)
    is_pretrained = arm.init == "pretrained"
    return {
        "checkpoint": checkpoint.base_id if is_pretrained else None,
        "checkpoint_sha256": checkpoint.sha256 if is_pretrained else None,
        "architecture": study.architecture.config.model_type,
        "task": recipe.task.kind,
        "dataset": expanded(source).resolve().name if is_path else source,
        "num_labels": len(study.labels),
        "arm": arm_name,
        "tuning": arm.tuning,
        "budget": budget,
        "seed": seed,
        "train_rows": num_rows,
    }


def _write_cell(study: Study, model: nn.Module, weights: Weights, predicted: Predictions, result: dict[str, Any], folder: Path) -> None:
    make_folder(folder)
    _save_model(study, model, weights, result["chain"], folder)
    write_predictions(
        folder / PREDICTIONS_FILE, study.test.examples.row_ids, predicted, study.test.examples.clusters, as_lists=study.task.MANY_ITEMS
    )
    write_json(folder / RESULT_FILE, result)
    if (folder / STATE_FOLDER).is_dir():
        remove_folder(folder / STATE_FOLDER)


def _save_model(study: Study, model: nn.Module, weights: Weights, chain: list[dict[str, Any]], folder: Path) -> None:
    checkpoint = study.architecture.checkpoint
    sidecar = Sidecar(
        task=study.recipe.to_dict()["task"],
        labels=study.labels,
        base_checkpoint=checkpoint.base_id,
        base_revision=checkpoint.revision,
        base_sha256=checkpoint.sha256,
        pooling=study.architecture.pooling,
        chain=chain,
    )
    plain = study.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    save_model(plain, checkpoint.processor, sidecar, folder / MODEL_FOLDER, weights)
