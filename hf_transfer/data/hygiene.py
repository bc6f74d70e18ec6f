"""What a person should know of labelled rows before any number: what is repeated, what contradicts itself, how long inputs are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.data.roles import Examples, is_empty


@dataclass(frozen=True)
class Conflict:
    """An input that stands under different labels."""

    value: Any
    """The input."""
    positions: dict[str, list[int]]
    """Split -> positions of its rows, rising; the splits that hold none are left out."""
    labels: list[np.ndarray]
    """The labels it stands under, each once, as class ids of its items, in the order they are met."""


def count_duplicates(examples: Examples) -> int:
    """Count the rows whose input repeats that of an earlier row; empty rows repeat nothing."""
    filled = [value for value in examples.inputs if not is_empty(value)]
    return len(filled) - len(set(filled))


def find_conflicts(splits: Mapping[str, Examples]) -> list[Conflict]:
    """Find the inputs that stand under different labels, within a split or in two; empty inputs are left out.

    Args:
        splits: Split -> rows.

    Returns:
        In the order their inputs are met.
    """
    first_label: dict[Any, bytes] = {}
    conflicting: dict[Any, None] = {}
    for examples in splits.values():
        for value, labels in zip(examples.inputs, examples.labels, strict=True):
            if not is_empty(value) and first_label.setdefault(value, labels.tobytes()) != labels.tobytes():
                conflicting[value] = None
    rows: dict[Any, dict[str, list[int]]] = {value: {} for value in first_label if value in conflicting}
    for split, examples in splits.items():
        for position, value in enumerate(examples.inputs):
            if value in rows:
                rows[value].setdefault(split, []).append(position)
    return [Conflict(value, positions, _distinct_labels(splits, positions)) for value, positions in rows.items()]


def length_edges(shortest: int, longest: int) -> np.ndarray:
    """Give the edges of a histogram of lengths, (E + 1,) int64: the first at or below `shortest`, the last above `longest`.

    Half octaves, 0 1 2 3 4 6 8 11 16 23 ...: lengths of texts spread over powers of ten.
    """
    num_edges = 2 + int(np.ceil(2 * np.log2(longest + 1)))
    edges = np.unique(np.concatenate([[0], np.round(2 ** (np.arange(num_edges) / 2))])).astype(np.int64)
    return edges[np.searchsorted(edges, shortest, side="right") - 1 : np.searchsorted(edges, longest, side="right") + 1]


def count_lengths(lengths: Sequence[int], edges: np.ndarray) -> list[int]:
    """Count lengths by bin, (E,): each from its left edge to below its right one."""
    bins = np.searchsorted(edges, np.asarray(lengths, dtype=np.int64), side="right") - 1
    return [int(count) for count in np.bincount(bins, minlength=len(edges) - 1)]


def _distinct_labels(splits: Mapping[str, Examples], positions: Mapping[str, Sequence[int]]) -> list[np.ndarray]:
    labels = [splits[split].labels[position] for split, rows in positions.items() for position in rows]
    return list({label.tobytes(): label for label in labels}.values())
