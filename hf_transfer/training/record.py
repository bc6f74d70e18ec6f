"""What a training has done so far: its counts, the mean loss of its epoch, its best state; saved, and gone back to."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator

from hf_transfer.errors import DiskError, DivergedError
from hf_transfer.models.sharding import local
from hf_transfer.training.plan import UpdatePlan
from hf_transfer.training.processes import on_main_process, say
from hf_transfer.training.state import Saving, State, restore_state


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


@dataclass
class MeanLoss:
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


class BestState:
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


def record_of(done: Training, mean: MeanLoss, best: BestState, plan: UpdatePlan, accelerator: Accelerator) -> dict[str, Any]:
    """Give what a state holds beside its tensors."""
    return {
        "updates": done.updates,
        "done": asdict(done),
        "mean": asdict(mean),
        "best": {"epoch": best.epoch, "loss": best.loss if best.epoch else None},
        "max_tokens": plan.max_tokens,
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
    }


def go_back(
    state: State,
    best: BestState,
    moved: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    plan: UpdatePlan,
    accelerator: Accelerator,
) -> tuple[Training, MeanLoss, UpdatePlan]:
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
    return Training(**values["done"]), MeanLoss(**values["mean"]), plan


def save_record(state: State, saving: Saving, accelerator: Accelerator, title: str, must_succeed: bool) -> None:
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
