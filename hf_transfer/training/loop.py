"""THE training loop."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_transfer.errors import SharedTrainingError
from hf_transfer.models.cpu_kernels import make_dense, sparse_gradients
from hf_transfer.models.tuning import batch_norm_statistics, set_training_mode
from hf_transfer.training.accumulation import accumulate, halve_micro_batches
from hf_transfer.training.batches import Batches, UpdateReader
from hf_transfer.training.optimization import rate_factor, set_learning_rate
from hf_transfer.training.plan import UpdatePlan
from hf_transfer.training.progress import Progress
from hf_transfer.training.regularization import StartingPoint, Unfreezing
from hf_transfer.training.tracking import Log, named

Validate = Callable[[nn.Module], dict[str, Any]]
LOG_EVERY = 10
"""Updates from one logged loss to the next."""


@dataclass
class Training:
    """What a training did."""

    stopped: str = "epochs"
    """"epochs" (all of them) or "early"."""
    updates: int = 0
    rows_seen: int = 0
    tokens_seen: int = 0
    """Without padding."""
    train_seconds: float = 0.0
    """The loop with its input, without validation."""
    wait_seconds: float = 0.0
    """Of these, how long the model waited for input."""
    best_epoch: int | None = None
    """Epoch, from 1, whose state was restored; None where the last state stands."""
    out_of_memory: list[dict[str, Any]] = field(default_factory=list)
    """An entry each time the micro-batches were halved: the update, and the padded tokens they hold from then on."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """An entry an epoch: update, epoch, train_loss, learning_rate, validation."""


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: UpdatePlan,
    batches: Batches,
    *,
    validate: Validate,
    accelerator: Accelerator,
    learning_rate: float,
    warmup_fraction: float = 0.1,
    schedule: str = "linear",
    max_grad_norm: float | None = 1.0,
    restore_best: bool = True,
    patience: int | None = None,
    unfreezing: Unfreezing | None = None,
    starting_point: StartingPoint | None = None,
    num_workers: int = 0,
    plain_kernels: bool = False,
    log: Log | None = None,
    title: str = "training",
) -> Training:
    """Train a model through every update of a plan.

    The loss of an update is sum(w * l) / sum(w) over its items on all processes and micro-batches, never a mean of means. After every
    epoch the model is validated; the trainable state with the lowest validation loss (the later of equals) is restored at the end.

    Args:
        model: Model with its trainable parameters marked; prepared by `accelerator` here.
        optimizer: Over those parameters.
        plan: Which rows make which update.
        batches: What its windows are made of.
        validate: Unwrapped model -> validation metrics with `loss`.
        accelerator: Device, processes and precision.
        learning_rate: Peak.
        warmup_fraction: Share of updates that rise to it.
        schedule: "linear", "cosine" or "constant".
        max_grad_norm: The gradient is scaled down to this norm; None = never.
        restore_best: Restore the best state; False where validation rows are too few to choose by.
        patience: Epochs without a better validation loss before stopping; needs `restore_best`.
        unfreezing: Holds blocks back until their update has come; None = all train from the start.
        starting_point: Pulls the backbone towards the checkpoint's weights; None = nothing does.
        num_workers: Processes that read the input ahead; 0 = none.
        plain_kernels: Leave dropout and attention on a CPU to torch: what is compiled, or computed again in the backward, must.
        log: Is told the loss of every tenth update, and what is known after an epoch; None = nobody is.
        title: Of the progress bar.

    Raises:
        SharedTrainingError: The loss or the gradient is no number, or one row alone does not fit in memory; names the update.
    """
    unwrapped = model
    model, optimizer = accelerator.prepare(model, optimizer)
    trainable = {name: parameter for name, parameter in unwrapped.named_parameters() if parameter.requires_grad}
    sparse = sparse_gradients(unwrapped) if accelerator.device.type == "cpu" and accelerator.num_processes == 1 else []
    done = Training()
    best = _BestState(trainable | batch_norm_statistics(unwrapped))
    epoch_loss = epoch_weight = 0.0
    reader = UpdateReader(plan, batches, accelerator.process_index, num_workers)
    with closing(reader), Progress(title, plan.num_updates, accelerator.is_main_process, batches.unit) as progress:
        for update in range(plan.num_updates):
            started = time.perf_counter()
            if update % plan.updates_per_epoch == 0:
                set_training_mode(unwrapped)
                epoch_loss = epoch_weight = 0.0
            rate = learning_rate * rate_factor(update, plan.num_updates, warmup_fraction, schedule)
            set_learning_rate(optimizer, rate)
            asked = time.perf_counter()
            micro_batches = reader.read(update)
            done.wait_seconds += time.perf_counter() - asked
            if unfreezing is not None:
                unfreezing.begin(update)
            while (loss := accumulate(model, micro_batches, plan, update, batches, accelerator, plain_kernels)) is None:
                optimizer.zero_grad()
                plan = halve_micro_batches(plan, update, title)
                done.out_of_memory.append({"update": update + 1, "micro_batch_tokens": plan.max_tokens})
                reader.restart(plan)
                micro_batches = reader.read(update)
            make_dense(sparse)
            if unfreezing is not None:
                unfreezing.hold_back(update)
            norm = accelerator.clip_grad_norm_(list(trainable.values()), math.inf if max_grad_norm is None else max_grad_norm)
            _check_finite(loss, norm, update, plan, title, scaled=accelerator.scaler is not None)
            optimizer.step()
            if starting_point is not None:
                starting_point.pull(rate)
            optimizer.zero_grad()

            num_rows, weight = len(plan.rows_of(update)), plan.weight_of(update)
            num_tokens = int(batches.layout.tokens[plan.windows_of(update)].sum())
            done.updates = update + 1
            done.rows_seen += num_rows
            done.tokens_seen += num_tokens
            done.train_seconds += time.perf_counter() - started
            epoch_loss, epoch_weight = epoch_loss + loss * weight, epoch_weight + weight
            progress.advance(num_rows, num_tokens, done.train_seconds, done.wait_seconds if num_workers else None)
            if log is not None and (update + 1) % LOG_EVERY == 0:
                log(update + 1, {"train/update_loss": loss, "train/learning_rate": rate})

            if (update + 1) % plan.updates_per_epoch == 0:
                epoch = plan.epoch_of(update) + 1
                validation = validate(unwrapped)
                done.history.append(
                    {
                        "update": update + 1,
                        "epoch": epoch,
                        "train_loss": epoch_loss / epoch_weight,
                        "learning_rate": rate,
                        "validation": validation,
                    }
                )
                if log is not None:
                    speed = {"train/rows_per_second": done.rows_seen / done.train_seconds}
                    epoch_values = {"train/loss": epoch_loss / epoch_weight, "train/epoch": epoch, "train/learning_rate": rate}
                    log(update + 1, epoch_values | speed | named("validation", validation))
                progress.epoch(epoch, plan.num_epochs, epoch_loss / epoch_weight, validation.get("loss"))
                if restore_best:
                    best.offer(validation["loss"], epoch)
                    if patience is not None and epoch - best.epoch >= patience:
                        done.stopped = "early"
                        break
    if restore_best:
        best.restore()
        done.best_epoch = best.epoch
    return done


class _BestState:
    """All that a training moves, as it was at the lowest validation loss, the later of equals."""

    def __init__(self, trainable: dict[str, torch.Tensor]) -> None:
        self.epoch = 0
        self._trainable = trainable
        self._loss = math.inf
        self._state: dict[str, torch.Tensor] = {}

    def offer(self, loss: float, epoch: int) -> None:
        """Keep the present state if no earlier loss was lower."""
        if loss <= self._loss:
            self._loss, self.epoch = loss, epoch
            self._state = {name: parameter.detach().cpu().clone() for name, parameter in self._trainable.items()}

    def restore(self) -> None:
        """Put the kept state back."""
        with torch.no_grad():
            for name, value in self._state.items():
                self._trainable[name].copy_(value)


def _check_finite(loss: float, norm: torch.Tensor | None, update: int, plan: UpdatePlan, title: str, scaled: bool) -> None:
    """Stop on a loss or gradient that is no number. Under fp16 the scaler skips such gradients by itself.

    Raises:
        SharedTrainingError: Names the update and what to change.
    """
    found = (
        "loss" if not math.isfinite(loss) else "gradient" if norm is not None and not scaled and not math.isfinite(float(norm)) else None
    )
    if found:
        raise SharedTrainingError(
            f"{title}: the {found} of update {update + 1} of {plan.num_updates} (epoch {plan.epoch_of(update) + 1}) is no finite number: "
            "lower the learning rate, lengthen the warmup, or take --precision fp32"
        )
