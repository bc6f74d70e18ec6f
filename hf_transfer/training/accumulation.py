"""The gradient of one update, gathered over its micro-batches; halved ones where memory does not suffice."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from hf_transfer.errors import SharedTrainingError, TrainingError
from hf_transfer.evaluation.prediction import send
from hf_transfer.models.cpu_kernels import cpu_kernels
from hf_transfer.models.sharding import is_sharded
from hf_transfer.tasks.items import item_losses
from hf_transfer.training.batches import Batches, Read
from hf_transfer.training.plan import UpdatePlan


def accumulate(
    model: nn.Module,
    micro_batches: Sequence[Read],
    plan: UpdatePlan,
    update: int,
    batches: Batches,
    accelerator: Accelerator,
    plain_kernels: bool = False,
) -> float | None:
    """Accumulate the gradient of one update; processes are synchronised with the last micro-batch.

    Args:
        model: Prepared by `accelerator`.
        micro_batches: This process's, read.
        plan: That they come from.
        update: From 0.
        batches: What windows are made of.
        accelerator: Device, processes and precision.
        plain_kernels: Leave dropout and attention on a CPU to torch.

    Returns:
        The update's loss over all processes; None where memory did not suffice in one of them, and gradients are of no use.

    Raises:
        TrainingError: Out of memory while several processes share their gradients.
    """
    # DDP averages gradients over the processes, the update's loss is a sum over them.
    scale = accelerator.num_processes / plan.weight_of(update)
    total = torch.zeros((), device=accelerator.device)

    def forward(read: Read) -> torch.Tensor:
        losses = _losses_of(model, read, plan, update, batches, accelerator, plain_kernels)
        loss = (losses * send(read.weights, accelerator.device)).sum() * (0.0 if read.micro_batch.is_filler else scale)
        total.add_(loss.detach())
        return loss

    def unsynchronised() -> None:
        with accelerator.no_sync(model):
            for read in micro_batches[:-1]:
                accelerator.backward(forward(read))

    last: list[torch.Tensor] = []
    # The longest rows come first. The last micro-batch waits for the other processes, so all must know of each other before it: before
    # its forward, where buffers are shared, and before its backward, where gradients are. What is sharded is gathered by all in each.
    can_step_back = not is_sharded(model)
    fits = (
        _fits(unsynchronised, accelerator, agree=can_step_back and len(micro_batches) > 1)
        and _fits(lambda: last.append(forward(micro_batches[-1])), accelerator, agree=can_step_back)
        and _fits(lambda: accelerator.backward(last.pop()), accelerator, agree=False)
    )
    return float(accelerator.reduce(total, reduction="mean")) if fits else None


def _losses_of(
    model: nn.Module,
    read: Read,
    plan: UpdatePlan,
    update: int,
    batches: Batches,
    accelerator: Accelerator,
    plain_kernels: bool,
) -> torch.Tensor:
    """Give the loss of each item of a micro-batch, (K,), with the dropout masks that are its own."""
    seed = plan.dropout_seed(update, read.micro_batch)
    torch.manual_seed(seed)
    windows = [batches.layout.windows[window] for window in read.micro_batch.windows]
    arguments = {name: send(tensor, accelerator.device) for name, tensor in read.arguments.items()}
    labels = send(read.labels, accelerator.device)
    with nullcontext() if plain_kernels else cpu_kernels(accelerator.device, seed):
        with accelerator.autocast() if is_sharded(model) else nullcontext():
            output = model(**arguments).logits
        logits = batches.item_logits(output, windows)
    losses = item_losses(logits, labels, batches.label_smoothing, batches.focal_gamma)
    if read.partners is None or read.shares is None:
        return losses
    partners, shares = send(read.partners, accelerator.device), send(read.shares, accelerator.device)
    return shares * losses + (1 - shares) * item_losses(logits, partners, batches.label_smoothing, batches.focal_gamma)


def rows_without_loss(
    model: nn.Module,
    micro_batches: Sequence[Read],
    plan: UpdatePlan,
    update: int,
    batches: Batches,
    accelerator: Accelerator,
    plain_kernels: bool = False,
) -> list[int]:
    """Find the rows of an update whose loss is no finite number, by computing it once more; arguments as of `accumulate`.

    Returns:
        Their ids, over all processes, in rising order.
    """
    found: set[int] = set()
    for read in micro_batches:
        with torch.no_grad():
            losses = _losses_of(model, read, plan, update, batches, accelerator, plain_kernels)
        items = [window for window in read.micro_batch.windows for _ in batches.layout.items[window]]
        lost = (~losses.isfinite()).cpu().numpy()
        found |= {int(batches.row_ids[batches.layout.row_of_window[window]]) for window in np.array(items)[lost]}
    return sorted({row for rows in gather_object([sorted(found)]) for row in rows})


def _fits(do: Callable[[], object], accelerator: Accelerator, agree: bool = True) -> bool:
    """Do something, and say whether memory sufficed for it, in all processes where they are to agree.

    Raises:
        TrainingError: It did not, in a step of several processes that cannot be undone.
    """
    fit = True
    try:
        do()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        if accelerator.num_processes > 1 and not agree:
            raise TrainingError(
                "memory does not suffice in what several processes compute together, where none can step back: set "
                "training.micro_batch_tokens to half of what recipe.yaml says"
            ) from error
        fit = False
    if agree and accelerator.num_processes > 1:
        fit = bool(accelerator.reduce(torch.tensor(float(fit), device=accelerator.device), reduction="mean") == 1)
    return fit


def halve_micro_batches(plan: UpdatePlan, update: int, title: str) -> UpdatePlan:
    """Give the plan with micro-batches of half as many padded tokens, after memory did not suffice.

    Raises:
        SharedTrainingError: They hold one row each already, or may not be cut.
    """
    cut = [micro_batch.windows for process in range(plan.num_processes) for micro_batch in plan.micro_batches(update, process)]
    is_one_row = max(map(len, cut)) == 1
    if plan.max_tokens is None or is_one_row:
        what = "one row alone" if is_one_row else "an update, which an arm that trains batch norms takes at once,"
        raise SharedTrainingError(
            f"{title}: {what} does not fit in memory at update {update + 1} of {plan.num_updates}: take shorter rows (--max-length), a "
            "smaller checkpoint, arm lora or head, or --activation-checkpointing"
            + ("; or a smaller --batch-size" if plan.max_tokens is None else "")
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # An update may be smaller than what a micro-batch may hold.
    largest = max(len(windows) * int(plan.lengths[windows].max()) for windows in cut)
    return replace(plan, max_tokens=max(1, min(plan.max_tokens, largest) // 2))
