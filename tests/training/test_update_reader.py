"""Updates read ahead: what `read_update` gives, in order, whoever reads and whenever the plan changes."""

import multiprocessing
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hf_transfer.data.batches import pad
from hf_transfer.tasks.items import TextWindow, lay_out
from hf_transfer.training.batches import Batches, Read, UpdateReader, read_update
from hf_transfer.training.plan import UpdatePlan

NUM_UPDATES = 12
SIZES = [200, 40, 20, 10]
"""Padded tokens of a micro-batch, by the restarts there were."""


def collate(windows: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.from_numpy(pad([window.ids for window in windows], 0)[0])}


def augment(own: Any, others: Any) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Draw a number a window from its key and its partner's, and mix every second one."""
    drawn = [[np.random.default_rng(draw.key).random() for draw in draws] for draws in (own, others)]
    return {"numbers": torch.tensor(drawn)}, np.array([1.0 if place % 2 else 0.5 for place in range(len(own))], dtype=np.float32)


def lay(is_augmented: bool, num_processes: int) -> tuple[UpdatePlan, Batches]:
    rng = np.random.default_rng(2)
    windows = [TextWindow(rng.integers(1, 50, rng.integers(3, 20)).astype(np.int32), items=np.zeros(1, dtype=np.int64)) for _ in range(24)]
    layout, weights = lay_out([(window,) for window in windows]), rng.random(24)
    plan = UpdatePlan(layout.lengths, weights, batch_size=6, num_epochs=3, max_tokens=SIZES[0], seed=1, num_processes=num_processes)
    augmentation = augment if is_augmented else None
    labels = rng.integers(0, 4, 24)
    return plan, Batches(layout, labels, weights.astype(np.float32), collate, lambda logits, _: logits, np.arange(24), augmentation)


def content(reads: list[Read]) -> list[Any]:
    """Give all that reads hold, comparable."""

    def plain(tensor: torch.Tensor | None) -> Any:
        return None if tensor is None else (str(tensor.dtype), tensor.tolist())

    return [
        (
            read.micro_batch.windows.tolist(),
            read.micro_batch.is_filler,
            {name: plain(tensor) for name, tensor in read.arguments.items()},
            *map(plain, (read.labels, read.weights, read.partners, read.shares)),
        )
        for read in reads
    ]


@pytest.mark.parametrize(("is_augmented", "num_processes"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("restarts", [[], [0], [0, 0, 5], [5, 6], [NUM_UPDATES - 1]])
def test_a_reader_gives_every_update_as_read_alone(is_augmented: bool, num_processes: int, num_workers: int, restarts: list[int]) -> None:
    plan, batches = lay(is_augmented, num_processes)
    assert plan.num_updates == NUM_UPDATES
    process = num_processes - 1
    sizes = iter(SIZES[1:])
    with closing(UpdateReader(plan, batches, process, num_workers)) as reader:
        for update in range(NUM_UPDATES):
            assert content(reader.read(update)) == content(read_update(update, plan, batches, process))
            for _ in range(restarts.count(update)):
                plan = replace(plan, max_tokens=next(sizes))
                reader.restart(plan)
                assert content(reader.read(update)) == content(read_update(update, plan, batches, process))
    assert multiprocessing.active_children() == []


def test_a_restart_cuts_by_the_new_plan() -> None:
    plan, batches = lay(False, 1)
    reader = UpdateReader(plan, batches, 0)
    assert len(reader.read(0)) == 1
    reader.restart(replace(plan, max_tokens=1))
    assert [len(reader.read(update)) for update in range(3)] == [6, 6, 6]


def test_closing_and_restarting_stop_the_workers() -> None:
    plan, batches = lay(False, 1)
    assert multiprocessing.active_children() == []
    reader = UpdateReader(plan, batches, 0, num_workers=2)
    reader.read(0)
    first = {child.pid for child in multiprocessing.active_children()}
    assert len(first) == 2
    reader.restart(plan)
    reader.read(0)
    second = {child.pid for child in multiprocessing.active_children()}
    assert len(second) == 2 and not first & second, "those of the former plan are gone"
    reader.close()
    assert multiprocessing.active_children() == []


def test_updates_are_read_in_order() -> None:
    plan, batches = lay(False, 1)
    reader = UpdateReader(plan, batches, 0)
    with pytest.raises(AssertionError, match="in order"):
        reader.read(1)
