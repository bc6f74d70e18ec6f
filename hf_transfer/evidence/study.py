"""All that the cells of one run share: data with fixed roles, encoded once; the checkpoint's architecture; the devices."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_transfer.data.columns import read_documents
from hf_transfer.data.roles import Corpus, Examples, check_budget, draw, fix_test
from hf_transfer.data.sources import load_source
from hf_transfer.errors import ConfigError, first_line
from hf_transfer.evaluation.metrics import METRICS, Metrics
from hf_transfer.evaluation.prediction import Collate
from hf_transfer.evidence.arms import augments, build_arm, check_arm, check_batch_norm, describe_augmentation, estimate_arm
from hf_transfer.models.build import Architecture, build_model, inspect, same_labels
from hf_transfer.models.saved import open_base
from hf_transfer.models.sharding import check_shardable
from hf_transfer.models.tuning import trainable_batch_norms
from hf_transfer.recipe import Recipe
from hf_transfer.run_settings import Budget
from hf_transfer.task_configs import DOCUMENT, Task
from hf_transfer.tasks import functions_of
from hf_transfer.tasks.items import EncodedRow, Layout, lay_out
from hf_transfer.tasks.token_cache import encode_cached
from hf_transfer.training.device import default_micro_batch_tokens, default_num_workers, device_memory_bytes
from hf_transfer.training.stopping import Stopping

MEMORY_SHARE = 0.8
"""Of a GPU's memory that a training may be estimated to take; the rest is the allocator's, and the estimate's error."""
LEAST_TOKENS = 256


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
    stopping: Stopping
    """Says whether the run is asked to end."""

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
    stopping: Stopping | None = None,
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
        stopping: Says whether the run is asked to end; None = it never is.

    Raises:
        ConfigError, DataError, CheckpointError: What is wrong, in one sentence.
    """
    task = functions_of(recipe.task)
    checkpoint = open_base(recipe.checkpoint, task.load_processor, local_files_only)
    task.check_reach(checkpoint.processor, checkpoint.config, recipe.task, checkpoint.name)
    recipe, labels, corpus, notices = _read_data(recipe, max_test_rows, local_files_only)
    _check_draws(recipe, corpus, budgets, seeds)
    architecture = inspect(checkpoint, task.AUTO_MODEL, labels, recipe.training.dropout, task.READS_TEXTS_WHOLE)
    checked = {name: check_arm(architecture, recipe.arms[name], recipe.training, task.PEFT_TASK_TYPE) for name in arms}
    normed = [name for name, model in checked.items() if trainable_batch_norms(model)]
    for model in checked.values():
        check_shardable(model, accelerator)
    check_reading(architecture, recipe.task)
    collate = functools.partial(task.collate, processor=checkpoint.processor)
    max_tokens = recipe.training.micro_batch_tokens or _fitting_tokens(recipe, arms, architecture, collate, accelerator)
    notices += describe_start(architecture)
    if normed:
        notices += check_batch_norm(recipe, normed, accelerator)
    if task.augmenter(checkpoint.processor, recipe.task) is not None:
        notices.append(describe_augmentation({name: augments(recipe.arms[name]) for name in arms}))
    num_workers, told = _choose_num_workers(recipe, accelerator)
    notices += told

    def encode(rows: Examples) -> Rows:
        return Rows(rows, encode_cached(task, checkpoint.processor, rows.inputs, recipe.task))

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
        collate=collate,
        stopping=Stopping() if stopping is None else stopping,
    )


def _read_data(recipe: Recipe, max_test_rows: int | None, local_files_only: bool) -> tuple[Recipe, list[str], Corpus, list[str]]:
    """Give the recipe with the columns that were read, label names, (C,), the rows by role, and sentences to tell of them."""
    assert recipe.data.source is not None
    task = functions_of(recipe.task)
    source = load_source(recipe.data.source, recipe.data.config, recipe.data.revision, local_files_only)
    named = {role: column for role, column in recipe.columns.items() if role != DOCUMENT}
    columns = task.choose_columns(named, source.splits["train"].column_names, recipe.task)
    labels, examples = task.read(source, columns, recipe.data.label_names, recipe.task)
    documents = read_documents(source.splits, recipe.columns.get(DOCUMENT), columns.values())
    examples = {split: found and replace(found, documents=documents.get(split)) for split, found in examples.items()}
    if isinstance(recipe.training.class_weights, dict):
        task.weights_by_class(recipe.training.class_weights, labels)
    corpus = fix_test(examples, max_test_rows, recipe.data.drop_overlap)
    notices = source.notices + task.check_labels(corpus, labels)
    if corpus.overlap_rows and not recipe.data.drop_overlap:
        notices.append(f"{corpus.overlap_rows:,} training rows stand in test too: --set data.drop_overlap=true drops them")
    if corpus.test.documents is not None:
        num_documents = len(set(corpus.test.documents.tolist()))
        notices.append(
            f"the {len(corpus.test):,} test rows are of {num_documents:,} document{'' if num_documents == 1 else 's'} "
            f"(column '{recipe.columns.get(DOCUMENT, DOCUMENT)}'), each one draw of the intervals"
        )
    return _with_columns(recipe, columns), labels, corpus, notices


def _check_draws(recipe: Recipe, corpus: Corpus, budgets: Sequence[Budget], seeds: Sequence[int]) -> None:
    """Refuse budgets that cannot be drawn, or not balanced, before any training."""
    if recipe.training.sampling == "balanced" and not corpus.train.strata.any():
        raise ConfigError("sampling 'balanced' needs one label a row, these rows have one a word: take class_weights instead")
    if "all" in budgets and len(corpus.train) in budgets and corpus.validation is None:
        raise ConfigError(f"budget {len(corpus.train)} and budget all are the same rows, each would be trained twice: leave one out")
    for budget in budgets:
        check_budget(corpus, budget)
        for seed in seeds:
            draw(corpus, budget, seed)


def _choose_num_workers(recipe: Recipe, accelerator: Accelerator) -> tuple[int, list[str]]:
    """Give the processes that read the input ahead, and sentences to tell of them."""
    num_workers = recipe.training.num_workers
    if num_workers is None:
        num_workers = default_num_workers(accelerator) if functions_of(recipe.task).READS_FILES else 0
    if num_workers and accelerator.device.type == "cpu" and accelerator.num_processes > 1:
        # The threads of gloo enter Python now and then; a process forked in that moment waits for ever (CPython 3.11).
        return 0, ["several CPU processes read their images themselves: no workers are started beside them"]
    return num_workers, []


def _fitting_tokens(recipe: Recipe, arms: Sequence[str], architecture: Architecture, collate: Collate, accelerator: Accelerator) -> int:
    """Give the padded tokens of a micro-batch: a constant on a CPU; on a GPU halved until every arm's estimate fits in its memory.

    Never by a stopwatch, so that runs repeat bit for bit.
    """
    tokens = default_micro_batch_tokens(accelerator.device)
    if accelerator.device.type == "cpu":
        return tokens
    functions = functions_of(recipe.task)
    budget = MEMORY_SHARE * device_memory_bytes(accelerator)
    for name in arms:
        model = build_arm(architecture, recipe.arms[name], 0, functions.PEFT_TASK_TYPE)
        if trainable_batch_norms(model):
            # It takes each update at once, whatever the size.
            continue
        memory = estimate_arm(model, recipe.task, architecture, collate, recipe.training, accelerator)
        while tokens > LEAST_TOKENS and memory.total(tokens, None if functions.MANY_ITEMS else recipe.training.batch_size) > budget:
            tokens //= 2
    # GPUs may differ, and all processes cut alike.
    return int(min(gather_object([tokens])))


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


def describe_start(architecture: Architecture) -> list[str]:
    """Tell which trainings of this package made a checkpoint, and whether its output layer is kept."""
    links = [f"{link['arm']} on {link['dataset']} ({link['train_rows']:,} rows)" for link in architecture.checkpoint.chain]
    told = [f"the checkpoint was trained before: {', then '.join(links)}"] if links else []
    if architecture.has_output_layer and same_labels(architecture.checkpoint.config, architecture.config):
        told.append("the checkpoint's labels are the data's: its output layer is kept, but for scratch")
    return told


def _with_columns(recipe: Recipe, columns: dict[str, str]) -> Recipe:
    """Give the recipe whose task names the columns that were read, so that a saved model and a repeated run know them."""
    return recipe.override({f"task.{role}": column for role, column in columns.items() if hasattr(recipe.task, role)})
