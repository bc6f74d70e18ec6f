"""All that the cells of one run share: data with fixed roles, encoded once; the checkpoint's architecture; the devices."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from accelerate import Accelerator

from hf_transfer.data.roles import Budget, Corpus, Examples, check_budget, check_classes, draw, fix_test
from hf_transfer.data.sources import load_splits
from hf_transfer.errors import ConfigError, did_you_mean, first_line, listed
from hf_transfer.evaluation.prediction import Collate
from hf_transfer.models.build import Architecture, build_meta_model, build_model, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.tuning import apply_tuning
from hf_transfer.recipe import Arm, Recipe
from hf_transfer.tasks import functions_of


@dataclass(frozen=True)
class Rows:
    """Labelled rows beside their encoding."""

    examples: Examples
    encoded: list[np.ndarray]
    """(B,) rows of ids, each (L_i,)."""

    def __len__(self) -> int:
        return len(self.encoded)

    def take(self, positions: np.ndarray) -> "Rows":
        """Give the rows at `positions`, in that order."""
        return Rows(self.examples.take(positions), [self.encoded[position] for position in positions])


@dataclass(frozen=True)
class Study:
    """Data, architecture and devices of one run."""

    recipe: Recipe
    labels: list[str]
    """(C,), by class id."""
    corpus: Corpus
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

    def draw(self, budget: Budget, seed: int) -> tuple[Rows, Rows]:
        """Draw the training and validation rows of a budget and seed."""
        train, validation = draw(self.corpus, budget, seed)
        if validation is not None:
            return self.train.take(train), self.train.take(validation)
        assert self.validation is not None
        return self.train.take(train), self.validation

    @property
    def collate(self) -> Collate:
        """Rows -> forward arguments."""
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
    max_length = recipe.task.max_length
    if checkpoint.max_length is not None and max_length > checkpoint.max_length:
        raise ConfigError(
            f"max_length {max_length} is more than the {checkpoint.max_length} tokens that checkpoint {checkpoint.name} can read: "
            f"take --max-length {checkpoint.max_length}"
        )
    splits = load_splits(recipe.data.source, recipe.data.config, recipe.data.revision, local_files_only)
    labels, examples = task.read(splits, recipe.columns, recipe.data.label_names)
    _check_class_weights(recipe, labels)
    corpus = fix_test(examples, max_test_rows, recipe.data.drop_overlap)
    check_classes(corpus, labels)
    for budget in budgets:
        check_budget(corpus, budget)
        for seed in seeds:
            draw(corpus, budget, seed)
    architecture = inspect(checkpoint, task.AUTO_MODEL, labels, recipe.training.dropout)
    for name in arms:
        check_arm(architecture, recipe.arms[name], task.PEFT_TASK_TYPE)
    check_max_length(architecture, task, max_length)

    def encode(rows: Examples) -> Rows:
        return Rows(rows, task.encode(checkpoint.tokenizer, rows.inputs, max_length))

    return Study(
        recipe=recipe,
        labels=labels,
        corpus=corpus,
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
    return apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type)


def check_max_length(architecture: Architecture, task: ModuleType, max_length: int) -> None:
    """Forward one row of `max_length` tokens: what a config and a tokenizer say of it is not always true (RoBERTa's positions start at 2).

    Raises:
        ConfigError: The model cannot read that many.
    """
    checkpoint = architecture.checkpoint
    # Encoded like any text: some architectures look for their special tokens.
    row = task.encode(checkpoint.tokenizer, ["a " * max_length], max_length)[0]
    try:
        with torch.inference_mode():
            build_model(architecture, "scratch", seed=0).eval()(**task.collate([row], checkpoint.tokenizer))
    except (IndexError, RuntimeError) as error:
        raise ConfigError(
            f"checkpoint {checkpoint.name} cannot read max_length {max_length} tokens ({first_line(error)}): lower --max-length"
        ) from None


def check_arm(architecture: Architecture, arm: Arm, peft_task_type: str) -> None:
    """Refuse an arm that the architecture cannot do, without allocating a model.

    Raises:
        CheckpointError: Why not.
    """
    if arm.keep_head:
        build_model(architecture, arm.init, 0, keep_head=True)
    apply_tuning(build_meta_model(architecture), architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type)


def _check_class_weights(recipe: Recipe, labels: Sequence[str]) -> None:
    weights = recipe.training.class_weights
    if isinstance(weights, dict) and (unknown := sorted(set(weights) - set(labels))):
        raise ConfigError(f"class_weights names '{unknown[0]}', labels are {listed(labels)}{did_you_mean(unknown[0], labels)}")
