"""The update plan: which rows make which update, on which process, in which micro-batches; a pure function of (seed, epoch, update).

So the trajectory is that of the plain shuffled loop, whatever the token budget and the number of processes, almost nothing is padding,
and a run resumes from a seed and an update number.
"""

import functools
import sys
from dataclasses import dataclass, field

import numpy as np

from hf_transfer.data.batches import cut, deal


@dataclass(frozen=True)
class MicroBatch:
    """Windows of one forward and backward."""

    windows: np.ndarray
    """(B,) positions among the training rows' windows."""
    is_filler: bool = False
    """Forwarded with weight 0, because another process has one micro-batch more."""


@dataclass(frozen=True)
class UpdatePlan:
    """Rows of every update of one training. A row is one window; a long document of words is several, all in the same update."""

    lengths: np.ndarray
    """(W,) tokens of each window."""
    weights: np.ndarray
    """(W,) float64: what each window's items count in the loss together."""
    batch_size: int
    """Rows per update, over all processes."""
    num_epochs: int
    max_tokens: int | None
    """Padded tokens a micro-batch may hold; None = each process's share of an update is one."""
    seed: int
    num_processes: int = 1
    row_of_window: np.ndarray | None = None
    """(W,) rising row positions; None = every window is a row."""
    least_rows: int = 1
    """Rows an update has at least; what an epoch leaves below that joins the update before."""
    balance: np.ndarray | None = None
    """(N,) class of each row: an epoch then draws all classes alike; None = an epoch is every row once."""
    _drawn: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The rows of the epoch asked for last, in order."""

    @functools.cached_property
    def _first_window(self) -> np.ndarray:
        """The windows of row i are `_first_window[i]` up to `_first_window[i + 1]`, (N + 1,)."""
        if self.row_of_window is None:
            return np.arange(len(self.lengths) + 1)
        return np.searchsorted(self.row_of_window, np.arange(self.row_of_window[-1] + 2))

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self._first_window) - 1

    @property
    def updates_per_epoch(self) -> int:
        """Updates that hold an epoch's rows; the last may hold fewer, or a few more."""
        whole, rest = divmod(self.num_rows, self.batch_size)
        return max(1, whole + (rest >= self.least_rows))

    @property
    def num_updates(self) -> int:
        """Updates of all epochs."""
        return self.updates_per_epoch * self.num_epochs

    def epoch_of(self, update: int) -> int:
        """Give the epoch, from 0, that an update (from 0) belongs to."""
        return update // self.updates_per_epoch

    def rows_of(self, update: int) -> np.ndarray:
        """Give the rows of an update over all processes, in the order of the epoch's draw."""
        epoch, place = divmod(update, self.updates_per_epoch)
        end = None if place == self.updates_per_epoch - 1 else (place + 1) * self.batch_size
        return self._epoch_rows(epoch)[place * self.batch_size : end]

    def windows_of(self, update: int) -> np.ndarray:
        """Give the windows of an update over all processes."""
        return np.concatenate([np.arange(self._first_window[row], self._first_window[row + 1]) for row in self.rows_of(update)])

    def weight_of(self, update: int) -> float:
        """Give the sum of weights over the update's items: what its summed loss is divided by."""
        return float(self.weights[self.windows_of(update)].sum(dtype=np.float64))

    def micro_batches(self, update: int, process: int) -> list[MicroBatch]:
        """Give one process's micro-batches of an update, longest windows first.

        Windows are dealt to the processes first, balanced by tokens, then cut. Every process gets the same number; one that runs short
        forwards a real window with weight 0 (without it DDP desynchronises silently, and FSDP2 blocks).
        """
        windows = self.windows_of(update)
        shares = [windows[positions] for positions in deal(self.lengths[windows], self.num_processes)]
        max_tokens = sys.maxsize if self.max_tokens is None else self.max_tokens
        pieces = [[share[piece] for piece in cut(self.lengths[share], max_tokens)] for share in shares]
        shortest = windows[[np.argmin(self.lengths[windows])]]
        num_fillers = max(map(len, pieces)) - len(pieces[process])
        return [MicroBatch(piece) for piece in pieces[process]] + [MicroBatch(shortest, is_filler=True)] * num_fillers

    def partners_of(self, update: int) -> dict[int, int]:
        """Give, for each window of an update, the one it may be mixed with: a seeded permutation of the update's windows."""
        windows = self.windows_of(update)
        return dict(zip(windows.tolist(), np.random.default_rng([self.seed, 4, update]).permutation(windows).tolist(), strict=True))

    def dropout_seed(self, update: int, micro_batch: MicroBatch) -> int:
        """Give the seed torch is set to before a micro-batch: by update and first window, so dropout needs no saved generator."""
        sequence = np.random.SeedSequence([self.seed, 2, update, int(micro_batch.windows.min())])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _epoch_rows(self, epoch: int) -> np.ndarray:
        if epoch not in self._drawn:
            self._drawn.clear()
            rng = np.random.default_rng([self.seed, 1, epoch])
            rows = np.arange(self.num_rows) if self.balance is None else _draw_alike(self.balance, rng)
            self._drawn[epoch] = rows[rng.permutation(len(rows))]
        return self._drawn[epoch]


def _draw_alike(classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many rows as there are, each class the same number (but one, where that does not come out even).

    A class with too few rows gives each of them as often as any other (but one), one with too many gives some of them, another lot each
    epoch: random oversampling and undersampling (Japkowicz & Stephen 2002, https://doi.org/10.3233/IDA-2002-6504).

    Args:
        classes: Class of each row, (N,).
        rng: Draws them.

    Returns:
        Row positions, (N,).
    """
    found = rng.permutation(np.unique(classes))
    quotas = len(classes) // len(found) + (np.arange(len(found)) < len(classes) % len(found))
    drawn = []
    for name, quota in zip(found, quotas, strict=True):
        members = np.flatnonzero(classes == name)
        rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
        drawn.append(np.concatenate(rounds)[:quota])
    return np.concatenate(drawn)
