"""Eight rows a class: setfit's contrastive tuning against our arms, on the same rows, the same encoder and the same test rows."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

import ours
from cases import Case
from comparison import Settings
from hf_transfer.evidence.measure import evaluate
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.recipe import default_arms
from hf_transfer.training.device import make_accelerator
from material import Ground, Material, lay_ground

ROWS_PER_CLASS = 8
MAX_LENGTH = 128
ARMS = ("head", "lora", "full")
SETFIT_ITERATIONS = 5
"""Pairs a row, of each kind; by default setfit takes every pair there is, which for 20 classes takes hours on a CPU."""
MAX_TEST_ROWS = 500
BATCH_SIZE = 16
"""setfit's default, and that of our recipes."""


def compare_few_shot(material: Material, settings: Settings, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Give test accuracy and training seconds of each side, once; whoever wins.

    Args:
        material: Data and checkpoint; the checkpoint is read with its own pooling on both sides.
        settings: Says the device, and whether this is quick.
        folder: For what is temporary.
        tell: Takes a line a contender.
    """
    case = Case(MAX_LENGTH).quickly() if settings.is_quick else Case(MAX_LENGTH)
    ground = lay_ground(material, case, BATCH_SIZE, is_plain=False)
    study = ground.study
    rows = first_of_each_class(ground.rows, ROWS_PER_CLASS)
    test = study.test.take(np.random.default_rng(0).permutation(len(study.test))[: 20 if settings.is_quick else MAX_TEST_ROWS])
    found: dict[str, dict[str, float]] = {}
    for name in ARMS:
        found[name] = _run_arm(replace(ground, rows=rows, validation=rows.take(np.arange(1))), name, test, settings, folder)
        tell(f"{name}  accuracy {found[name]['accuracy']:.3f}  {found[name]['seconds']:.1f} s")
    if importlib.util.find_spec("setfit") is not None:
        found["setfit"] = _run_setfit(study, material, rows, test, case.max_length, settings, folder)
        tell(f"setfit  accuracy {found['setfit']['accuracy']:.3f}  {found['setfit']['seconds']:.1f} s")
    return {"rows_per_class": ROWS_PER_CLASS, "rows": len(rows), "test_rows": len(test), "max_length": case.max_length, "contenders": found}


def first_of_each_class(rows: Rows, num_rows: int) -> Rows:
    """Give the first rows of each class, in their order."""
    positions = [np.flatnonzero(rows.labels == label)[:num_rows] for label in np.unique(rows.labels)]
    return rows.take(np.sort(np.concatenate(positions)))


def _run_arm(ground: Ground, name: str, test: Rows, settings: Settings, folder: Path) -> dict[str, float]:
    arm = default_arms()[name]
    arm = replace(arm, num_epochs=1) if settings.is_quick else arm
    job = ours.prepare_training(ground, arm, ground.rows, 0, folder)
    started = time.perf_counter()
    job.run()
    seconds = time.perf_counter() - started
    metrics, _ = evaluate(replace(ground.study, accelerator=make_accelerator("auto")), job.model, test)
    return {"accuracy": metrics["accuracy"], "seconds": seconds}


def _run_setfit(
    study: Study, material: Material, rows: Rows, test: Rows, max_length: int, settings: Settings, folder: Path
) -> dict[str, float]:
    from setfit import SetFitModel, Trainer, TrainingArguments

    checkpoint = str(study.architecture.checkpoint.folder)
    torch.manual_seed(0)
    model = SetFitModel.from_pretrained(checkpoint, device=settings.device, local_files_only=True)
    model.model_body.max_seq_length = max_length
    arguments = TrainingArguments(
        output_dir=str(folder / "setfit"),
        batch_size=BATCH_SIZE,
        num_epochs=1,
        num_iterations=1 if settings.is_quick else SETFIT_ITERATIONS,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        show_progress_bar=False,
        seed=0,
    )
    dataset = Dataset.from_dict({"text": list(rows.examples.inputs), "label": rows.labels.tolist()})
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    started = time.perf_counter()
    # What it prints is no part of the table.
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    seconds = time.perf_counter() - started
    predicted = np.asarray(model.predict(list(test.examples.inputs), show_progress_bar=False))
    return {"accuracy": float((predicted == test.labels).mean()), "seconds": seconds}
