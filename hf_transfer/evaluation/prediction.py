"""THE prediction loop: rows in, logits of their items out in the same order, on any number of processes, with or without references."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hf_transfer.data.ahead import make_ahead
from hf_transfer.data.batches import cut, deal
from hf_transfer.models.cpu_kernels import cpu_kernels
from hf_transfer.models.sharding import is_sharded, reshard
from hf_transfer.tasks.items import Layout, Window

Collate = Callable[[Sequence[Window]], dict[str, torch.Tensor]]
Made = TypeVar("Made")
ItemLogits = Callable[[torch.Tensor, Sequence[Window]], torch.Tensor]


def run_windows(
    run: Callable[[dict[str, torch.Tensor]], Made],
    windows: Sequence[Window],
    collate: Collate,
    max_tokens: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    num_workers: int = 0,
    fillers: Sequence[Window] | None = None,
) -> Generator[tuple[np.ndarray, Made]]:
    """Run windows through a function without gradients, in micro-batches of like lengths, the longest first.

    To be closed where it may be left before its end: gradients are off and precision is set for as long as it is open.

    Args:
        run: Forward arguments on the device -> what comes out.
        windows: (W,).
        collate: Windows -> forward arguments.
        max_tokens: Padded tokens a micro-batch may hold.
        device: Of the model.
        autocast: Precision.
        num_workers: Processes that read the input ahead.
        fillers: Windows that are run behind them one by one, of which nothing is given: of a sharded model, which all processes run
            equally often; None = of a model that is not.

    Yields:
        Positions of the micro-batch's windows, and what came out.
    """
    pieces = cut(np.array([window.cost for window in windows], dtype=np.int64), max_tokens)

    more = fillers or []

    def read(index: int) -> dict[str, torch.Tensor]:
        return collate([windows[position] for position in pieces[index]] if index < len(pieces) else [more[index - len(pieces)]])

    # What a sharded model gathers into is used by the next training, too, and so must not be made under inference mode.
    without_gradients = torch.inference_mode() if fillers is None else torch.no_grad()
    ahead = make_ahead(read, len(pieces) + len(more), num_workers)
    with without_gradients, autocast, cpu_kernels(device), closing(ahead) as made:
        for index, arguments in enumerate(made):
            output = run({name: send(tensor, device) for name, tensor in arguments.items()})
            if index < len(pieces):
                yield pieces[index], output


def predict_logits(
    model: nn.Module,
    layout: Layout,
    collate: Collate,
    item_logits: ItemLogits,
    max_tokens: int,
    accelerator: Accelerator | None = None,
    num_workers: int = 0,
    autocast: AbstractContextManager[Any] | None = None,
    advance: Callable[[float], object] | None = None,
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
        autocast: The precision to compute in; None = the accelerator's, or without one the model's own.
        advance: Told after each micro-batch which share of the windows (of this process) it held.

    Returns:
        Logits, (M, C) float32, in the order of the rows' items.
    """
    lengths = layout.lengths
    num_processes, process = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    shares = deal(lengths, num_processes)
    share = shares[process]
    device = accelerator.device if accelerator else next(model.parameters()).device
    if autocast is None:
        autocast = accelerator.autocast() if accelerator else nullcontext()
    windows = [layout.windows[position] for position in share]
    fillers = None
    if is_sharded(model):
        counts = [len(cut(lengths[dealt], max_tokens)) for dealt in shares]
        fillers = [layout.windows[int(lengths.argmin())]] * (max(counts) - counts[process])
    model.eval()
    items: list[np.ndarray] = []
    outputs: list[torch.Tensor] = []
    ran = run_windows(lambda arguments: model(**arguments).logits, windows, collate, max_tokens, device, autocast, num_workers, fillers)
    with closing(ran):
        for positions, output in ran:
            outputs.append(item_logits(output, [windows[position] for position in positions]).float())
            items.append(np.concatenate([layout.items[share[position]] for position in positions]))
            if advance is not None:
                advance(len(positions) / len(share))
    reshard(model)
    # Fetched at the end: a GPU would wait for each micro-batch to arrive here before it begins the next.
    parts = [(np.concatenate(items), torch.cat(outputs).cpu().numpy())] if outputs else []
    if num_processes > 1:
        parts = gather_object(parts)
    num_classes = parts[0][1].shape[1] if parts else getattr(model.config, "num_labels", 0)
    all_logits = np.empty((layout.num_items, num_classes), dtype=np.float32)
    counted = np.zeros(layout.num_items, dtype=np.int64)
    for places, logits in parts:
        all_logits[places] = logits
        np.add.at(counted, places, 1)
    assert (counted == 1).all(), "every item is predicted exactly once"
    return all_logits


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Bring a tensor to a device; from pinned memory a GPU copies while it computes."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
