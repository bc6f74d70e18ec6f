"""THE prediction loop: rows in, logits out in the same order, on any number of processes, with or without references."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hf_transfer.data.batches import cut, deal

Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]


def predict_logits(
    model: nn.Module,
    rows: Sequence[np.ndarray],
    collate: Collate,
    max_tokens: int,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """Run a model over rows, each exactly once, cut into micro-batches of like lengths.

    Args:
        model: Unwrapped model; put into eval mode.
        rows: Encoded rows, each (L_i,).
        collate: Rows -> forward arguments.
        max_tokens: Padded tokens a micro-batch may hold.
        accelerator: Shares the rows among its processes; every process gets all logits. None = this process alone.

    Returns:
        Logits, (B, C) float32, in the order of `rows`.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    num_processes, process = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    share = deal(lengths, num_processes)[process]
    device = accelerator.device if accelerator else next(model.parameters()).device
    autocast: AbstractContextManager[Any] = accelerator.autocast() if accelerator else nullcontext()
    model.eval()
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode(), autocast:
        for piece in cut(lengths[share], max_tokens):
            positions = share[piece]
            arguments = collate([rows[position] for position in positions])
            logits = model(**{name: tensor.to(device) for name, tensor in arguments.items()}).logits
            parts.append((positions, logits.float().cpu().numpy()))
    if num_processes > 1:
        parts = gather_object(parts)
    counted = np.bincount(np.concatenate([positions for positions, _ in parts]), minlength=len(rows)) if parts else np.zeros(len(rows))
    assert len(counted) == len(rows) and (counted == 1).all(), "every row is predicted exactly once"
    logits_of_all = np.empty((len(rows), *parts[0][1].shape[1:]), dtype=np.float32)
    for positions, logits in parts:
        logits_of_all[positions] = logits
    return logits_of_all
