"""Text classification: a text, or a pair of texts, in; one of C labels out."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase

from hf_transfer.data.batches import pad
from hf_transfer.data.roles import Examples
from hf_transfer.errors import ConfigError, DataError, listed
from hf_transfer.task_configs import TextClassification
from hf_transfer.tasks.classification import (
    check_labels,
    count_labels,
    decode,
    item_logits,
    item_shares,
    read_rows,
    to_answers,
    to_table,
    weights_by_class,
)
from hf_transfer.tasks.items import EncodedRow, TextWindow, Window
from hf_transfer.tasks.tokenizers import (
    NO_LIMIT,
    Lengths,
    augmenter,
    check_reach,
    check_whole,
    describe_misfit,
    describe_reach,
    load_tokenizer,
    measure_lengths,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.data.sources import Source

__all__ = [
    "augmenter",
    "check_labels",
    "check_reach",
    "count_labels",
    "decode",
    "describe_misfit",
    "describe_reach",
    "item_logits",
    "item_shares",
    "to_answers",
    "to_table",
    "weights_by_class",
]

AUTO_MODEL = AutoModelForSequenceClassification
PEFT_TASK_TYPE = "SEQ_CLS"
MANY_ITEMS = False
READS_TEXTS_WHOLE = True
READS_FILES = False
LENGTH_UNIT = "characters"

CHUNK = 1000
"""Rows tokenised at once: a text is tokenised whole before it is cut, and the tokenizer keeps a hundred bytes a token."""


def choose_columns(columns: Mapping[str, str], found: Collection[str], task: TextClassification) -> dict[str, str]:
    """Give the role -> column that the data fills: `text_pair` joins where a column of that name is there and plays no other role."""
    declined = "text_pair" in columns or task.text_pair == "" or "text_pair" in columns.values()
    return dict(columns) if declined or "text_pair" not in found else {**columns, "text_pair": "text_pair"}


def read(
    source: "Source", columns: Mapping[str, str], label_names: Sequence[str] | None, task: TextClassification
) -> tuple[list[str], dict[str, Examples | None]]:
    """Read texts and labels.

    Args:
        source: The data as loaded.
        columns: Role -> column.
        label_names: Names of the classes, or None to take the data's.
        task: Says what is replaced in a text.

    Returns:
        Label names, (C,), and split -> examples, None for a split without labels. An input is a text, or a pair of them.

    Raises:
        DataError: A column, a text or a label is missing or wrong; names the row.
    """

    def inputs_of(split: str, dataset: "Dataset") -> list[Any]:
        texts: list[Any] = _texts(split, "text", dataset["text"][:], task)
        if "text_pair" not in columns:
            return texts
        seconds = _texts(split, "text_pair", dataset["text_pair"][:], task)
        _check_pairs(split, texts, seconds)
        return list(zip(texts, seconds, strict=True))

    return read_rows(source, columns, label_names, inputs_of)


def load_processor(folder: Path, name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        CheckpointError: There is none that can pad.
    """
    return load_tokenizer(folder, name, config)


def encode(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[Any], task: TextClassification) -> list[EncodedRow]:
    """Turn texts or pairs into token ids, special tokens included, cut to `task.max_length` as `task.keep` says.

    Returns:
        One window a row, each of one token at least.
    """
    return [
        row
        for start in range(0, len(inputs), CHUNK)
        for row in _encode_chunk(tokenizer, inputs[start : start + CHUNK], task.max_length, task.keep)
    ]


def collate(windows: Sequence[TextWindow], processor: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Pad windows into the model's arguments: `input_ids`, `attention_mask` and, for pairs, `token_type_ids`, (B, L) int64."""
    ids, mask = pad([window.ids for window in windows], processor.pad_token_id)
    arguments = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    types = [window.types for window in windows if window.types is not None]
    if types:
        arguments["token_type_ids"] = torch.from_numpy(pad(types, 0)[0])
    return arguments


def probe_windows(tokenizer: PreTrainedTokenizerBase, task: TextClassification, num_windows: int) -> list[Window]:
    """Give windows of `max_length` tokens, encoded like any text: some architectures look for their special tokens."""
    return [encode(tokenizer, ["a " * task.max_length], task)[0][0]] * num_windows


def measure(inputs: Sequence[Any], tokenizer: PreTrainedTokenizerBase, task: TextClassification) -> Lengths:
    """Measure texts before any is cut."""
    kept = "both ends" if task.keep == "both" else f"the {task.keep}"
    return measure_lengths(encode(tokenizer, inputs, replace(task, max_length=NO_LIMIT)), task.max_length, f"cut ({kept} kept)")


def to_text(value: Any) -> str:
    """Give what an input says, a pair on two lines."""
    return value if isinstance(value, str) else "\n".join(value)


def show(value: Any) -> dict[str, Any]:
    """Give what a person looks at of an input: `text`."""
    return {"text": to_text(value)}


def length_of(value: Any) -> int:
    """Give the characters of an input, whole."""
    return len(value) if isinstance(value, str) else sum(map(len, value))


def to_inputs(values: Iterable[Any], task: TextClassification) -> list[Any]:
    """Clean what a user wants predicted as the training texts were.

    Raises:
        ConfigError: It is no list of texts, or of pairs for a model of pairs; or one holds half of a character.
    """
    pairs = bool(task.text_pair)
    expected = "a list of pairs (text, second text)" if pairs else "a list of texts"
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"predict takes {expected}, found {type(values).__name__}: predict([{'(text, second)' if pairs else 'text'}])")
    cleaned: list[Any] = []
    for index, value in enumerate(values):
        texts = list(value) if pairs and isinstance(value, (tuple, list)) else [value]
        if len(texts) != 1 + pairs or not all(isinstance(text, str) for text in texts):
            found = (
                (listed(type(text).__name__ for text in texts) or "nothing")
                if isinstance(value, (tuple, list)) and pairs
                else type(value).__name__
            )
            raise ConfigError(f"predict takes {expected}, found {found} at position {index}")
        for text in texts:
            check_whole(text, index)
        texts = [_clean(text, task) for text in texts]
        cleaned.append(tuple(texts) if pairs else texts[0])
    return cleaned


