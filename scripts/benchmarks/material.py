"""What both sides work on: the same rows, cut by the same tokenizer, and the same plain model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from cases import Case
from hf_transfer.data.hub import hub_answers, is_local_checkpoint, is_local_dataset
from hf_transfer.data.sources import load_source
from hf_transfer.errors import CheckpointError, DataError
from hf_transfer.evidence.study import Rows, Study, prepare_study
from hf_transfer.files import SIDECAR_FILE
from hf_transfer.models.checkpoint import find_checkpoint_folder
from hf_transfer.recipe import DataConfig, Recipe, TrainingConfig
from hf_transfer.task_configs import TextClassification
from hf_transfer.training.device import make_accelerator

REAL = ("SetFit/20_newsgroups", "sentence-transformers/all-MiniLM-L6-v2")
EMBEDDED = ("embedded:newsgroups", "embedded:all-MiniLM-L6-v2")
ABOUT_POOLING = ("modules.json", SIDECAR_FILE)
"""Files that tell us how to pool; the peers do not read them."""
NUM_VALIDATION = 8
"""Rows our side validates on after every epoch, which the peers do not do: a handful, so that it costs next to nothing."""
ARM = "arm"


@dataclass(frozen=True)
class Material:
    """Data and checkpoint of a whole benchmark."""

    dataset: str
    checkpoint: str
    """As it was asked for: a sentence encoder is read as such by setfit, and by us beside it."""
    plain: Path
    """The same weights in a folder that says nothing of pooling."""


@dataclass(frozen=True)
class Ground:
    """What a case works on."""

    study: Study
    rows: Rows
    """That train, in a fixed random order."""
    validation: Rows
    device: str

    def rows_of(self, round_number: int, num_rows: int) -> Rows:
        """Give a round's own rows, each once; the data begins anew where it ends."""
        num_rows = min(num_rows, len(self.rows))
        return self.rows.take(np.arange(round_number * num_rows, (round_number + 1) * num_rows) % len(self.rows))

    def as_dataset(self, rows: Rows) -> Dataset:
        """Tokenise rows as the published examples do; the tokens are those of our side, or there is nothing to compare."""
        tokenizer, max_length = self.study.architecture.checkpoint.processor, self.study.recipe.to_dict()["task"]["max_length"]
        encoded = tokenizer(list(rows.examples.inputs), truncation=True, max_length=max_length)
        windows: list[Any] = rows.layout.windows
        assert encoded["input_ids"] == [window.ids.tolist() for window in windows]
        return Dataset.from_dict({**encoded, "labels": rows.labels.tolist()})


def choose_names(dataset: str | None, checkpoint: str | None) -> tuple[str, str]:
    """Give the data and checkpoint asked for; where none is, real text if it can be opened, else what comes with the package."""
    defaults = REAL if (dataset and checkpoint) or _opens(*REAL) else EMBEDDED
    return dataset or defaults[0], checkpoint or defaults[1]


def copy_plain(checkpoint: str, into: Path) -> Path:
    """Link a checkpoint's files into a new folder, without those that say how it pools.

    Returns:
        The folder: both sides read it as an encoder with a head on its first token.

    Raises:
        CheckpointError: The checkpoint cannot be found.
    """
    into.mkdir(parents=True)
    for file in find_checkpoint_folder(checkpoint, _cache_only(checkpoint)).iterdir():
        if file.is_file() and file.name not in ABOUT_POOLING:
            (into / file.name).symlink_to(file.resolve())
    return into


def lay_ground(material: Material, case: Case, batch_size: int, is_plain: bool = True) -> Ground:
    """Load and encode the data of a case.

    Args:
        material: Data and checkpoint.
        case: Says the length.
        batch_size: Rows an update.
        is_plain: Read the checkpoint without its own pooling.

    Raises:
        TransferError: Data or checkpoint cannot be read.
    """
    recipe = Recipe(
        name="benchmark",
        task=TextClassification(max_length=case.max_length),
        data=DataConfig(material.dataset),
        checkpoint=str(material.plain) if is_plain else material.checkpoint,
        arms={ARM: case.arm},
        training=TrainingConfig(batch_size=batch_size),
    )
    local = _cache_only(recipe.checkpoint, material.dataset)
    study = prepare_study(recipe, [ARM], ["all"], [0], make_accelerator("auto"), local_files_only=local)
    train, validation = study.draw("all", 0)
    order = np.random.default_rng(0).permutation(len(train))
    return Ground(study, train.take(order), validation.take(np.arange(min(NUM_VALIDATION, len(validation)))), study.accelerator.device.type)


def _opens(dataset: str, checkpoint: str) -> bool:
    local = _cache_only(checkpoint, dataset)
    try:
        find_checkpoint_folder(checkpoint, local)
        load_source(dataset, local_files_only=local)
    except (CheckpointError, DataError):
        return False
    return True


def _cache_only(checkpoint: str, dataset: str | None = None) -> bool:
    return (is_local_checkpoint(checkpoint) and (dataset is None or is_local_dataset(dataset))) or not hub_answers()
