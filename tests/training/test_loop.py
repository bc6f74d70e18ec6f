"""The loop against a plain ten-line one, and what it promises about seeds, weights and states."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_transfer.errors import TrainingError
from hf_transfer.evidence.arms import build_arm
from hf_transfer.models.build import Architecture, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.recipe import Arm
from hf_transfer.task_configs import TextClassification
from hf_transfer.tasks import text_classification as task
from hf_transfer.tasks.items import Layout, lay_out
from hf_transfer.tasks.tokenizers import load_tokenizer
from hf_transfer.training import accumulation
from hf_transfer.training.batches import Batches
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.loop import Training, train
from hf_transfer.training.optimization import build_optimizer, rate_factor
from hf_transfer.training.plan import UpdatePlan
from tests.conftest import TOPICS, make_rows

RATE = 1e-3
LABELS = list(TOPICS)


@pytest.fixture(scope="module")
def data(tiny_bert: Path) -> tuple[Layout, np.ndarray, Any]:
    """Give rows laid out, class ids and the collate function."""
    tokenizer = open_checkpoint(str(tiny_bert), load_tokenizer).processor
    made = make_rows(80)
    rows = task.encode(tokenizer, [row["text"] for row in made], TextClassification(max_length=64))
    return (
        lay_out(rows),
        np.array([LABELS.index(row["label"]) for row in made]),
        functools.partial(task.collate, processor=tokenizer),
    )


def architecture(tiny_bert: Path, dropout: float | None) -> Architecture:
    return inspect(open_checkpoint(str(tiny_bert), load_tokenizer), AutoModelForSequenceClassification, LABELS, dropout)


def build(tiny_bert: Path, dropout: float | None = 0.0, seed: int = 0, **arm: Any) -> nn.Module:
    return build_arm(architecture(tiny_bert, dropout), Arm(learning_rate=RATE, num_epochs=1, **arm), seed, "SEQ_CLS")


def fit(
    model: nn.Module,
    data: Any,
    max_tokens: int = 128,
    seed: int = 0,
    epochs: int = 2,
    weights: np.ndarray | None = None,
    **settings: Any,
) -> Training:
    layout, labels, collate = data
    weights = np.ones(len(labels), dtype=np.float32) if weights is None else weights
    plan = UpdatePlan(layout.lengths, weights, batch_size=8, num_epochs=epochs, max_tokens=max_tokens, seed=seed)
    settings = {
        "validate": lambda model: {"loss": 0.0},
        "learning_rate": RATE,
    } | settings
    return train(
        model,
        build_optimizer(model, "adamw", RATE, 0.01),
        plan,
        Batches(layout, labels, weights, collate, task.item_logits, np.arange(len(labels))),
        accelerator=make_accelerator("fp32"),
        **settings,
    )


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_updates_as_a_plain_loop(tiny_bert: Path, data: Any, weighted: bool) -> None:
    layout, labels, collate = data
    row_weights = (1 + np.arange(80) % 3).astype(np.float32) if weighted else np.ones(80, dtype=np.float32)
    ours = build(tiny_bert)
    done = fit(ours, data, max_tokens=100, weights=row_weights)
    assert done.updates == 20

    plain = build(tiny_bert).eval()  # dropout is 0 either way
    optimizer = build_optimizer(plain, "adamw", RATE, 0.01)
    for update in range(20):
        epoch, place = divmod(update, 10)
        batch = np.random.default_rng([0, 1, epoch]).permutation(80)[place * 8 : place * 8 + 8]
        logits = plain(**collate([layout.windows[row] for row in batch])).logits
        losses = nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch]), reduction="none")
        weight = torch.from_numpy(row_weights[batch])
        ((losses * weight).sum() / weight.sum()).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_factor(update, 20, 0.1, "linear")
        optimizer.step()
        optimizer.zero_grad()
    assert farthest(weights_of(ours), weights_of(plain)) < 1e-5
    assert farthest(weights_of(ours), weights_of(build(tiny_bert))) > 1e-3, "something was learned"


def test_the_token_budget_does_not_change_the_updates(tiny_bert: Path, data: Any) -> None:
    trained = []
    for max_tokens in (1, 100, 100_000):
        trained.append(build(tiny_bert))
        fit(trained[-1], data, max_tokens=max_tokens)
    assert farthest(weights_of(trained[0]), weights_of(trained[1])) < 1e-5
    assert farthest(weights_of(trained[0]), weights_of(trained[2])) < 1e-5


def test_the_same_seed_is_bit_equal_and_another_is_not(tiny_bert: Path, data: Any) -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        model = build(tiny_bert, dropout=None, seed=seed)
        torch.rand(7)  # what drew before must not matter
        fit(model, data, seed=seed)
        return weights_of(model)

    first, again, other = trained(0), trained(0), trained(1)
    assert farthest(first, again) == 0.0
    assert farthest(first, other) > 1e-4


@pytest.mark.parametrize("tuning", ["head", "top", "lora"])
def test_frozen_weights_are_bit_equal_afterwards(tiny_bert: Path, data: Any, tuning: str) -> None:
    model = build(tiny_bert, dropout=None, tuning=tuning, num_blocks=1 if tuning == "top" else None)
    before = weights_of(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    fit(model, data)
    after = weights_of(model)
    assert frozen
    for name in before:
        assert torch.equal(before[name], after[name]) == (name in frozen), name


def test_the_best_state_is_restored_and_ties_keep_the_later(tiny_bert: Path, data: Any) -> None:
    def run(losses: list[float], **settings: Any) -> tuple[Training, bool]:
        model, seen = build(tiny_bert), []

        def validate(current: nn.Module) -> dict[str, float]:
            seen.append(weights_of(current))
            return {"loss": losses[len(seen) - 1]}

        done = fit(model, data, epochs=len(losses), validate=validate, **settings)
        kept = (done.best_epoch or len(seen)) - 1
        return done, farthest(weights_of(model), seen[kept]) == 0.0

    done, is_kept = run([3.0, 1.0, 2.0])
    assert (done.best_epoch, done.stopped, is_kept) == (2, "epochs", True)
    done, is_kept = run([3.0, 1.0, 1.0, 2.0])
    assert (done.best_epoch, is_kept) == (3, True)
    done, is_kept = run([1.0, 3.0, 2.0], restore_best=False)
    assert (done.best_epoch, is_kept) == (None, True)
    done, is_kept = run([2.0, 1.0, 1.5, 1.2, 0.5], patience=2)
    assert (done.best_epoch, done.stopped, done.updates, is_kept) == (2, "early", 40, True)
    assert [entry["epoch"] for entry in done.history] == [1, 2, 3, 4]


def test_counts_and_history(tiny_bert: Path, data: Any) -> None:
    done = fit(build(tiny_bert), data, epochs=3)
    assert (done.updates, done.rows_seen, done.tokens_seen) == (30, 240, 3 * data[0].lengths.sum())
    assert [entry["update"] for entry in done.history] == [10, 20, 30]
    assert done.history[2]["train_loss"] < done.history[0]["train_loss"]


def test_a_loss_that_is_no_number_stops_and_names_the_update(tiny_bert: Path, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    item_losses = accumulation.item_losses

    def broken(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float, *settings: float) -> torch.Tensor:
        calls.append(1)
        return item_losses(logits, labels, label_smoothing, *settings) * (float("nan") if len(calls) == 13 else 1.0)

    monkeypatch.setattr(accumulation, "item_losses", broken)

    with pytest.raises(
        TrainingError,
        match=r"training: the loss of update 13 of 20 \(epoch 2\) is no finite number, over its rows .*: lower the learning rate",
    ):
        fit(build(tiny_bert), data, max_tokens=100_000)
