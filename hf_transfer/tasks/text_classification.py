"""Text classification: a text in, one of C labels out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from hf_transfer.data.batches import pad
from hf_transfer.data.labels import read_labels
from hf_transfer.data.roles import Examples
from hf_transfer.data.sources import select_roles
from hf_transfer.errors import DataError, listed

AUTO_MODEL = AutoModelForSequenceClassification
PEFT_TASK_TYPE = "SEQ_CLS"


def read(
    splits: Mapping[str, Dataset], columns: Mapping[str, str], label_names: Sequence[str] | None
) -> tuple[list[str], dict[str, Examples | None]]:
    """Read texts and labels.

    Args:
        splits: Split -> dataset as loaded.
        columns: Role -> column.
        label_names: Names of the classes, or None to take the data's.

    Returns:
        Label names, (C,), and split -> examples, None for a split without labels.

    Raises:
        DataError: A column, a text or a label is missing or wrong; names the row.
    """
    labels_optional = frozenset((split, role) for split in ("validation", "test") for role in ("label", "label_name"))
    selected = select_roles(splits, columns, optional=labels_optional)
    names, ids = read_labels(selected, label_names)
    examples: dict[str, Examples | None] = {}
    for split, dataset in selected.items():
        labels = ids[split]
        texts = None if labels is None else _texts(split, dataset["text"][:])
        examples[split] = None if texts is None or labels is None else Examples(np.arange(len(texts)), texts, labels)
    return names, examples


def _texts(split: str, values: list[Any]) -> list[str]:
    wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
    other = next((values[row] for row in wrong if values[row] is not None and values[row] == values[row]), None)
    if other is not None:
        raise DataError(f"the text column of the {split} data holds {type(other).__name__} ({other!r}), expected text: name another column")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(values)} {split} rows have no text (row {listed(wrong, 5)}: {values[wrong[0]]!r}): expected text, "
            "an empty one where there is nothing to say; remove or fill these rows"
        )
    return [value.strip() for value in values]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
    """Turn texts into token ids, special tokens included, cut at `max_length`.

    Returns:
        Ids of each text, (L_i,) int32, one at least.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False)
    # Tokenizers without special tokens leave nothing of an empty text, which is predicted like any other.
    nothing = [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
    return [np.array(ids or nothing, dtype=np.int32) for ids in encoded["input_ids"]]


def collate(rows: Sequence[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Pad rows of ids into the model's arguments: `input_ids` and `attention_mask`, (B, L) int64."""
    ids, mask = pad(rows, tokenizer.pad_token_id)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def row_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Give each row's cross-entropy in nats, (B,), from logits (B, C) and class ids (B,)."""
    return functional.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Give class probabilities (B, C) float32 from logits (B, C)."""
    return torch.softmax(torch.from_numpy(logits).float(), dim=-1).numpy()
