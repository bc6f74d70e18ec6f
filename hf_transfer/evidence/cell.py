"""One cell of a run: an arm trained on one budget with one seed, validated, tested once, saved."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from hf_transfer.data.hub import EMBEDDED, is_local_dataset
from hf_transfer.data.roles import Budget
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evidence.arms import build_arm
from hf_transfer.evidence.cached_prefix import reading_cached
from hf_transfer.evidence.environment import describe_environment
from hf_transfer.evidence.fit import fit
from hf_transfer.evidence.measure import evaluate
from hf_transfer.evidence.predictions import write_predictions
from hf_transfer.evidence.study import Study
from hf_transfer.files import MODEL_FOLDER, PREDICTIONS_FILE, RESULT_FILE, write_json
from hf_transfer.models.build import count_parameters
from hf_transfer.models.saved import Sidecar, save_model
from hf_transfer.models.tuning import freeze_unused
from hf_transfer.training.device import peak_memory_bytes, reset_peak_memory


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
    model.to(accelerator.device)
    title = f"{arm_name}  budget {budget}  seed {seed}"
    with reading_cached(study, model, arm, [train_rows, validation_rows, study.test], title) as reading:
        done = fit(reading.study, model, arm, reading.rows[0], reading.rows[1], seed, title)
        validation_metrics, _ = evaluate(reading.study, model, reading.rows[1])
        test_metrics, predicted = evaluate(reading.study, model, reading.rows[2])
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
        "settings": asdict(arm),
        "chain": chain,
        "cost": {
            "wall_seconds": time.perf_counter() - started,
            "train_seconds": done.train_seconds,
            "wait_seconds": done.wait_seconds,
            "cache_seconds": reading.seconds,
            "updates": done.updates,
            "rows_seen": done.rows_seen,
            "tokens_seen": done.tokens_seen,
            "peak_memory_bytes": peak_memory_bytes(accelerator),
            "trainable_parameters": trainable_parameters,
            "total_parameters": total_parameters,
        },
        "out_of_memory": done.out_of_memory,
        "history": done.history,
        "stopped": done.stopped,
        "best_epoch": done.best_epoch,
        "frozen_blocks": reading.frozen_blocks,
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
