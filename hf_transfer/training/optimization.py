"""Optimizer groups and the learning rate of each update."""

import math

import torch
from torch import nn


def build_optimizer(model: nn.Module, optimizer: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Make AdamW or SGD with momentum over the trainable parameters; biases, norms and other vectors do not decay.

    Args:
        model: Model whose trainable parameters are optimised.
        optimizer: "adamw" (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) or "sgd" (momentum 0.9).
        learning_rate: Peak.
        weight_decay: Of matrices and embeddings.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0},
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
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
