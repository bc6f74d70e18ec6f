"""What all tasks share: rows as windows of items, the loss of an item, its probabilities.

A row holds items, each with one label: a text or an image is one item, a sentence has one a word. A window is what one forward reads: a
whole row, or a stretch of one too long for the model. Every item is predicted in exactly one window, whatever the windows share.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from hf_transfer.data.images import Picture


class Window(Protocol):
    """What one forward reads of a row."""

    @property
    def items(self) -> np.ndarray:
        """(K,) int64: which of the row's items this window predicts."""

    @property
    def num_tokens(self) -> int:
        """Tokens, or an image's patches."""

    @property
    def cost(self) -> int:
        """Padded tokens it takes in a micro-batch: fewer than it has, where hidden states are replayed."""

    @property
    def content(self) -> bytes:
        """What its tensors are made from: equal for equal tensors."""


@dataclass(frozen=True)
class TextWindow:
    """Tokens of a row."""

    ids: np.ndarray
    """(L,) int32 token ids, special tokens included."""
    items: np.ndarray
    """(K,) int64: which of the row's items this window predicts."""
    tokens: np.ndarray | None = None
    """(K,) int64: where in `ids` each of them stands; None where the whole window is one item."""
    types: np.ndarray | None = None
    """(L,) int32 token types (0 the first text, 1 the second); None = all 0."""

    @property
    def num_tokens(self) -> int:
        """Give L."""
        return len(self.ids)

    @property
    def cost(self) -> int:
        """Give L."""
        return len(self.ids)

    @property
    def content(self) -> bytes:
        """Give its ids, then its types."""
        return self.ids.tobytes() + (b"" if self.types is None else b"types" + self.types.tobytes())


@dataclass(frozen=True)
class ImageWindow:
    """An image, decoded whenever it is read."""

    picture: Picture
    num_tokens: int
    """Its patches."""
    items: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    """(1,)."""

    @property
    def cost(self) -> int:
        """Give its patches."""
        return self.num_tokens

    @property
    def content(self) -> bytes:
        """Give the hash of its file."""
        return self.picture.sha256.encode()


@dataclass(frozen=True)
class Draw:
    """A window in training, and what its random numbers begin with."""

    window: Any
    key: tuple[int, ...]
    """(seed, a constant, epoch, row id)."""


EncodedRow = tuple[Window, ...]
"""A row's windows; none where the row has no item."""


@dataclass(frozen=True)
class Layout:
    """The windows of many rows in one list, and all their items in one count."""

    windows: list[Window]
    """(W,), row after row."""
    items: list[np.ndarray]
    """(W,) of (K,): the window's items, counted over all rows."""
    row_of_window: np.ndarray
    """(W,) position of the row."""
    first_item: np.ndarray
    """(B + 1,): the items of row i are `first_item[i]` up to `first_item[i + 1]`."""

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Padded tokens each window takes, (W,) int64."""
        return np.array([window.cost for window in self.windows], dtype=np.int64)

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of each window, (W,) int64."""
        return np.array([window.num_tokens for window in self.windows], dtype=np.int64)

    @property
    def num_items(self) -> int:
        """Items of all rows."""
        return int(self.first_item[-1])

    @property
    def row_of_item(self) -> np.ndarray:
        """Position of the row of each item, (M,)."""
        return np.repeat(np.arange(len(self.first_item) - 1), np.diff(self.first_item))

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Cut what has one entry an item, (M, ...), into rows."""
        return np.split(values, self.first_item[1:-1]) if len(self.first_item) > 1 else []


def lay_out(rows: Sequence[EncodedRow]) -> Layout:
    """Lay rows out: their windows in one list, their items in one count."""
    num_items = [sum(len(window.items) for window in row) for row in rows]
    first_item = np.concatenate([[0], np.cumsum(num_items)]).astype(np.int64)
    return Layout(
        windows=[window for row in rows for window in row],
        items=[start + window.items for start, row in zip(first_item[:-1], rows, strict=True) for window in row],
        row_of_window=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        first_item=first_item,
    )


def item_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> torch.Tensor:
    """Give each item's loss in nats, (M,): cross-entropy, times (1 - p)^gamma with p the label's probability.

    The factor makes what is predicted well count less (focal loss, Lin et al. 2017, section 3, https://arxiv.org/abs/1708.02002).

    Args:
        logits: (M, C).
        labels: Class ids, (M,).
        label_smoothing: Share of a label's weight spread over all classes.
        focal_gamma: 0 = plain cross-entropy.
    """
    losses = functional.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
    if not focal_gamma:
        return losses
    right = functional.softmax(logits.float(), dim=-1).gather(1, labels[:, None])[:, 0]
    # At p = 1 the slope of (1 - p)^gamma is infinite for gamma below 1.
    return losses * (1 - right).clamp(min=1e-6) ** focal_gamma


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    """Give class probabilities (M, C) float32 from logits (M, C)."""
    return torch.softmax(torch.from_numpy(logits).float(), dim=-1).numpy()
