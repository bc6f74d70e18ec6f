"""THE prediction loop: rows in, logits of their items out in the same order, on any number of processes, with or without references."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hf_transfer.data.ahead import make_ahead
from hf_transfer.data.batches import cut, deal
from hf_transfer.models.cpu_kernels import cpu_kernels
from hf_transfer.tasks.items import Layout, Window

Collate = Callable[[Sequence[Window]], dict[str, torch.Tensor]]
ItemLogits = Callable[[torch.Tensor, Sequence[Window]], torch.Tensor]


def run_windows(
    run: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    windows: Sequence[Window],
    collate: Collate,
    max_tokens: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    num_workers: int = 0,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Run windows through a function without gradients, in micro-batches of like lengths, the longest first.

    Args:
        run: Forward arguments on the device -> what comes out.
        windows: (W,).
        collate: Windows -> forward arguments.
        max_tokens: Padded tokens a micro-batch may hold.
        device: Of the model.
        autocast: Precision.
        num_workers: Processes that read the input ahead.

    Yields:
        Positions of the micro-batch's windows, and what came out.
    """
    pieces = cut(np.array([window.cost for window in windows], dtype=np.int64), max_tokens)

    def read(index: int) -> dict[str, torch.Tensor]:
        return collate([windows[position] for position in pieces[index]])

    with torch.inference_mode(), autocast, cpu_kernels(device), closing(make_ahead(read, len(pieces), num_workers)) as made:
        for positions, arguments in zip(pieces, made, strict=True):
            yield positions, run({name: tensor.to(device, non_blocking=True) for name, tensor in arguments.items()})


def predict_logits(
    model: nn.Module,
    layout: Layout,
    collate: Collate,
    item_logits: ItemLogits,
    max_tokens: int,
    accelerator: Accelerator | None = None,
    num_workers: int = 0,
) -> np.ndarray:
    """Run a model over rows, each item exactly once, in micro-batches of windows of like lengths.

    Args:
        model: Unwrapped model; put into eval mode.
        layout: Windows of the rows.
        collate: Windows -> forward arguments.
        item_logits: The model's logits, windows -> logits of their items, (K, C).
        max_tokens: Padded tokens a micro-batch may hold.
        accelerator: Shares the windows among its processes; every process gets all logits. None = this process alone.
        num_workers: Processes that read the input ahead.

    Returns:
        Logits, (M, C) float32, in the order of the rows' items.
    """
    lengths = layout.lengths
    num_processes, process = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    share = deal(lengths, num_processes)[process]
    device = accelerator.device if accelerator else next(model.parameters()).device
    autocast: AbstractContextManager[Any] = accelerator.autocast() if accelerator else nullcontext()
    windows = [layout.windows[position] for position in share]
    model.eval()
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    ran = run_windows(lambda arguments: model(**arguments).logits, windows, collate, max_tokens, device, autocast, num_workers)
    for positions, output in ran:
        logits = item_logits(output, [windows[position] for position in positions])
        parts.append((np.concatenate([layout.items[share[position]] for position in positions]), logits.float().cpu().numpy()))
    if num_processes > 1:
        parts = gather_object(parts)
    num_classes = parts[0][1].shape[1] if parts else getattr(model.config, "num_labels", 0)
    all_logits = np.empty((layout.num_items, num_classes), dtype=np.float32)
    counted = np.zeros(layout.num_items, dtype=np.int64)
    for items, logits in parts:
        all_logits[items] = logits
        np.add.at(counted, items, 1)
    assert (counted == 1).all(), "every item is predicted exactly once"
    return all_logits
