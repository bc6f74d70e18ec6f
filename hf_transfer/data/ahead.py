"""Input made ahead of time, by worker processes, in order."""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hf_transfer.errors import TrainingError, TransferError, first_line

GRACE_SECONDS = 10
"""How long a worker outlives a SIGTERM: batch systems send one to every process of a job."""
REMEDY = "set training.num_workers=0, or give the machine more shared memory (in a container: --shm-size)"


class _Made(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        try:
            made = self._make(index)
            _share(made)
            return made
        except TransferError as error:
            # Given back, not raised: torch would put the worker's traceback into its sentence.
            return error


def _outlive_signals(worker: int) -> None:
    """In a worker: serve what is being done when all processes are told to end; the one that asked ends it, or a clock does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))


def make_ahead(make: Callable[[int], Any], count: int, num_workers: int) -> Generator[Any]:
    """Yield `make(0)` up to `make(count - 1)`, in order; what comes does not depend on the number of workers.

    Args:
        make: A pure function; its results are tensors and plain values, which pass from process to process.
        count: How many.
        num_workers: Processes that stay two results ahead each; 0 makes each when it is asked for.

    Raises:
        TrainingError: A worker was killed, or shared memory is full; seconds after, when the next result is asked for.
    """
    # Forked workers share the data's memory, which would have to be pickled for each of them elsewhere.
    can_fork = sys.platform == "linux"
    # A few are made sooner than a process starts.
    if num_workers == 0 or count <= 2 * num_workers or not can_fork:
        yield from map(make, range(count))
        return
    loader = DataLoader(
        _Made(make, count),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="fork",
        # Its own, or it would draw from the global generator, which dropout uses.
        generator=torch.Generator(),
        worker_init_fn=_outlive_signals,
    )
    try:
        for made in _begun(loader):
            if isinstance(made, TransferError):
                raise made
            yield made
    except RuntimeError as error:
        if not ("killed by signal" in str(error) or "exited unexpectedly" in str(error)):
            raise
        raise TrainingError(f"a process that reads input ahead was killed ({first_line(error)}): {REMEDY}") from error


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start a loader's workers, and put back what a child's death calls.

    Torch's handler would raise wherever we are just then, in an update, or in a write. Without it a death is found when a result is asked
    for, after the 5 s that torch waits for one.
    """
    before = signal.getsignal(signal.SIGCHLD)
    results = iter(loader)
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return results


def _share(made: Any) -> None:
    """Move the tensors in a result to shared memory, which they are sent through.

    Left to the thread that sends them, a full one would be an error that nobody hears of, and the result would be waited for for ever.

    Raises:
        TrainingError: There is no room.
    """
    if isinstance(made, torch.Tensor):
        try:
            made.share_memory_()
        except RuntimeError as error:
            raise TrainingError(f"shared memory does not suffice to read input ahead ({first_line(error)}): {REMEDY}") from error
        return
    inner = made if isinstance(made, Mapping) else getattr(made, "__dict__", {})
    for part in made if isinstance(made, (list, tuple)) else inner.values():
        _share(part)
