"""What the updates of a training are made of, read for one process: tensors of each micro-batch, as the plan cuts them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_transfer.data.ahead import make_ahead
from hf_transfer.evaluation.prediction import Collate, ItemLogits
from hf_transfer.tasks.items import Draw, Layout
from hf_transfer.training.plan import MicroBatch, UpdatePlan

STREAM = 5
"""Sets an image's random numbers apart from those of the plan, which begin with (seed, another number)."""
Augment = Callable[[Sequence[Draw], Sequence[Draw]], tuple[dict[str, torch.Tensor], np.ndarray]]


@dataclass(frozen=True)
class Batches:
    """What the windows of a training are made of."""

    layout: Layout
    labels: np.ndarray
    """Class ids of all items, (M,) int64."""
    weights: np.ndarray
    """(M,) float32: what each item's loss counts."""
    collate: Collate
    item_logits: ItemLogits
    row_ids: np.ndarray
    """(B,) int64: what a row is called in the data, which its augmentation is drawn from."""
    augment: Augment | None = None
    """Reads windows at random, with the partners they are mixed with; None = `collate` reads them."""
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    unit: str = "tokens"
    """What a window's cost is counted in, for a person to read."""


@dataclass(frozen=True)
class Read:
    """A micro-batch as the loop takes it."""

    micro_batch: MicroBatch
    arguments: dict[str, torch.Tensor]
    labels: torch.Tensor
    """(K,) class ids of its items."""
    weights: torch.Tensor
    """(K,)."""
    partners: torch.Tensor | None = None
    """(K,) class ids of what the items were mixed with; None = nothing was."""
    shares: torch.Tensor | None = None
    """(K,) what its own label counts of a mixed item; the rest is its partner's."""


class UpdateReader:
    """Reads the updates of one process in order, ahead of the loop."""

    def __init__(self, plan: UpdatePlan, batches: Batches, process: int, num_workers: int = 0, first: int = 0) -> None:
        """Begin with an update.

        Args:
            plan: Which rows make which update.
            batches: What its windows are made of.
            process: Whose share is read.
            num_workers: Processes that read ahead; 0 = none.
            first: The update, from 0.
        """
        self._batches, self._process, self._num_workers = batches, process, num_workers
        self._begin(plan, first)

    def restart(self, plan: UpdatePlan) -> None:
        """Read the update that was asked for last once more, and those behind it, by another plan."""
        self.close()
        self._begin(plan, self._next - 1)

    def _begin(self, plan: UpdatePlan, first: int) -> None:
        self._next = first
        self._reads = make_ahead(
            lambda index: read_update(first + index, plan, self._batches, self._process), plan.num_updates - first, self._num_workers
        )

    def read(self, update: int) -> list[Read]:
        """Give the micro-batches of the next update."""
        assert update == self._next, "updates are read in order"
        self._next += 1
        return next(self._reads)

    def close(self) -> None:
        """Stop the processes that read ahead."""
        self._reads.close()


def read_update(update: int, plan: UpdatePlan, batches: Batches, process: int) -> list[Read]:
    """Read one process's micro-batches of an update."""
    partner_of = {} if batches.augment is None else plan.partners_of(update)
    return [_read(update, micro_batch, plan, batches, partner_of) for micro_batch in plan.micro_batches(update, process)]


def _read(update: int, micro_batch: MicroBatch, plan: UpdatePlan, batches: Batches, partner_of: dict[int, int]) -> Read:
    layout = batches.layout
    items = np.concatenate([layout.items[window] for window in micro_batch.windows])
    labels, weights = torch.from_numpy(batches.labels[items]), torch.from_numpy(batches.weights[items])
    if batches.augment is None:
        return Read(micro_batch, batches.collate([layout.windows[window] for window in micro_batch.windows]), labels, weights)
    partners = [partner_of[window] for window in micro_batch.windows]
    own, others = ([_draw(update, window, plan, batches) for window in windows] for windows in (micro_batch.windows, partners))
    arguments, shares = batches.augment(own, others)
    if (shares == 1).all():
        return Read(micro_batch, arguments, labels, weights)
    other_items = np.concatenate([layout.items[window] for window in partners])
    return Read(micro_batch, arguments, labels, weights, torch.from_numpy(batches.labels[other_items]), torch.from_numpy(shares))


def _draw(update: int, window: int, plan: UpdatePlan, batches: Batches) -> Draw:
    row = int(batches.layout.row_of_window[window])
    return Draw(batches.layout.windows[window], (plan.seed, STREAM, plan.epoch_of(update), int(batches.row_ids[row])))
