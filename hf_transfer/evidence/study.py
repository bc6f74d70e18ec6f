"""All that the cells of one run share: data with fixed roles, encoded once; the checkpoint's architecture; the devices."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from accelerate import Accelerator

from hf_transfer.data.roles import Budget, Corpus, Examples, check_budget, draw, fix_test
from hf_transfer.data.sources import load_source
from hf_transfer.errors import ConfigError, first_line, listed
from hf_transfer.evaluation.metrics import METRICS, Metrics
from hf_transfer.evaluation.prediction import Collate
from hf_transfer.models.build import Architecture, build_meta_model, build_model, inspect, same_labels
from hf_transfer.models.saved import open_base
from hf_transfer.models.tuning import apply_tuning, depths_of, trainable_batch_norms
from hf_transfer.recipe import Arm, Recipe
from hf_transfer.task_configs import Task
from hf_transfer.tasks import functions_of
from hf_transfer.tasks.items import EncodedRow, Layout, lay_out
from hf_transfer.training.device import default_micro_batch_tokens, default_num_workers

MIN_ROWS_TO_NORM = 2
"""Rows of a micro-batch below which a batch norm has no variance to divide by."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows beside their encoding."""

    examples: Examples
    encoded: list[EncodedRow]
    """(B,)."""

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, positions: np.ndarray) -> "Rows":
        """Give the rows at `positions`, in that order."""
        return Rows(self.examples.take(positions), [self.encoded[position] for position in positions])

    @functools.cached_property
    def layout(self) -> Layout:
        """Their windows and items, laid out."""
        return lay_out(self.encoded)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Class ids of all items, (M,)."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.examples.labels])


@dataclass(frozen=True)
class Study:
    """Data, architecture and devices of one run."""

    recipe: Recipe
    """Its task names every column it reads."""
    labels: list[str]
    """(C,), by class id."""
    corpus: Corpus
    notices: list[str]
    """Sentences about the data that a person should read before any number."""
    train: Rows
    """What training and validation rows are drawn from."""
    validation: Rows | None
    """The data's own validation split."""
    test: Rows
    architecture: Architecture
    accelerator: Accelerator
    max_tokens: int
    """Padded tokens of a micro-batch."""
    num_workers: int
    """Processes that read the input ahead, for each training process."""
    collate: Collate
    """Windows -> forward arguments."""

    @property
    def task(self) -> ModuleType:
        """The task's functions."""
        return functions_of(self.recipe.task)

    @property
    def metrics(self) -> Metrics:
        """The task's metrics."""
        return METRICS[self.recipe.task.kind]

    def draw(self, budget: Budget, seed: int) -> tuple[Rows, Rows]:
        """Draw the training and validation rows of a budget and seed."""
        train, validation = draw(self.corpus, budget, seed)
        if validation is not None:
            return self.train.take(train), self.train.take(validation)
        assert self.validation is not None
        return self.train.take(train), self.validation


def prepare_study(
    recipe: Recipe,
    arms: Sequence[str],
    budgets: Sequence[Budget],
    seeds: Sequence[int],
    accelerator: Accelerator,
    max_test_rows: int | None = None,
    local_files_only: bool = False,
) -> Study:
    """Load, check and encode everything a run needs, so that a mistake shows before any training.

    Args:
        recipe: What to train; `recipe.data.source` is given.
        arms: Names of the arms that will run.
        budgets: Budgets that will run.
        seeds: Seeds that will run.
        accelerator: Devices and processes.
        max_test_rows: Sample size of the test rows, None = all.
        local_files_only: Take Hub ids from the cache.

    Raises:
        ConfigError, DataError, CheckpointError: What is wrong, in one sentence.
    """
    assert recipe.data.source is not None
    task = functions_of(recipe.task)
    checkpoint = open_base(recipe.checkpoint, task.load_processor, local_files_only)
    task.check_reach(checkpoint.processor, checkpoint.config, recipe.task, checkpoint.name)
    source = load_source(recipe.data.source, recipe.data.config, recipe.data.revision, local_files_only)
    columns = task.choose_columns(recipe.columns, source.splits["train"].column_names, recipe.task)
    labels, examples = task.read(source, columns, recipe.data.label_names, recipe.task)
    recipe = _with_columns(recipe, columns)
    if isinstance(recipe.training.class_weights, dict):
        task.weights_by_class(recipe.training.class_weights, labels)
    corpus = fix_test(examples, max_test_rows, recipe.data.drop_overlap)
    notices = source.notices + task.check_labels(corpus, labels)
    if corpus.overlap_rows and not recipe.data.drop_overlap:
        notices.append(f"{corpus.overlap_rows:,} training rows stand in test too: --set data.drop_overlap=true drops them")
    if recipe.training.sampling == "balanced" and not corpus.train.strata.any():
        raise ConfigError("sampling 'balanced' needs one label a row, these rows have one a word: take class_weights instead")
    for budget in budgets:
        check_budget(corpus, budget)
        for seed in seeds:
            draw(corpus, budget, seed)
    architecture = inspect(checkpoint, task.AUTO_MODEL, labels, recipe.training.dropout, task.READS_TEXTS_WHOLE)
    normed = [name for name in arms if trainable_batch_norms(check_arm(architecture, recipe.arms[name], task.PEFT_TASK_TYPE))]
    check_reading(architecture, recipe.task)
    max_tokens = recipe.training.micro_batch_tokens or default_micro_batch_tokens(accelerator)
    notices += describe_start(architecture)
    if normed:
        notices += check_batch_norm(recipe, normed, accelerator)
    if task.augmenter(checkpoint.processor, recipe.task) is not None:
        notices.append(_describe_augmentation({name: augments(recipe.arms[name]) for name in arms}))
    num_workers = recipe.training.num_workers
    if num_workers is None:
        num_workers = default_num_workers(accelerator) if task.READS_FILES else 0

    def encode(rows: Examples) -> Rows:
        return Rows(rows, task.encode(checkpoint.processor, rows.inputs, recipe.task))

    return Study(
        recipe=recipe.override({"training.micro_batch_tokens": max_tokens}),
        labels=labels,
        corpus=corpus,
        notices=notices,
        train=encode(corpus.train),
        validation=encode(corpus.validation) if corpus.validation else None,
        test=encode(corpus.test),
        architecture=architecture,
        accelerator=accelerator,
        max_tokens=max_tokens,
        num_workers=num_workers,
        collate=functools.partial(task.collate, processor=checkpoint.processor),
    )


