"""Our side, as `hf-transfer run` trains a cell and `ht.load` predicts."""

import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hf_transfer as ht
from hf_transfer.evidence.arms import build_arm
from hf_transfer.evidence.cached_prefix import reading_cached
from hf_transfer.evidence.fit import fit
from hf_transfer.evidence.study import Rows
from hf_transfer.models.saved import Sidecar, save_model
from hf_transfer.models.tuning import freeze_unused
from hf_transfer.recipe import Arm
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.loop import Training
from material import Ground
from measure import Job

CACHE_VARIABLE = "HF_TRANSFER_CACHE"


def empty_cache(folder: Path) -> None:
    """Let what a frozen backbone gives be kept in a new folder: filling it belongs to the time of every round."""
    os.environ[CACHE_VARIABLE] = tempfile.mkdtemp(dir=folder)


def prepare_training(ground: Ground, arm: Arm, rows: Rows, seed: int, folder: Path) -> Job:
    """Build an arm's model; the job is what a cell does with it between building and testing.

    Args:
        ground: What the case works on.
        arm: Its settings.
        rows: That train.
        seed: Draws new parameters, order and dropout.
        folder: For what is temporary.

    Returns:
        A job that gives a `Training`.
    """
    empty_cache(folder)
    # A peer may have set the state that all Accelerators of a process share.
    study = replace(ground.study, accelerator=make_accelerator("auto"))
    model = build_arm(study.architecture, arm, seed, study.task.PEFT_TASK_TYPE)

    def run() -> Training:
        with contextlib.redirect_stderr(io.StringIO()):
            freeze_unused(model, study.collate(rows.layout.windows[:1]))
            model.to(study.accelerator.device)
            with reading_cached(study, model, arm, [rows, ground.validation], "benchmark") as reading:
                return fit(reading.study, model, arm, reading.rows[0], reading.rows[1], seed, title="benchmark")

    return Job(model, run)


def save_untrained(ground: Ground, arm: Arm, folder: Path) -> Path:
    """Save the model an arm starts from, as a cell would; how fast it predicts does not depend on its weights."""
    study = ground.study
    checkpoint = study.architecture.checkpoint
    model = build_arm(study.architecture, arm, 0, study.task.PEFT_TASK_TYPE)
    task = asdict(study.recipe)["task"]
    save_model(model, checkpoint.processor, Sidecar(task, study.labels, checkpoint.base_id, None, checkpoint.sha256), folder)
    return folder


def prepare_prediction(model: ht.Model, texts: Sequence[str], answers: list[Any], precision: str = "auto") -> Job:
    """Give the job that predicts texts, tokenisation included, and leaves its answers in a list."""
    return Job(model.saved.model, lambda: answers.extend(model.predict(texts, precision)))
