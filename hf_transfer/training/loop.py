"""THE training loop."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from hf_transfer.errors import DiskError, DivergedError, SharedTrainingError, listed
from hf_transfer.models.cpu_kernels import make_dense, sparse_gradients
from hf_transfer.models.sharding import local, prepare
from hf_transfer.models.tuning import batch_norm_statistics, set_training_mode
from hf_transfer.training.accumulation import accumulate, halve_micro_batches, rows_without_loss
from hf_transfer.training.batches import Batches, UpdateReader
from hf_transfer.training.optimization import rate_factor, set_learning_rate
from hf_transfer.training.plan import UpdatePlan
from hf_transfer.training.processes import any_process, on_main_process, say
from hf_transfer.training.progress import Progress
from hf_transfer.training.regularization import StartingPoint, Unfreezing
from hf_transfer.training.state import Saving, State, gather_state, restore_state
from hf_transfer.training.stopping import Stopping
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
    done, mean, best = Training(), _Mean(), _BestState(moved)
    if saving is not None and (state := saving.load(accelerator)) is not None:
        done, mean, plan = _restore(state, best, moved, own_optimizer, plan, accelerator)
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
                mean = _Mean()
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
                state = gather_state(_values(done, mean, best, plan, accelerator), moved, best.state, own_optimizer)
                _save(state, saving, accelerator, title, must_succeed=to_end)
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


@dataclass
class _Mean:
    """The mean loss of an epoch so far."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, loss: float, weight: float) -> None:
        """Count an update's loss."""
        self.total, self.weight = self.total + loss * weight, self.weight + weight

    @property
    def value(self) -> float:
        """Of the updates counted."""
        return self.total / self.weight


class _BestState:
    """All that a training moves, as it was at the lowest validation loss, the later of equals; of what is sharded, this process's shard."""

    def __init__(self, moved: Mapping[str, torch.Tensor]) -> None:
        self.epoch = 0
        self.loss = math.inf
        self.state: dict[str, torch.Tensor] = {}
        self._moved = moved

    def offer(self, loss: float, epoch: int) -> None:
        """Keep the present state if no earlier loss was lower."""
        if loss <= self.loss:
            self.loss, self.epoch = loss, epoch
            self.state = {name: local(tensor).cpu().clone() for name, tensor in self._moved.items()}

    def restore(self) -> None:
        """Put the kept state back."""
        with torch.no_grad():
            for name, value in self.state.items():
                local(self._moved[name]).copy_(value)

    @contextmanager
    def restored_on_divergence(self) -> Iterator[None]:
        """Put the kept state back where the block diverges, and say so in its error."""
        try:
            yield
        except DivergedError as error:
            if self.epoch:
                self.restore()
                error.best = {"epoch": self.epoch, "validation_loss": self.loss}
            raise


def _end_epoch(
    done: Training, plan: UpdatePlan, mean: _Mean, rate: float, validate: Callable[[], dict[str, Any]], title: str
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


def _values(done: Training, mean: _Mean, best: _BestState, plan: UpdatePlan, accelerator: Accelerator) -> dict[str, Any]:
    """Give what a state holds beside its tensors."""
    return {
        "updates": done.updates,
        "done": asdict(done),
        "mean": asdict(mean),
        "best": {"epoch": best.epoch, "loss": best.loss if best.epoch else None},
        "max_tokens": plan.max_tokens,
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }


def _restore(
    state: State,
    best: _BestState,
    moved: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    plan: UpdatePlan,
    accelerator: Accelerator,
) -> tuple[Training, _Mean, UpdatePlan]:
    """Go back to a state: give what was done, the mean loss of its epoch, and the plan with its micro-batches."""
    values = state.values
    best.state = restore_state(state, moved, optimizer)
    if best.state:
        best.epoch, best.loss = values["best"]["epoch"], values["best"]["loss"]
    if accelerator.scaler is not None and values["scaler"] is not None:
        accelerator.scaler.load_state_dict(values["scaler"])
    if plan.max_tokens is not None and values["max_tokens"] is not None:
        # They were halved where memory did not suffice, and whoever goes on may ask for smaller ones.
        plan = replace(plan, max_tokens=min(plan.max_tokens, values["max_tokens"]))
    return Training(**values["done"]), _Mean(**values["mean"]), plan


def _save(state: State, saving: Saving, accelerator: Accelerator, title: str, must_succeed: bool) -> None:
    """Save a state; where it cannot be, and need not, the training goes on with what was saved before.

    Raises:
        DiskError: It cannot be, and must.
    """
    try:
        on_main_process(accelerator, lambda: saving.save(state))
    except DiskError as error:
        if must_succeed:
            raise
        say(accelerator, f"note: {title}: the state behind update {state.values['updates']} is not saved: {error}")


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
