"""THE training loop."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from hf_transfer.errors import DivergedError, SharedTrainingError, listed
from hf_transfer.models.cpu_kernels import make_dense, sparse_gradients
from hf_transfer.models.sharding import prepare
from hf_transfer.models.tuning import batch_norm_statistics, set_training_mode
from hf_transfer.training.accumulation import accumulate, halve_micro_batches, rows_without_loss
from hf_transfer.training.batches import Batches, UpdateReader
from hf_transfer.training.optimization import rate_factor, set_learning_rate
from hf_transfer.training.plan import UpdatePlan
from hf_transfer.training.processes import any_process, say
from hf_transfer.training.progress import Progress
from hf_transfer.training.record import BestState, MeanLoss, Training, go_back, record_of, save_record
from hf_transfer.training.regularization import StartingPoint, Unfreezing
from hf_transfer.training.state import Saving, gather_state
from hf_transfer.training.stopping import Stopping
from hf_transfer.training.tracking import Log, named

Validate = Callable[[nn.Module], dict[str, Any]]
LOG_EVERY = 10
"""Updates from one logged loss to the next."""


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
    saving: Saving | None = None,
    stopping: Stopping | None = None,
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
        saving: Where its state is saved, and read from first; None = nowhere.
        stopping: Says whether the run is asked to end: the training then ends behind the update it is in; None = it never is.

    Raises:
        DivergedError: Loss, gradient or validation is no finite number; names the update and its rows. Where a best state is known, the
            model is back in it.
        SharedTrainingError: One row alone does not fit in memory; names the update.
        Interrupted: The run is asked to end; the state is saved.
        RunFolderError: It could not be saved then (DiskError), or what was saved before is of another model.
    """
    stopping = Stopping() if stopping is None else stopping
    unwrapped, own_optimizer = model, optimizer
    model, optimizer = prepare(model, optimizer, accelerator)
    trainable = {name: parameter for name, parameter in unwrapped.named_parameters() if parameter.requires_grad}
    sparse = sparse_gradients(unwrapped) if accelerator.device.type == "cpu" and accelerator.num_processes == 1 else []
    moved = trainable | batch_norm_statistics(unwrapped)
    done, mean, best = Training(), MeanLoss(), BestState(moved)
    if saving is not None and (state := saving.load(accelerator)) is not None:
        done, mean, plan = go_back(state, best, moved, own_optimizer, plan, accelerator)
        say(accelerator, f"{title}: going on behind update {done.updates} of {plan.num_updates}")
    first = done.updates
    set_training_mode(unwrapped)
    reader = UpdateReader(plan, batches, accelerator.process_index, num_workers, first)
    progress = Progress(title, plan.num_updates, accelerator.is_main_process, batches.unit, first)
    with closing(reader), progress, stopping.deferred(), best.restored_on_divergence():
        for update in range(first, first if done.stopped == "early" else plan.num_updates):
            started = time.perf_counter()
            if update % plan.updates_per_epoch == 0:
                set_training_mode(unwrapped)
                mean = MeanLoss()
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
            if what := _found_infinite(loss, norm, scaled=accelerator.scaler is not None):
                lost = rows_without_loss(model, micro_batches, plan, update, batches, accelerator, plain_kernels)
                raise DivergedError(_describe_divergence(what, update, plan, title, lost, batches))
            _step(optimizer, accelerator, title, is_first=update == first)
            if starting_point is not None:
                starting_point.pull(rate)
            optimizer.zero_grad()

            done.updates = update + 1
            done.rows_seen += len(plan.rows_of(update))
            done.tokens_seen += int(batches.layout.tokens[plan.windows_of(update)].sum())
            done.train_seconds += time.perf_counter() - started
            mean.add(loss, plan.weight_of(update))
            wait_seconds = done.wait_seconds if num_workers else None
            progress.advance(done.updates, done.rows_seen, done.tokens_seen, done.train_seconds, wait_seconds)
            if log is not None and done.updates % LOG_EVERY == 0:
                log(done.updates, {"train/update_loss": loss, "train/learning_rate": rate})

            if done.updates % plan.updates_per_epoch == 0:
                entry = _end_epoch(done, plan, mean, rate, lambda: validate(unwrapped), title)
                _tell_epoch(entry, done, plan, progress, log)
                if restore_best:
                    best.offer(entry["validation"]["loss"], entry["epoch"])
                    if patience is not None and entry["epoch"] - best.epoch >= patience:
                        done.stopped = "early"

            is_last = done.stopped == "early" or done.updates == plan.num_updates
            is_due = saving is not None and accelerator.is_main_process and saving.is_due(done.updates, is_last)
            to_end, to_save = any_process(accelerator, stopping.is_asked, is_due)
            if saving is not None and (to_end or to_save):
                state = gather_state(record_of(done, mean, best, plan, accelerator), moved, best.state, own_optimizer)
                save_record(state, saving, accelerator, title, must_succeed=to_end)
            if to_end:
                accelerator.wait_for_everyone()
                kept = "" if saving is None else ", its state saved"
                stopping.end(f"{title} ended behind update {done.updates} of {plan.num_updates}{kept}")
            if is_last:
                break
    if restore_best:
        best.restore()
        done.best_epoch = best.epoch
    return done