def build_arm(architecture: Architecture, arm: Arm, seed: int, peft_task_type: str | None) -> torch.nn.Module:
    """Build the model of an arm, what trains marked.

    Raises:
        CheckpointError: The architecture cannot do it.
    """
    model = build_model(architecture, arm.init, seed, arm.keep_head)
    torch.manual_seed(seed)
    return apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type, architecture.fixed)


def check_reading(architecture: Architecture, task: Task) -> None:
    """Forward one row of the largest size: what a config says of it is not always true (RoBERTa's positions start at 2).

    Raises:
        ConfigError: The model cannot read it.
    """
    checkpoint, functions = architecture.checkpoint, functions_of(task)
    windows = functions.probe_windows(checkpoint.processor, task, 1)
    try:
        with torch.inference_mode():
            build_model(architecture, "scratch", seed=0).eval()(**functions.collate(windows, checkpoint.processor))
    except (IndexError, RuntimeError, ValueError) as error:
        misfit = functions.describe_misfit(task, checkpoint.processor, first_line(error))
        raise ConfigError(f"checkpoint {checkpoint.name} {misfit}") from None


def check_batch_norm(recipe: Recipe, arms: Sequence[str], accelerator: Accelerator) -> list[str]:
    """Refuse what batch norms that train cannot bear, and tell how they are trained: each process's share of an update at once.

    Their statistics are those of a micro-batch: cut in several, or spread over processes that do not tell each other, it would be another
    model.

    Args:
        recipe: What is trained.
        arms: Names of the arms whose batch norms train.
        accelerator: Devices and processes.

    Raises:
        ConfigError: Processes on CPUs, which cannot share statistics; or too few rows a process.
    """
    num_processes, batch_size = accelerator.num_processes, recipe.training.batch_size
    what = f"arm {listed(arms)} trains batch norms"
    if num_processes > 1 and accelerator.device.type == "cpu":
        raise ConfigError(f"{what}, which torch cannot synchronise over {num_processes} CPU processes: run one, or leave the arm out")
    least = MIN_ROWS_TO_NORM * num_processes
    if batch_size < least:
        raise ConfigError(f"{what}, which need {MIN_ROWS_TO_NORM} rows a process: take a batch_size of {least} or more, found {batch_size}")
    return [f"{what}: each update is one micro-batch, whatever micro_batch_tokens says"]


def check_arm(architecture: Architecture, arm: Arm, peft_task_type: str | None) -> torch.nn.Module:
    """Give the model of an arm without its memory, what trains marked; refuse an arm that the architecture cannot do.

    Raises:
        CheckpointError: Why not.
    """
    if arm.keep_head:
        build_model(architecture, arm.init, 0, keep_head=True)
    model = build_meta_model(architecture)
    model = apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type, architecture.fixed)
    if arm.layer_decay is not None or arm.gradual_unfreezing is not None:
        depths_of(model, architecture.head)
    return model


def describe_start(architecture: Architecture) -> list[str]:
    """Tell which trainings of this package made a checkpoint, and whether its output layer is kept."""
    links = [f"{link['arm']} on {link['dataset']} ({link['train_rows']:,} rows)" for link in architecture.checkpoint.chain]
    told = [f"the checkpoint was trained before: {', then '.join(links)}"] if links else []
    if architecture.has_output_layer and same_labels(architecture.checkpoint.config, architecture.config):
        told.append("the checkpoint's labels are the data's: its output layer is kept, but for scratch")
    return told


def augments(arm: Arm) -> bool:
    """Say whether an arm trains on what the task's augmentation makes of its rows."""
    return arm.tuning in ("full", "lora") if arm.augment is None else arm.augment


def _describe_augmentation(arms: dict[str, bool]) -> str:
    on, off = ([name for name, augmented in arms.items() if augmented is wanted] for wanted in (True, False))
    if not on:
        return f"training images are not augmented for {listed(off)} (arms.{off[0]}.augment)"
    return f"training images are augmented for {listed(on)}" + (f", not for {listed(off)} (arms.{off[0]}.augment)" if off else "")


def _with_columns(recipe: Recipe, columns: dict[str, str]) -> Recipe:
    """Give the recipe whose task names the columns that were read, so that a saved model and a repeated run know them."""
    return recipe.override({f"task.{role}": column for role, column in columns.items() if hasattr(recipe.task, role)})
