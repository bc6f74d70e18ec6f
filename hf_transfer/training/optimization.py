"""Optimizer groups and the learning rate of each update."""

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn


def build_optimizer(
    model: nn.Module,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    depths: Mapping[str, int] | None = None,
    layer_decay: float = 1.0,
    undecayed: Collection[str] = (),
) -> torch.optim.Optimizer:
    """Make AdamW or SGD with momentum over the trainable parameters; biases, norms and other vectors do not decay.

    Args:
        model: Model whose trainable parameters are optimised.
        optimizer: "adamw" (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) or "sgd" (momentum 0.9).
        learning_rate: Peak.
        weight_decay: Of matrices and embeddings.
        depths: Depth of each parameter, from `models.tuning.depths_of`; needed with a layer decay.
        layer_decay: Factor of the learning rate from each trained depth to the one before it; the deepest has the whole rate.
        undecayed: Names of parameters that do not decay either.
    """
    members: dict[tuple[int, float], list[nn.Parameter]] = {}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # A fixed block (one that pools) is no step of the decay.
    steps = sorted({depths[name] for name in trained}, reverse=True) if depths and layer_decay < 1 else []
    for name, parameter in model.named_parameters():
        if name in trained:
            below = steps.index(depths[name]) if depths and steps else 0
            decays = parameter.ndim >= 2 and name not in undecayed
            members.setdefault((below, weight_decay if decays else 0.0), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "rate_share": layer_decay**below} for (below, decay), parameters in members.items()
    ]
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def rate_factor(update: int, num_updates: int, warmup_fraction: float, schedule: str) -> float:
    """Give the share of the peak learning rate at an update: a linear rise over the warmup, then the schedule's fall towards 0.

    Args:
        update: From 0.
        num_updates: Of the whole training.
        warmup_fraction: Share of the updates that rise; the first update is never at 0.
        schedule: "linear", "cosine" or "constant".
    """
    num_warmup = round(num_updates * warmup_fraction)
    if update < num_warmup:
        return (update + 1) / (num_warmup + 1)
    left = (num_updates - update) / max(1, num_updates - num_warmup)
    match schedule:
        case "linear":
            return left
        case "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        case "constant":
            return 1.0
    raise AssertionError(schedule)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set every group's learning rate: its share of the one given."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_share"]
