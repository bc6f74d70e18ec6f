"""The memory a training takes, from what the arm's own model keeps for its backward: no formula an architecture, no trial on the device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

# Bytes AdamW and SGD with momentum keep a trainable parameter, in fp32.
OPTIMIZER_BYTES = {"adamw": 8, "sgd": 4}
TRANSIENT_TENSORS = 3
"""How many of the largest activation a backward holds at once beside what was kept (gradients of inputs and outputs, a cast)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training on one device."""

    weights: int
    """fp32 weights, and their copies in the precision of autocast."""
    gradients: int
    optimizer: int
    activations_per_row: int
    """What one row of `row_tokens` tokens keeps for the backward, and what passes through."""
    row_tokens: int

    def total(self, micro_batch_tokens: int, max_rows: int | None = None) -> int:
        """Give the bytes of an update whose micro-batches hold that many padded tokens (a longer row stands alone) and rows at most."""
        rows = max(1, micro_batch_tokens // self.row_tokens)
        rows = rows if max_rows is None else min(rows, max_rows)
        return self.weights + self.gradients + self.optimizer + rows * self.activations_per_row


def estimate_memory(
    model: nn.Module, loss_of: Callable[[int], torch.Tensor], row_tokens: int, optimizer: str, on_gpu: bool
) -> MemoryEstimate:
    """Estimate from two forwards, of two rows and of three: what grows is activations, what stays is copies of weights.

    Args:
        model: Of the arm on the CPU, what trains marked and in its training mode.
        loss_of: Number of equal rows -> loss, under the precision that will be trained in.
        row_tokens: Tokens of each of those rows.
        optimizer: "adamw" or "sgd".
        on_gpu: Attention with dropout keeps no probabilities there, and dropout keeps a byte an element.
    """
    with _as_on_gpu(model) if on_gpu else _as_is() as dropped:
        # A batch norm that trains takes two rows at least.
        kept, largest = zip(*(_kept_bytes(model, loss_of, num_rows, dropped) for num_rows in (2, 3)), strict=True)
    per_row = kept[1] - kept[0]
    total, trainable = (sum(p.numel() for p in model.parameters() if p.requires_grad or not only) for only in (False, True))
    return MemoryEstimate(
        weights=4 * total + max(0, kept[0] - 2 * per_row),
        gradients=4 * trainable,
        optimizer=OPTIMIZER_BYTES[optimizer] * trainable,
        activations_per_row=per_row + TRANSIENT_TENSORS * (largest[1] - largest[0]),
        row_tokens=row_tokens,
    )


def _kept_bytes(model: nn.Module, loss_of: Callable[[int], torch.Tensor], num_rows: int, dropped: list[int]) -> tuple[int, int]:
    """Give the bytes a forward of `num_rows` keeps for its backward, parameters aside, and those of its largest activation."""
    known = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive = []
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            # An address must not be used again while we count.
            alive.append(tensor)
        return tensor

    def look(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.untyped_storage().nbytes())

    hooks = [module.register_forward_hook(look) for module in model.modules() if not list(module.children())]
    dropped.clear()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_of(num_rows)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(kept.values()) + sum(dropped), largest


@contextmanager
def _as_is() -> Iterator[list[int]]:
    yield []


@contextmanager
def _as_on_gpu(model: nn.Module) -> Iterator[list[int]]:
    """While the block runs, drop nothing, which lets attention take its fast path on a CPU too, and list what masks would take."""
    modes = {module: module.training for module in model.modules()}
    dropped: list[int] = []

    def count(module: nn.Dropout, arguments: object, output: torch.Tensor) -> None:
        if modes[module] and module.p > 0 and output.requires_grad:
            dropped.append(output.numel())

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Dropout)]
    model.eval()
    try:
        yield dropped
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
