"""Regularised transfer: each method against its formula, on a model small enough to see through."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hf_transfer.tasks.items import item_losses
from hf_transfer.training.optimization import build_optimizer, set_learning_rate
from hf_transfer.training.regularization import StartingPoint, Unfreezing

DEPTHS = {"stem.weight": 0, "stem.bias": 0, "first.weight": 1, "first.bias": 1, "second.weight": 2, "second.bias": 2, "head.weight": 3}


class Chain(nn.Module):
    """A stem, two blocks and a head, each a Linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first, self.second = (nn.Linear(3, 3) for _ in range(3))
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(self.stem(x)).tanh()).tanh())


def values_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def stepped(model: Chain, optimizer: torch.optim.Optimizer, after: Callable[[], None] = lambda: None) -> None:
    model(torch.ones(4, 3)).logsumexp(1).sum().backward()
    after()
    optimizer.step()
    optimizer.zero_grad()


def test_each_depth_below_the_head_learns_slower_by_the_factor() -> None:
    model = Chain()
    optimizer = build_optimizer(model, "sgd", 0.1, weight_decay=0.0, depths=DEPTHS, layer_decay=0.5)
    set_learning_rate(optimizer, 0.2)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {name: rates[id(parameter)] for name, parameter in model.named_parameters()} == {
        name: pytest.approx(0.2 * 0.5 ** (3 - depth)) for name, depth in DEPTHS.items()
    }
    before = values_of(model)
    model(torch.ones(4, 3)).logsumexp(1).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, before[name] - 0.2 * 0.5 ** (3 - DEPTHS[name]) * gradients[name], atol=1e-7)


def test_without_a_layer_decay_all_have_one_rate_and_vectors_do_not_decay() -> None:
    model = Chain()
    optimizer = build_optimizer(model, "adamw", 0.1, weight_decay=0.3, undecayed={"first.weight"})
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    assert {name for name, parameter in model.named_parameters() if decays[id(parameter)] == 0.3} == {
        "stem.weight",
        "second.weight",
        "head.weight",
    }


@pytest.mark.parametrize(("share", "begins"), [(1.0, [10, 8, 4, 0]), (0.5, [6, 4, 2, 0]), (0.3, [4, 3, 2, 0])])
def test_blocks_begin_one_after_another_the_last_first(share: float, begins: list[int]) -> None:
    model = Chain()
    unfreezing = Unfreezing(model, DEPTHS, num_updates=11, share=share)
    assert [unfreezing.begins[name] for name in ("stem.weight", "first.weight", "second.weight", "head.weight")] == begins
    optimizer = build_optimizer(model, "adamw", 1e-2, weight_decay=0.1)
    for update in range(11):
        before = values_of(model)
        stepped(model, optimizer, after=lambda update=update: unfreezing.hold_back(update))  # type: ignore[misc]
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert moved == {name for name, depth in DEPTHS.items() if begins[depth] <= update}, f"update {update}"


def test_l2_sp_pulls_towards_the_start_by_rate_times_strength_whatever_the_gradient() -> None:
    model, free = Chain(), Chain()
    pulled = [model.stem.weight, model.first.weight]
    names = {"stem.weight", "first.weight"}
    start = values_of(model)
    optimizer, free_optimizer = (build_optimizer(one, "sgd", 0.1, weight_decay=0.0, undecayed=names) for one in (model, free))
    starting_point = StartingPoint(optimizer, pulled, strength=2.0)
    stepped(model, optimizer)
    stepped(free, free_optimizer)
    starting_point.pull(0.1)
    for (name, parameter), moved in zip(model.named_parameters(), free.parameters(), strict=True):
        expected = moved - 0.1 * 2.0 * (moved - start[name]) if name in names else moved
        assert torch.allclose(parameter, expected, atol=1e-7), name


def test_a_strong_pull_puts_the_start_back_and_overshoots_never() -> None:
    model = Chain()
    start = values_of(model)
    optimizer = build_optimizer(model, "sgd", 0.1, weight_decay=0.0)
    starting_point = StartingPoint(optimizer, list(model.parameters()), strength=1000.0)
    stepped(model, optimizer)
    starting_point.pull(0.1)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, start[name], atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_is_its_formula(gamma: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (50, 4))).requires_grad_()
    labels = torch.arange(50) % 4
    right = torch.softmax(logits.double(), 1)[torch.arange(50), labels]
    expected = -((1 - right) ** gamma) * torch.log(right)
    found = item_losses(logits, labels, focal_gamma=gamma)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    assert torch.allclose(gradient, wanted, atol=1e-4)


def test_focal_loss_has_a_finite_gradient_where_the_label_is_certain() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    item_losses(logits, torch.tensor([0]), focal_gamma=0.5).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_batch_norms_of_a_block_held_back_run_as_at_inference() -> None:
    model = nn.ModuleDict(
        {"stem": nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "head": nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))}
    )
    unfreezing = Unfreezing(model, {name: int(name.startswith("head")) for name, _ in model.named_parameters()}, num_updates=10, share=0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for update in range(10):
        model.train()
        unfreezing.begin(update)
        assert [norm.training for norm in norms] == [update >= 5, True]
