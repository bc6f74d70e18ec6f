"""The update plan: which rows make which update, on which process, in which micro-batches; a pure function of (seed, epoch, update).

So the trajectory is that of the plain shuffled loop, whatever the token budget and the number of processes, almost nothing is padding,
and a run resumes from a seed and an update number.
"""

import functools
from dataclasses import dataclass

import numpy as np

from hf_transfer.data.batches import cut, deal


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward."""

    rows: np.ndarray
    """(B,) positions in the training rows."""
    weights: np.ndarray
    """(B,) float32: what each row's loss counts; 0 in a filler."""


@dataclass(frozen=True)
class UpdatePlan:
    """Rows of every update of one training."""

    lengths: np.ndarray
    """(N,) tokens of each training row."""
    weights: np.ndarray
    """(N,) float32: what each row's loss counts."""
    batch_size: int
    """Rows per update, over all processes."""
    num_epochs: int
    max_tokens: int
    """Padded tokens a micro-batch may hold."""
    seed: int
    num_processes: int = 1

    @property
    def updates_per_epoch(self) -> int:
        """Updates that cover every row once; the last may hold fewer rows."""
        return -(-len(self.lengths) // self.batch_size)

    @property
    def num_updates(self) -> int:
        """Updates of all epochs."""
        return self.updates_per_epoch * self.num_epochs

    def epoch_of(self, update: int) -> int:
        """Give the epoch, from 0, that an update (from 0) belongs to."""
        return update // self.updates_per_epoch

    def rows_of(self, update: int) -> np.ndarray:
        """Give the rows of an update over all processes, in the order of the epoch's shuffle."""
        epoch, place = divmod(update, self.updates_per_epoch)
        order = _epoch_order(self.seed, epoch, len(self.lengths))
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def weight_of(self, update: int) -> float:
        """Give the sum of weights over the update's rows: what its summed loss is divided by."""
        return float(self.weights[self.rows_of(update)].sum(dtype=np.float64))

    def micro_batches(self, update: int, process: int) -> list[MicroBatch]:
        """Give one process's micro-batches of an update, longest rows first.

        Rows are dealt to the processes first, balanced by tokens, then cut. Every process gets the same number; one that runs short
        forwards a real row with weight 0 (without it DDP desynchronises silently, and FSDP2 blocks).
        """
        rows = self.rows_of(update)
        shares = [rows[positions] for positions in deal(self.lengths[rows], self.num_processes)]
        pieces = [[share[piece] for piece in cut(self.lengths[share], self.max_tokens)] for share in shares]
        shortest = rows[[np.argmin(self.lengths[rows])]]
        num_fillers = max(map(len, pieces)) - len(pieces[process])
        return [MicroBatch(piece, self.weights[piece]) for piece in pieces[process]] + [
            MicroBatch(shortest, np.zeros(1, dtype=np.float32)) for _ in range(num_fillers)
        ]

    def dropout_seed(self, update: int, micro_batch: MicroBatch) -> int:
        """Give the seed torch is set to before a micro-batch: by update and smallest row, so dropout needs no saved generator."""
        sequence = np.random.SeedSequence([self.seed, 2, update, int(micro_batch.rows.min())])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(num_rows)
