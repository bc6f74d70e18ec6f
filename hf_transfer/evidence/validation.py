"""What a run would do, without training: data, labels, lengths, checkpoint, arms and the memory they take."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.escaping import visible_line
from hf_transfer.evidence.arms import build_arm, estimate_arm
from hf_transfer.evidence.hygiene import describe_data, is_sampled
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.models.build import count_parameters
from hf_transfer.models.memory import MemoryEstimate
from hf_transfer.models.pooling import read_pooling
from hf_transfer.models.tuning import trainable_batch_norms
from hf_transfer.recipe import Arm, Recipe
from hf_transfer.run_settings import Budget
from hf_transfer.training.device import device_memory_bytes, make_accelerator, process_memory_bytes

INPUTS_SAMPLE = 2000
"""Rows whose whole length or size is looked at."""
CPU_GROWTH = 2**28
"""Bytes the program grows by once it trains on a CPU, compiled kernels and the allocator's leftovers: 0.2 to 0.3 GiB, where MiniLM at 1,024
to 4,096 tokens a micro-batch took 1.6 to 2.7 GiB and the rest of the estimate was right to 15 % (2 cores, 2026-11-20)."""


@dataclass(frozen=True)
class ArmFindings:
    """What an arm would take."""

    name: str
    arm: Arm
    trainable_parameters: int
    total_parameters: int
    memory: MemoryEstimate
    normed: bool
    """Its batch norms train."""


@dataclass(frozen=True)
class Findings:
    """What validating a recipe found. `str()` of it is for people."""

    study: Study
    label_counts: dict[str, int]
    """Of the training rows: rows a class, or entities a type."""
    inputs: Any
    """Lengths of texts or sizes of images, as the task measures them, of a sample where there are many."""
    inputs_looked_at: int
    train_rows: dict[Budget, tuple[int, int]]
    """Budget -> training and validation rows."""
    arms: list[ArmFindings]
    base_memory: int
    """Bytes the program takes before any training, on a CPU."""
    hygiene: dict[str, Any]
    """What `hygiene.json` of a run would hold."""

    def __str__(self) -> str:
        return "\n".join(f"{title:12}{visible_line(text)}" for title, text in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        study, corpus, task = self.study, self.study.corpus, self.study.recipe.task
        checkpoint = study.architecture.checkpoint
        validation = f", {len(corpus.validation):,} validation" if corpus.validation else ""
        columns = ", ".join(f"{role} from '{column}'" for role, column in task.columns.items())
        counted = ", ".join(f"{name} {count:,}" for name, count in sorted(self.label_counts.items(), key=lambda entry: -entry[1])[:12])
        more = f", ... ({len(self.label_counts)} in all)" if len(self.label_counts) > 12 else ""
        drops = study.recipe.data.drop_overlap
        empty = corpus.dropped_rows - (corpus.overlap_rows if drops else 0)
        sample = f" in a sample of {self.inputs_looked_at:,}" if self.inputs_looked_at < len(corpus.train) else ""
        bound = study.task.describe_reach(checkpoint.processor, checkpoint.config)
        pooling = ""
        if read_pooling(checkpoint.folder) is not None and study.task.READS_TEXTS_WHOLE:
            pooling = f"; a sentence encoder, read through its {'mean pooling' if study.architecture.pooling else 'first token'}"
        lines = [
            ("data", f"{study.recipe.data.source}: {len(corpus.train):,} training rows{validation}, {len(corpus.test):,} test rows"),
            ("", f"test rows are {corpus.test_origin}; {columns}"),
            ("", f"training rows: {empty:,} empty (dropped), {corpus.overlap_rows:,} stand in test too{' (dropped)' if drops else ''}"),
            ("", self._hygiene_line()),
            ("labels", f"{len(study.labels)}; in training: {counted}{more}"),
            *(("", f"note: {notice}") for notice in study.notices),
            *self.inputs.lines(sample),
        ]
        lines += [
            ("budgets" if index == 0 else "", f"{budget}: {train:,} rows train, {validating:,} validate")
            for index, (budget, (train, validating)) in enumerate(self.train_rows.items())
        ]
        model = type(study.architecture.config).__name__.removesuffix("Config")
        total = self.arms[0].total_parameters
        lines.append(("checkpoint", f"{checkpoint.name}: {model}, {total / 1e6:.1f} M parameters{bound}{pooling}"))
        largest = max(train for train, _ in self.train_rows.values())
        on_gpu = study.accelerator.device.type != "cpu"
        for index, found in enumerate(self.arms):
            updates = -(-largest // study.recipe.training.batch_size) * found.arm.num_epochs
            rows = None if study.task.MANY_ITEMS else study.recipe.training.batch_size
            # An arm whose batch norms train takes an update at once.
            memory = found.memory.total(sys.maxsize if found.normed else study.max_tokens, rows)
            if not on_gpu:
                # The best state is kept in the host's memory.
                memory += self.base_memory + CPU_GROWTH + 4 * found.trainable_parameters
            text = (
                f"{found.name:9}{found.trainable_parameters / 1e6:8.3f} M train, {updates:,} updates, rate {found.arm.learning_rate:g}, "
                f"about {memory / 2**30:.1f} GiB"
            )
            lines.append(("arms" if index == 0 else "", text))
        available = device_memory_bytes(study.accelerator) / 2**30
        where = f"{study.accelerator.device.type} with {available:.0f} GiB"
        unit = "patches" if study.task.READS_FILES else "padded tokens"
        text = f"at {study.max_tokens:,} {unit} a micro-batch, on this {where}"
        lines.append(("memory", text))
        return lines

    def _hygiene_line(self) -> str:
        overlap, train, test = self.hygiene["overlap"], self.hygiene["splits"]["train"], self.hygiene["splits"]["test"]
        sample = f" (of {overlap['searched_train_rows']:,} looked at)" if is_sampled(self.hygiene) else ""
        near = "" if overlap["near_rows"] is None else f"{overlap['near_rows']:,} more nearly stand in test{sample}, "
        conflicting = train["conflicting_rows"], test["conflicting_rows"]
        return (
            f"{near}{train['duplicate_rows']:,} repeat an earlier one; inputs that stand under another label too: "
            f"{conflicting[0]:,} in training, {conflicting[1]:,} in test"
        )


def validate(
    recipe: Recipe,
    arms: Sequence[str],
    budgets: Sequence[Budget],
    seeds: Sequence[int],
    max_test_rows: int | None = None,
    local_files_only: bool = False,
) -> Findings:
    """Prepare a run as `run_grid` does, and measure what it would take; nothing is trained or written.

    Raises:
        TransferError: What `run_grid` would refuse.
    """
    accelerator = make_accelerator(recipe.training.precision)
    study = prepare_study(recipe, arms, budgets, seeds, accelerator, max_test_rows, local_files_only)
    base_memory = process_memory_bytes()
    picked = np.random.default_rng(0).permutation(len(study.train))[:INPUTS_SAMPLE]
    inputs = [study.train.examples.inputs[position] for position in picked]
    return Findings(
        study=study,
        label_counts=study.task.count_labels(study.train.examples.labels, study.labels),
        inputs=study.task.measure(inputs, study.architecture.checkpoint.processor, study.recipe.task),
        inputs_looked_at=len(picked),
        train_rows={budget: (len(train), len(validation)) for budget in budgets for train, validation in [study.draw(budget, seeds[0])]},
        arms=[_arm_findings(study, name) for name in arms],
        base_memory=base_memory,
        hygiene=describe_data(study, private=False),
    )


def _arm_findings(study: Study, name: str) -> ArmFindings:
    recipe = study.recipe
    arm = recipe.arms[name]
    model = build_arm(study.architecture, arm, 0, study.task.PEFT_TASK_TYPE)
    memory = estimate_arm(model, recipe.task, study.architecture, study.collate, recipe.training, study.accelerator)
    return ArmFindings(name, arm, *count_parameters(model), memory, normed=bool(trainable_batch_norms(model)))
