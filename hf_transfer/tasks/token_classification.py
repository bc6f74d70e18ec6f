"""Token classification: words in, a BIO tag for each out; the entities they spell are the answer."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedTokenizerBase

from hf_transfer.data.batches import pad
from hf_transfer.data.columns import select_roles
from hf_transfer.data.roles import Corpus, Examples
from hf_transfer.data.tags import OUTSIDE, find_entities, read_tags, split_words, tag_spans, type_of
from hf_transfer.errors import ConfigError, DataError, did_you_mean, listed
from hf_transfer.task_configs import TokenClassification
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
from hf_transfer.tasks.windows import cut_into_windows, first_pieces, special_tokens

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from hf_transfer.data.sources import Source

__all__ = ["augmenter", "check_reach", "describe_misfit", "describe_reach"]

AUTO_MODEL = AutoModelForTokenClassification
PEFT_TASK_TYPE = "TOKEN_CLS"
MANY_ITEMS = True
READS_TEXTS_WHOLE = False
READS_FILES = False
LENGTH_UNIT = "words"

CHUNK = 1000
"""Rows tokenised at once."""


def choose_columns(columns: Mapping[str, str], found: Collection[str], task: TokenClassification) -> dict[str, str]:
    """Give the role -> column that the data fills: words and tags, or text and spans where those are named or alone are there."""
    spans = {"text": columns.get("text", "text"), "spans": columns.get("spans", "spans")}
    if "text" in columns or "spans" in columns:
        return spans
    words = {role: columns[role] for role in ("tokens", "ner_tags")}
    return spans if not set(words.values()) & set(found) and set(spans.values()) <= set(found) else words


def read(
    source: "Source", columns: Mapping[str, str], label_names: Sequence[str] | None, task: TokenClassification
) -> tuple[list[str], dict[str, Examples | None]]:
    """Read words and their tags, or texts and the spans of their entities.

    Args:
        source: The data as loaded.
        columns: Role -> column.
        label_names: Names of integer tags by position, or all tags there may be.
        task: Not asked here.

    Returns:
        Tag names, (C,), and split -> examples, None for a split without tags. An input is a tuple of words.

    Raises:
        DataError: A column, a word, a tag or a span is missing or wrong; names the row.
    """
    answers = ("spans",) if "spans" in columns else ("ner_tags",)
    optional = frozenset((split, role) for split in ("validation", "test") for role in answers)
    selected = select_roles(source.splits, columns, optional)
    if "spans" in columns:
        selected = {split: _words_of_spans(split, dataset) for split, dataset in selected.items()}
    for split, dataset in selected.items():
        _check_words(split, dataset["tokens"][:])
    names, tags = read_tags(selected, label_names)
    examples: dict[str, Examples | None] = {}
    for split, dataset in selected.items():
        labels = tags[split]
        if labels is None:
            examples[split] = None
        else:
            words = [tuple(row) for row in dataset["tokens"][:]]
            examples[split] = Examples(np.arange(len(words)), words, labels, strata=np.zeros(len(words), dtype=np.int64))
    return names, examples


def check_labels(corpus: Corpus, names: Sequence[str]) -> list[str]:
    """Refuse training rows without any entity; give sentences to tell: types that only test or only training has.

    Raises:
        DataError: Every word is outside.
    """
    outside = names.index(OUTSIDE)
    if all((labels == outside).all() for labels in corpus.train.labels):
        raise DataError(f"the {len(corpus.train)} training rows hold no entity: every word is tagged {OUTSIDE}")
    trained, tested = (count_labels(examples.labels, names) for examples in (corpus.train, corpus.test))
    told = []
    if unseen := [name for name in names_of_types(names) if tested[name] and not trained[name]]:
        told.append(f"training has no entity of the type {listed(unseen)}, test has: none of them can be found")
    if untested := [name for name in names_of_types(names) if trained[name] and not tested[name]]:
        told.append(f"test has no entity of the type {listed(untested)}")
    return told


def names_of_types(names: Sequence[str]) -> list[str]:
    """Give the entity types among tag names."""
    return list(dict.fromkeys(type_of(name) for name in names if name != OUTSIDE))


def count_labels(labels: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, int]:
    """Count the entities of each type."""
    found = Counter(entity.type for row in labels for entity in find_entities([names[tag] for tag in row]))
    return {name: found[name] for name in names_of_types(names)}


def weights_by_class(weights: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """Give the weight of each tag, (C,) float64, from weights by tag (`B-person`) or by entity type (`person`); others 1.

    Raises:
        ConfigError: There is no such tag or type.
    """
    types = names_of_types(names)
    if unknown := sorted(set(weights) - set(names) - set(types)):
        suggestion = did_you_mean(unknown[0], [*types, *names])
        raise ConfigError(f"class_weights names '{unknown[0]}', entity types are {listed(types)} and tags {listed(names)}{suggestion}")
    return np.array([weights.get(name, weights.get(type_of(name), 1.0)) for name in names])


def load_processor(folder: Path, name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, made to read each word as one in the middle of a text, whatever stands before it.

    Byte-level tokenizers (RoBERTa, ModernBERT) glue words together unless their pre-tokenizer puts a blank before each; the flag
    `add_prefix_space` alone reaches some of them only, so the pre-tokenizer is rewritten. It survives saving.

    Raises:
        CheckpointError: There is none that can pad and knows its words.
    """
    tokenizer = load_tokenizer(folder, name, config)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    stack = [backend["pre_tokenizer"]]
    for step in stack:
        if step is not None:
            stack += step.get("pretokenizers", [])
            if "add_prefix_space" in step:
                step["add_prefix_space"] = True
            if "prepend_scheme" in step:
                step["prepend_scheme"] = "always"
    tokenizer.backend_tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(backend)).pre_tokenizer
    # transformers refuses words from a tokenizer that says False here.
    tokenizer.add_prefix_space = True
    tokenizer.init_kwargs["add_prefix_space"] = True
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, inputs: Sequence[Sequence[str]], task: TokenClassification) -> list[EncodedRow]:
    """Turn words into windows of token ids, each word labelled on its first token in exactly one of them.

    The first word piece stands for its word (Devlin et al. 2018, section 5.3, https://arxiv.org/abs/1810.04805). A row too long for
    one window gets several that overlap by half; a word is labelled in the one that shows most around it. A word of which the tokenizer
    leaves nothing is read as its unknown token.

    Args:
        tokenizer: From `load_processor`.
        inputs: Words of each row, (B,) of (N_i,).
        task: Says how long a window is.

    Returns:
        Windows of each row, none for a row without words.
    """
    rows: list[EncodedRow] = []
    before, after = special_tokens(tokenizer)
    room = task.max_length - len(before) - len(after)
    for start in range(0, len(inputs), CHUNK):
        chunk = [list(words) for words in inputs[start : start + CHUNK]]
        encoded = tokenizer(chunk, is_split_into_words=True, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for index, words in enumerate(chunk):
            ids, first = first_pieces(encoded["input_ids"][index], encoded.word_ids(index), len(words), tokenizer, max(1, room // 4))
            rows.append(cut_into_windows(ids, first, room, before, after))
    return rows


def collate(windows: Sequence[TextWindow], processor: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Pad windows into the model's arguments: `input_ids` and `attention_mask`, (B, L) int64."""
    ids, mask = pad([window.ids for window in windows], processor.pad_token_id)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def item_logits(logits: torch.Tensor, windows: Sequence[TextWindow]) -> torch.Tensor:
    """Give the logits of each labelled word, (M, C), from those of every token, (B, L, C)."""
    rows = np.repeat(np.arange(len(windows)), [len(window.items) for window in windows])
    places = np.concatenate([window.tokens for window in windows if window.tokens is not None])
    return logits[torch.from_numpy(rows).to(logits.device), torch.from_numpy(places).to(logits.device)]


def decode(probabilities: np.ndarray, first_item: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Give the likeliest legal tags of each row: an `I-` only behind `B-` or `I-` of its type (Viterbi 1967).

    Args:
        probabilities: Of each word's tags, (M, C).
        first_item: The words of row i are `first_item[i]` up to `first_item[i + 1]`, (B + 1,).
        names: Tag names, (C,).

    Returns:
        Class ids, (M,).
    """
    log_probabilities = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    inside = np.array([index for index, name in enumerate(names) if name.startswith("I-")], dtype=np.int64)
    begin = np.array([names.index(f"B-{type_of(names[index])}") for index in inside], dtype=np.int64)
    lengths = np.diff(first_item)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = first_item[:-1][order], lengths[order]
    tags = np.zeros(len(probabilities), dtype=np.int64)
    if not len(tags):
        return tags
    # All rows advance together, longest first, so those still running are always the first `running`.
    running = int(np.count_nonzero(lengths > 0))
    scores = log_probabilities[starts[:running]]
    scores[:, inside] = -np.inf
    came_from = []
    for word in range(1, int(lengths[0])):
        running = int(np.count_nonzero(lengths > word))
        before = scores[:running]
        source = np.repeat(before.argmax(axis=1)[:, None], len(names), axis=1)
        source[:, inside] = np.where(before[:, begin] >= before[:, inside], begin, inside)
        scores[:running] = np.take_along_axis(before, source, axis=1) + log_probabilities[starts[:running] + word]
        came_from.append(source)
    at = scores.argmax(axis=1)
    for word in range(int(lengths[0]) - 1, -1, -1):
        running = int(np.count_nonzero(lengths > word))
        tags[starts[:running] + word] = at[:running]
        if word:
            at[:running] = came_from[word - 1][np.arange(running), at[:running]]
    return tags


def probe_windows(tokenizer: PreTrainedTokenizerBase, task: TokenClassification, num_windows: int) -> list[Window]:
    """Give windows of `max_length` tokens, encoded like any sentence: some architectures look for their special tokens."""
    return [encode(tokenizer, [("a",) * task.max_length], task)[0][0]] * num_windows


def measure(inputs: Sequence[Any], tokenizer: PreTrainedTokenizerBase, task: TokenClassification) -> Lengths:
    """Measure sentences before any is cut into windows."""
    uncut = encode(tokenizer, inputs, replace(task, max_length=NO_LIMIT))
    return measure_lengths(uncut, task.max_length, "read in several windows")


def to_text(value: Sequence[str]) -> str:
    """Give what an input says: its words, single blanks between them."""
    return " ".join(value)


def show(value: Sequence[str]) -> dict[str, Any]:
    """Give what a person looks at of an input: `words`."""
    return {"words": list(value)}


def length_of(value: Sequence[str]) -> int:
    """Give the words of an input."""
    return len(value)


def item_shares(num_items: np.ndarray, task: TokenClassification) -> np.ndarray:
    """Give what each item of a row counts by its row, (B,): 1, or 1 / words where every row shall count the same.

    Args:
        num_items: Words of each row, (B,).
        task: Says which.
    """
    return 1 / np.maximum(num_items, 1) if task.loss_per == "row" else np.ones(len(num_items))


def to_inputs(values: Iterable[Any], task: TokenClassification) -> list[tuple[str, ...]]:
    """Cut what a user wants predicted into words; a list of words stays as it is.

    Raises:
        ConfigError: It is no list of texts or of lists of words, or one holds half of a character.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"predict takes a list of texts, found {type(values).__name__}: predict([text])")
    return [_words_and_places(value, index)[0] for index, value in enumerate(values)]


def to_answers(
    values: Sequence[Any], probabilities: Sequence[np.ndarray], predictions: Sequence[np.ndarray], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Give `{"entities": [{"start", "end", "text", "label", "score"}]}` for each text.

    Args:
        values: Texts, or lists of words, whose offsets are those in the words joined by single blanks; (B,).
        probabilities: (B,) of (N_i, C).
        predictions: Class ids, (B,) of (N_i,).
        names: Tag names, (C,).

    Returns:
        (B,). `start` and `end` (one behind the last) count characters; `score` is the mean probability of the entity's tags.
    """
    answers = []
    for index, value in enumerate(values):
        text = value if isinstance(value, str) else " ".join(value)
        _, places = _words_and_places(value, index)
        tags = predictions[index]
        entities = []
        for entity in find_entities([names[tag] for tag in tags]):
            start, end = places[entity.start][0], places[entity.end - 1][1]
            words = np.arange(entity.start, entity.end)
            score = float(probabilities[index][words, tags[words]].mean())
            entities.append({"start": start, "end": end, "text": text[start:end], "label": entity.type, "score": score})
        answers.append({"entities": entities})
    return answers


def to_table(answers: Sequence[Mapping[str, Any]], names: Sequence[str], flat: bool) -> "pa.Table":
    """Give answers as the column `entities` of a table: a list of `{"start", "end", "text", "label", "score"}` in each row.

    Args:
        answers: From `to_answers`, (B,).
        names: Tag names, (C,).
        flat: No cell may hold several values; a CSV writes the list as JSON text, so this changes nothing.
    """
    import pyarrow as pa

    entity = {"start": pa.int64(), "end": pa.int64(), "text": pa.string(), "label": pa.string(), "score": pa.float32()}
    return pa.table({"entities": pa.array([answer["entities"] for answer in answers], pa.list_(pa.struct(entity.items())))})


def input_roles(task: TokenClassification, columns: Mapping[str, str], found: Collection[str]) -> dict[str, str]:
    """Give the role -> column of a table to predict, texts or lists of words: what is named, what the training had, or what is there."""
    words, texts = {"tokens": task.tokens}, {"text": task.text or "text"}
    if "text" in columns or "tokens" in columns:
        return texts if "text" in columns else words
    first, second = (words, texts) if task.text is None else (texts, words)
    return second if not set(first.values()) & set(found) and set(second.values()) <= set(found) else first


def from_columns(columns: Mapping[str, list[Any]], first_row: int, root: Path) -> list[Any]:
    """Give what `to_inputs` takes from the columns of a table.

    Args:
        columns: Role -> values, (B,): `text`, or `tokens`.
        first_row: Where they begin in the table, for messages.
        root: Not asked here.

    Raises:
        DataError: A value is no text, or no list of words; names the row.
    """
    ((role, values),) = columns.items()
    if role == "tokens":
        _check_words("given", values, first_row)
        return values
    for row, value in enumerate(values, first_row):
        if not isinstance(value, str):
            raise DataError(
                f"given row {row} has no text ({value!r}): expected text, an empty one where there is none; fill or remove the row"
            )
    return values


def _words_and_places(value: Any, index: int) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    if isinstance(value, str):
        check_whole(value, index)
        return split_words(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        inside = f" of {listed(sorted({type(word).__name__ for word in value}))}" if isinstance(value, (list, tuple)) else ""
        raise ConfigError(f"predict takes a list of texts (or of lists of words), found {type(value).__name__}{inside} at position {index}")
    check_whole("".join(value), index)
    ends = np.cumsum([len(word) + 1 for word in value]) - 1
    return tuple(value), [(int(end) - len(word), int(end)) for end, word in zip(ends, value, strict=True)]


def _words_of_spans(split: str, dataset: "Dataset") -> "Dataset":
    """Turn texts and spans into words and tags."""
    from datasets import Dataset

    texts = dataset["text"][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{split} row {row} has no text ({text!r}): fill it, or remove the row")
    spans_of = dataset["spans"][:] if "spans" in dataset.column_names else [None] * len(texts)
    if split != "train" and all(spans is None for spans in spans_of):
        return Dataset.from_dict({"tokens": [list(split_words(text)[0]) for text in texts]})
    rows = []
    for row, (text, spans) in enumerate(zip(texts, spans_of, strict=True)):
        if not isinstance(spans, list):
            found = "none" if spans is None else type(spans).__name__
            raise DataError(f"{split} row {row}: spans must be a list of {{start, end, label}}, [] where there is no entity; found {found}")
        rows.append(tag_spans(text, spans, f"{split} row {row}"))
    return Dataset.from_dict({"tokens": [list(words) for words, _ in rows], "ner_tags": [tags for _, tags in rows]})


def _check_words(split: str, rows: Sequence[Any], first_row: int = 0) -> None:
    for row, words in enumerate(rows, first_row):
        if not isinstance(words, list):
            in_cells = "a CSV holds no lists: write CoNLL or JSONL" + (", or name a column of texts" if split == "given" else "")
            why = in_cells if isinstance(words, str) else "name another column, or remove the row"
            raise DataError(f"{split} row {row}: tokens must be a list of words, found {type(words).__name__}; {why}")
        wrong = next((word for word in words if not isinstance(word, str)), "")
        if not isinstance(wrong, str):
            raise DataError(f"{split} row {row}: tokens must be a list of words, one of them is {wrong!r}")