def input_roles(task: TextClassification, columns: Mapping[str, str], found: Collection[str]) -> dict[str, str]:
    """Give the role -> column of a table to predict: the columns of the training."""
    return {"text": task.text} | ({"text_pair": task.text_pair} if task.text_pair else {})


def from_columns(columns: Mapping[str, list[Any]], first_row: int, root: Path) -> list[Any]:
    """Give what `to_inputs` takes from the columns of a table.

    Args:
        columns: Role -> values, (B,).
        first_row: Where they begin in the table, for messages.
        root: Not asked here.

    Raises:
        DataError: A text is missing or none; names the row.
    """
    for role, values in columns.items():
        _check_texts("given", role, values, first_row)
    texts = list(columns.values())
    return list(zip(*texts, strict=True)) if len(texts) > 1 else texts[0]


def _texts(split: str, role: str, values: list[Any], task: TextClassification) -> list[str]:
    _check_texts(split, role, values)
    return [_clean(value, task) for value in values]


def _check_texts(split: str, role: str, values: list[Any], first_row: int = 0) -> None:
    wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
    other = next((values[row] for row in wrong if values[row] is not None and values[row] == values[row]), None)
    if other is not None:
        raise DataError(
            f"the {role} column of the {split} data holds {type(other).__name__} ({other!r}), expected text: name another column"
        )
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(values)} {split} rows have no {role} (row {listed([first_row + row for row in wrong], 5)}: "
            f"{values[wrong[0]]!r}): expected text, an empty one where there is nothing to say; remove or fill these rows"
        )


def _check_pairs(split: str, texts: Sequence[str], seconds: Sequence[str]) -> None:
    halves = [row for row, (text, second) in enumerate(zip(texts, seconds, strict=True)) if bool(text) != bool(second)]
    if halves:
        side = "second text" if texts[halves[0]] else "first text"
        raise DataError(
            f"{len(halves)} of {len(texts)} {split} rows are pairs with one side empty (row {listed(halves, 5)}; row {halves[0]} lacks its "
            f"{side}): fill both sides, or remove these rows"
        )


def _clean(text: str, task: TextClassification) -> str:
    for old, new in task.replace.items():
        text = text.replace(old, new)
    return text.strip()


def _encode_chunk(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[Any], max_length: int, keep: str) -> list[EncodedRow]:
    pairs = isinstance(inputs[0], tuple)
    columns = [list(column) for column in zip(*inputs, strict=True)] if pairs else [list(inputs)]
    encoded = tokenizer(*columns, return_attention_mask=False, verbose=False)
    # Tokenizers without special tokens leave nothing of an empty text, which is predicted like any other.
    nothing = [tokenizer.pad_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id]
    rows: list[EncodedRow] = []
    for index, row_ids in enumerate(encoded["input_ids"]):
        ids = np.array(row_ids or nothing, dtype=np.int32)
        types = np.array(encoded["token_type_ids"][index], dtype=np.int32) if pairs and "token_type_ids" in encoded else None
        if len(ids) > max_length:
            kept = _kept(encoded.sequence_ids(index), max_length, keep)
            ids, types = ids[kept], None if types is None else types[kept]
        rows.append((TextWindow(ids, items=np.zeros(1, dtype=np.int64), types=types),))
    return rows


def _kept(text_of: Sequence[int | None], max_length: int, keep: str) -> np.ndarray:
    """Give the positions that stay of a row that is too long: its special tokens and, of each text, what `keep` says.

    Of a pair, the longer text gives way first. "both" keeps a quarter of the room for the head: 128 of 512 did best in Sun et al.
    2019, section 5.3 (https://arxiv.org/abs/1905.05583).
    """
    sides = np.array([-1 if side is None else side for side in text_of])
    texts = [np.flatnonzero(sides == side) for side in range(sides.max() + 1)]
    special = np.flatnonzero(sides == -1)
    room = max(0, max_length - len(special))
    sizes = [len(texts[0])] if len(texts) == 1 else _share(room, len(texts[0]), len(texts[1]))
    kept = [special[:max_length]]
    for positions, size in zip(texts, sizes, strict=True):
        size = min(size, room)
        head = {"head": size, "tail": 0, "both": size // 4}[keep]
        kept += [positions[:head], positions[len(positions) - (size - head) :]]
    return np.sort(np.concatenate(kept))


def _share(room: int, first: int, second: int) -> list[int]:
    """Share room between two texts: the shorter one whole where it takes no more than half."""
    short = min(first, second, room // 2)
    return [short, room - short] if first < second else [room - short, short]