def _end_epoch(
    done: Training, plan: UpdatePlan, mean: MeanLoss, rate: float, validate: Callable[[], dict[str, Any]], title: str
) -> dict[str, Any]:
    """Validate behind an epoch's last update, and give its entry of the history.

    Raises:
        DivergedError: The model predicts what is no finite number.
    """
    try:
        validation = validate()
    except DivergedError as error:
        raise DivergedError(f"{title}: behind update {done.updates} of {plan.num_updates} {error}") from None
    epoch = done.updates // plan.updates_per_epoch
    entry = {"update": done.updates, "epoch": epoch, "train_loss": mean.value, "learning_rate": rate, "validation": validation}
    done.history.append(entry)
    return entry


def _tell_epoch(entry: Mapping[str, Any], done: Training, plan: UpdatePlan, progress: Progress, log: Log | None) -> None:
    progress.epoch(entry["epoch"], plan.num_epochs, entry["train_loss"], entry["validation"].get("loss"))
    if log is not None:
        speed = {"train/rows_per_second": done.rows_seen / done.train_seconds}
        values = {f"train/{name.removeprefix('train_')}": entry[name] for name in ("train_loss", "epoch", "learning_rate")}
        log(done.updates, values | speed | named("validation", entry["validation"]))


def _step(optimizer: torch.optim.Optimizer, accelerator: Accelerator, title: str, is_first: bool) -> None:
    """Let the optimizer step; its first step takes the memory of its state.

    Raises:
        SharedTrainingError: Memory does not suffice for that, on one process at least.
    """
    fits = True
    try:
        optimizer.step()
    except RuntimeError as error:
        if not (is_first and should_reduce_batch_size(error)):
            raise
        fits = False
    if is_first and any_process(accelerator, not fits)[0]:
        raise SharedTrainingError(
            f"{title}: memory does not suffice for the optimizer's state: take arm lora or head, a smaller checkpoint, or "
            "training.optimizer=sgd"
        )


def _found_infinite(loss: float, norm: torch.Tensor | None, scaled: bool) -> str | None:
    """Name what is no finite number: the loss, the gradient or neither. Under fp16 the scaler skips such gradients by itself."""
    if not math.isfinite(loss):
        return "loss"
    return "gradient" if norm is not None and not scaled and not math.isfinite(float(norm)) else None


def _describe_divergence(what: str, update: int, plan: UpdatePlan, title: str, lost: Sequence[int], batches: Batches) -> str:
    """Tell of which update and rows a loss or gradient is no finite number, and what to do."""
    rows = sorted(int(row) for row in batches.row_ids[plan.rows_of(update)])
    found = f"of {len(lost)} of its {len(rows)} rows ({listed(lost)})" if lost else f"over its rows ({listed(rows)})"
    where = f"update {update + 1} of {plan.num_updates} (epoch {plan.epoch_of(update) + 1})"
    return (
        f"{title}: the {what} of {where} is no finite number, {found}: "
        "lower the learning rate, lengthen the warmup, or take --precision fp32"
    )
