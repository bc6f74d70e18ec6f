"""What keeps a tuned model near the one it started from: blocks held back at first, and a pull towards the checkpoint's weights."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from hf_transfer.models.sharding import local, shard_of
from hf_transfer.models.tuning import trainable_batch_norms


class Unfreezing:
    """Gradual unfreezing: the head trains from the start, blocks begin one after another, the last first.

    Howard & Ruder 2018, section 3.3 (https://arxiv.org/abs/1801.06146), with the blocks spread evenly over a share of the updates instead
    of one an epoch. A block held back gets its gradient taken away, so the optimizer neither moves nor decays it, on any number of
    processes, and its batch norms run as at inference; forward and backward cost the same.
    """

    def __init__(self, model: nn.Module, depths: Mapping[str, int], num_updates: int, share: float) -> None:
        """Plan when each depth begins.

        Args:
            model: What trains is marked.
            depths: Depth of each parameter, from `models.tuning.depths_of`.
            num_updates: Of the whole training.
            share: Of the updates after which the first depth trains, too.
        """
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        steps = sorted({depths[name] for name in trainable}, reverse=True)
        every = share * num_updates / max(1, len(steps) - 1)
        begins = {depth: min(num_updates - 1, math.ceil(place * every)) for place, depth in enumerate(steps)}
        self.begins = {name: begins[depths[name]] for name in trainable}
        """Parameter -> the update, from 0, with which it begins."""
        self._model = model
        self._norms = [
            (module, max(self.begins[f"{name}.{key}"] for key, parameter in module.named_parameters() if parameter.requires_grad))
            for name, module in trainable_batch_norms(model).items()
        ]

    def begin(self, update: int) -> None:
        """Put the batch norms of what has not begun at an update into eval mode, the others into train mode."""
        for module, begins in self._norms:
            module.train(update >= begins)

    def hold_back(self, update: int) -> None:
        """Take away the gradients of what has not begun at an update."""
        for name, parameter in self._model.named_parameters():
            if update < self.begins.get(name, 0):
                parameter.grad = None


class StartingPoint:
    """L2-SP: the backbone decays towards the weights it started from (Xuhong et al. 2018, https://arxiv.org/abs/1802.01483).

    Its penalty strength / 2 * |w - w0|^2 is decoupled from the gradient, as AdamW's decay is (Loshchilov & Hutter 2019): under AdamW a
    penalty in the loss would be divided by the gradient's size and hardly pull at all.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], strength: float) -> None:
        """Remember where the parameters are now.

        Args:
            optimizer: Whose groups say each parameter's share of the learning rate.
            parameters: The backbone's.
            strength: Decay towards the start, times the learning rate an update.
        """
        pulled = {id(parameter) for parameter in parameters}
        self._strength, self._optimizer = strength, optimizer
        self._starts = [
            {place: parameter.detach().clone() for place, parameter in enumerate(group["params"]) if id(parameter) in pulled}
            for group in optimizer.param_groups
        ]
        """Of each group, where a parameter stands in it -> its start. Sharding puts other parameters there."""

    def pull(self, learning_rate: float) -> None:
        """Move every parameter towards its start, after an optimizer step at a learning rate."""
        with torch.no_grad():
            for group, starts in zip(self._optimizer.param_groups, self._starts, strict=True):
                parameters = [group["params"][place] for place in starts]
                targets = [shard_of(start, parameter) for start, parameter in zip(starts.values(), parameters, strict=True)]
                weight = min(1.0, learning_rate * group["rate_share"] * self._strength)
                if parameters:
                    torch._foreach_lerp_([local(parameter) for parameter in parameters], targets, weight)
