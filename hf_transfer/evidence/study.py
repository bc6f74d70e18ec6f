"""All that the cells of one run share: data with fixed roles, encoded once; the checkpoint's architecture; the devices."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch
from accelerate import Accelerator

from hf_transfer.data.roles import Budget, Corpus, Examples, check_budget, draw, fix_test
from hf_transfer.data.sources import load_splits
from hf_transfer.errors import ConfigError, first_line
from hf_transfer.evaluation.metrics import METRICS, Metrics
from hf_transfer.evaluation.prediction import Collate
from hf_transfer.models.build import Architecture, build_meta_model, build_model, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.tuning import apply_tuning
from hf_transfer.recipe import Arm, Recipe, Task
from hf_transfer.tasks import functions_of
from hf_transfer.tasks.items import EncodedRow, Layout, Window, lay_out


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

    @property
    def collate(self) -> Collate:
        """Windows -> forward arguments."""
        return functools.partial(self.task.collate, tokenizer=self.architecture.checkpoint.tokenizer)


def prepare_study(
    recipe: Recipe,
    arms: Sequence[str],
    budgets: Sequence[Budget],
    seeds: Sequence[int],
    accelerator: Accelerator,
    max_tokens: int,
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
        max_tokens: Padded tokens of a micro-batch.
        max_test_rows: Sample size of the test rows, None = all.
        local_files_only: Take Hub ids from the cache.

    Raises:
        ConfigError, DataError, CheckpointError: What is wrong, in one sentence.
    """
    assert recipe.data.source is not None
    task = functions_of(recipe.task)
    checkpoint = open_checkpoint(recipe.checkpoint, local_files_only)
    checkpoint = replace(checkpoint, tokenizer=task.prepare_tokenizer(checkpoint.tokenizer))
    max_length = recipe.task.max_length
    if checkpoint.max_length is not None and max_length > checkpoint.max_length:
        raise ConfigError(
            f"max_length {max_length} is more than the {checkpoint.max_length} tokens that checkpoint {checkpoint.name} can read: "
            f"take --max-length {checkpoint.max_length}"
        )
    splits = load_splits(recipe.data.source, recipe.data.config, recipe.data.revision, local_files_only)
    columns = task.choose_columns(recipe.columns, splits["train"].column_names, recipe.task)
    labels, examples = task.read(splits, columns, recipe.data.label_names, recipe.task)
    recipe = _with_columns(recipe, columns)
    if isinstance(recipe.training.class_weights, dict):
        task.weights_by_class(recipe.training.class_weights, labels)
    corpus = fix_test(examples, max_test_rows, recipe.data.drop_overlap)
    notices = task.check_labels(corpus, labels)
    if recipe.training.sampling == "balanced" and not corpus.train.strata.any():
        raise ConfigError("sampling 'balanced' needs one label a row, these rows have one a word: take class_weights instead")
    for budget in budgets:
        check_budget(corpus, budget)
        for seed in seeds:
            draw(corpus, budget, seed)
    architecture = inspect(checkpoint, task.AUTO_MODEL, labels, recipe.training.dropout, reads_texts_whole=not task.MANY_ITEMS)
    for name in arms:
        check_arm(architecture, recipe.arms[name], task.PEFT_TASK_TYPE)
    check_max_length(architecture, recipe.task)

    def encode(rows: Examples) -> Rows:
        return Rows(rows, task.encode(checkpoint.tokenizer, rows.inputs, recipe.task))

    return Study(
        recipe=recipe,
        labels=labels,
        corpus=corpus,
        notices=notices,
        train=encode(corpus.train),
        validation=encode(corpus.validation) if corpus.validation else None,
        test=encode(corpus.test),
        architecture=architecture,
        accelerator=accelerator,
        max_tokens=max_tokens,
    )


def build_arm(architecture: Architecture, arm: Arm, seed: int, peft_task_type: str) -> torch.nn.Module:
    """Build the model of an arm, what trains marked.

    Raises:
        CheckpointError: The architecture cannot do it.
    """
    model = build_model(architecture, arm.init, seed, arm.keep_head)
    torch.manual_seed(seed)
    return apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type, architecture.fixed)


def check_max_length(architecture: Architecture, task: Task) -> None:
    """Forward one row of `max_length` tokens: what a config and a tokenizer say of it is not always true (RoBERTa's positions start at 2).

    Raises:
        ConfigError: The model cannot read that many.
    """
    checkpoint = architecture.checkpoint
    windows = longest_windows(architecture, task, 1)
    try:
        with torch.inference_mode():
            build_model(architecture, "scratch", seed=0).eval()(**functions_of(task).collate(windows, checkpoint.tokenizer))
    except (IndexError, RuntimeError) as error:
        raise ConfigError(
            f"checkpoint {checkpoint.name} cannot read max_length {task.max_length} tokens ({first_line(error)}): lower --max-length"
        ) from None


def longest_windows(architecture: Architecture, task: Task, num_windows: int) -> list[Window]:
    """Give windows of `max_length` tokens, encoded like any text: some architectures look for their special tokens."""
    functions = functions_of(task)
    row = functions.encode(architecture.checkpoint.tokenizer, [functions.long_input(task.max_length)], task)[0]
    return [row[0]] * num_windows


def check_arm(architecture: Architecture, arm: Arm, peft_task_type: str) -> None:
    """Refuse an arm that the architecture cannot do, without allocating a model.

    Raises:
        CheckpointError: Why not.
    """
    if arm.keep_head:
        build_model(architecture, arm.init, 0, keep_head=True)
    model = build_meta_model(architecture)
    apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type, architecture.fixed)


def _with_columns(recipe: Recipe, columns: dict[str, str]) -> Recipe:
    """Give the recipe whose task names the columns that were read, so that a saved model and a repeated run know them."""
    return recipe.override({f"task.{role}": column for role, column in columns.items() if hasattr(recipe.task, role)})
