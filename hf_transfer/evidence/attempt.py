"""One cell of a grid tried: what its training cannot do is written down, and the grid goes on."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size

from hf_transfer.disk import empty_folder, make_folder, write_json
from hf_transfer.errors import DivergedError, SharedTrainingError, TrainingError, first_line
from hf_transfer.evidence.cell import run_cell, title_of
from hf_transfer.evidence.study import Study
from hf_transfer.files import FAILURE_FILE, MODEL_FOLDER, STATE_FOLDER, cell_folder
from hf_transfer.recipe import Arm
from hf_transfer.run_settings import Budget


@dataclass(frozen=True)
class PlannedCell:
    """A cell to train."""

    arm_name: str
    arm: Arm
    """Its settings: the recipe's, or those that a search chose."""
    budget: Budget
    seed: int

    def folder(self, run_folder: Path) -> Path:
        """Give the folder it is written to."""
        return cell_folder(run_folder, self.arm_name, self.budget, self.seed)

    def __str__(self) -> str:
        return f"{self.arm_name}, budget {self.budget}, seed {self.seed}"


@contextmanager
def quick_collections() -> Iterator[None]:
    """While the block runs, let the garbage collector pass over all that was there before it.

    It looks for a trained model after each cell, and would walk through every library and row: 0.5 s of a head cell's 1.7 (MiniLM, 384
    rows, one thread of an AMD EPYC, 2026-11-21).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def attempt_cell(study: Study, cell: PlannedCell, run_folder: Path, tracker: str | None = None) -> str | None:
    """Train a cell into its folder; where its training cannot go on, write down why.

    Args:
        study: What the cells share.
        cell: Which one.
        run_folder: That its folder lies in.
        tracker: What the training is logged to, None = nothing.

    Returns:
        Why it failed, the same on every process; None where it did not.

    Raises:
        TrainingError: One of several processes cannot go on, and the others do not know.
    """
    accelerator = study.accelerator
    try:
        run_cell(study, cell.arm_name, cell.arm, cell.budget, cell.seed, cell.folder(run_folder), tracker)
        return None
    except (MemoryError, RuntimeError) as error:
        why = why_lost(error, accelerator.num_processes)
        if why is None:
            raise
        failure = why.removeprefix(f"{title_of(cell.arm_name, cell.budget, cell.seed)}: ")
        # It would diverge again from its state, while what wants memory, or was killed, may go on from there.
        kept = MODEL_FOLDER if isinstance(error, DivergedError) else STATE_FOLDER
        if isinstance(error, DivergedError) and error.best is not None:
            failure += (
                f"; its best state (epoch {error.best['epoch']}, validation loss {error.best['validation_loss']:.3f}) is kept as a model"
            )
    # The failed model is only freed now that the error, which holds its frames, is gone.
    gc.collect()
    accelerator.free_memory()
    if accelerator.is_main_process:
        write_failure(cell, failure, run_folder, kept)
    accelerator.wait_for_everyone()
    return failure


def why_lost(error: MemoryError | RuntimeError, num_processes: int) -> str | None:
    """Give why a training cannot go on where other trainings of the run can; None where they cannot.

    That is a bug, or one of several processes that is lost while the others wait for it.
    """
    is_alone = num_processes == 1
    if isinstance(error, TrainingError):
        return str(error) if is_alone or isinstance(error, SharedTrainingError) else None
    if is_alone and (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
        return (
            f"memory does not suffice ({first_line(error)}): take shorter rows (--max-length), a smaller checkpoint, arm lora or "
            "head, or --activation-checkpointing"
        )
    return None


def write_failure(cell: PlannedCell, error: str, run_folder: Path, kept: str = STATE_FOLDER) -> None:
    """Write a cell's `failure.json`, in the place of what there may be of it but the folder `kept`."""
    folder = cell.folder(run_folder)
    if folder.is_dir():
        empty_folder(folder, keep=[kept])
    make_folder(folder)
    write_json(folder / FAILURE_FILE, describe_failure(cell, error))


def describe_failure(cell: PlannedCell, error: str) -> dict[str, Any]:
    """Give what `failure.json` holds, and an entry of `failed` in `comparison.json`."""
    return {"arm": cell.arm_name, "budget": cell.budget, "seed": cell.seed, "error": error}
