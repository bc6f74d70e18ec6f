"""The frozen prefix of a model: what lies below the lowest block that trains, computed once and replayed from then on."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hf_transfer.errors import CheckpointError
from hf_transfer.models.tuning import find_blocks

PREFIX = "frozen_prefix"
"""Forward argument that holds what the prefix gave."""
TOLERANCE = 1e-5
"""Farthest a replayed logit may be from a plain one, in fp32, relative to the largest."""


class _Reached(Exception):
    """The last block of the prefix has run; nothing behind it is needed."""


@dataclass
class FrozenPrefix:
    """Blocks that nothing trains in or before, with what feeds them: cut off at the hidden states of the last of them.

    Replaying lets each of these modules answer with hidden states given as the forward argument `frozen_prefix`, and runs the rest.
    """

    model: nn.Module
    name: str
    """Of the cut: the stack of blocks and how many of them, for a cache's key."""
    modules: list[nn.Module]
    """The embeddings, where they can be left out, and the blocks."""
    templates: list[Any]
    """An output of each, its tensors emptied: for its structure."""
    first_only: bool = False
    """What follows looks at the first token alone, so nothing else has to be kept."""
    _given: torch.Tensor | None = field(default=None, repr=False)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Give all that may decide what the prefix computes, by name, what trains left out."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return ((name, tensor) for name, tensor in self.model.state_dict().items() if name not in trained)

    def compute(self, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Give the prefix's hidden states, (B, L, D) or (B, ...), of forward arguments; what follows does not run."""
        reached: list[torch.Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            reached.append(_first(output))
            raise _Reached

        hook = self.modules[-1].register_forward_hook(stop)
        try:
            self.model(**arguments)
        except _Reached:
            pass
        finally:
            hook.remove()
        # A view would keep all tokens in memory for as long as somebody holds the first.
        return reached[0][:, :1].clone() if self.first_only else reached[0]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """While the block runs, the model takes `frozen_prefix`; without that argument it runs whole."""

        def take(module: nn.Module, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            self._given = arguments.pop(PREFIX, None)
            return args, arguments

        hook = self.model.register_forward_pre_hook(take, with_kwargs=True)
        for module, template in zip(self.modules, self.templates, strict=True):
            module.forward = self._answering(module.forward, template)
        try:
            yield
        finally:
            hook.remove()
            self._given = None
            for module in self.modules:
                del module.forward

    def _answering(self, forward: Any, template: Any) -> Any:
        def answer(*args: Any, **arguments: Any) -> Any:
            return forward(*args, **arguments) if self._given is None else _filled(template, self._given)

        return answer


def find_prefix(model: nn.Module, arguments: Mapping[str, torch.Tensor]) -> FrozenPrefix | str:
    """Find a model's frozen prefix and try it.

    Args:
        model: What trains is marked; put into eval mode.
        arguments: Forward arguments of a few windows, of which one has two tokens at least.

    Returns:
        The prefix; or why there is none, in words that follow "because".
    """
    model.eval()
    try:
        stack, blocks = find_blocks(model)
    except CheckpointError:
        return "this architecture has no stack of blocks"
    order: list[tuple[nn.Module, Any, Any]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, given, output: order.append((module, (args, given), output)), with_kwargs=True)
        for module in model.modules()
    ]
    try:
        plain = model(**arguments).logits.detach()
    finally:
        for hook in hooks:
            hook.remove()
    ran = {id(module): (given, output) for module, given, output in order}
    in_order = [module for module, _, _ in order if any(module is block for block in blocks)]
    if [id(block) for block in blocks] != [id(module) for module in in_order]:
        return "its blocks do not run one after another"
    frozen = []
    for block in blocks:
        hidden = _first(ran[id(block)][1])
        if hidden is None or hidden.requires_grad:
            break
        frozen.append(block)
    if not frozen:
        return "something trains before its first block ends"
    first_input = _first(ran[id(blocks[0])][0])
    inside = {id(module) for module in blocks.modules()}
    stem = [module for module, _, output in order if id(module) not in inside and _first(output) is first_input is not None]
    # The last to end is the outermost.
    modules = [*stem[-1:], *frozen]
    prefix = FrozenPrefix(model, f"{stack}:{len(frozen)}", modules, [_filled(ran[id(module)][1], torch.empty(0)) for module in modules])
    hidden = prefix.compute(arguments).detach()
    if "attention_mask" in arguments and hidden.shape[:2] != arguments["attention_mask"].shape:
        return "its blocks see other tokens than it is given"
    if len(frozen) == len(blocks) and hidden.ndim == 3:
        prefix.first_only = _reads_first_only(prefix, arguments, hidden)
    return prefix if _replays(prefix, arguments, plain) else "replaying its blocks gave other logits"


def keep_rows(hidden: torch.Tensor, arguments: Mapping[str, torch.Tensor], first_only: bool) -> list[torch.Tensor]:
    """Give what is kept of each row's hidden states: of a text its real tokens, (L, D), or the first, (1, D); of an image all, (...)."""
    mask = arguments.get("attention_mask")
    if mask is None or first_only:
        return list(hidden)
    return [row[:length] for row, length in zip(hidden, mask.sum(1).tolist(), strict=True)]


def replay_arguments(stubs: Mapping[str, torch.Tensor], rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the forward arguments of a replay.

    Args:
        stubs: From `stub_arguments`.
        rows: What was kept of each row, (B,).
    """
    return {**stubs, PREFIX: pad_sequence(list(rows), batch_first=True)}


def stub_arguments(arguments: Mapping[str, torch.Tensor], first_only: bool) -> dict[str, torch.Tensor]:
    """Give the forward arguments that a replay still looks at: of images nothing, of texts the tokens replayed."""
    return {
        name: tensor.new_zeros(*tensor.shape[:2], 1, 1) if tensor.ndim == 4 else tensor[:, :1] if first_only else tensor
        for name, tensor in arguments.items()
    }


def _reads_first_only(prefix: FrozenPrefix, arguments: Mapping[str, torch.Tensor], hidden: torch.Tensor) -> bool:
    """Say whether no logit moves with any token but the first."""
    hidden = hidden.clone().requires_grad_()
    with prefix.replayed():
        logits = prefix.model(**stub_arguments(arguments, False), **{PREFIX: hidden}).logits
    (slope,) = torch.autograd.grad(logits.float().square().sum(), hidden)
    # Where the output layer is 0, no token moves anything yet.
    return hidden.shape[1] > 1 and bool(slope[:, :1].any()) and not slope[:, 1:].any()


def _replays(prefix: FrozenPrefix, arguments: Mapping[str, torch.Tensor], plain: torch.Tensor) -> bool:
    with torch.no_grad():
        hidden = prefix.compute(arguments)
        with prefix.replayed():
            try:
                rows = keep_rows(hidden, arguments, prefix.first_only)
                logits = prefix.model(**replay_arguments(stub_arguments(arguments, prefix.first_only), rows)).logits
            except (RuntimeError, ValueError, IndexError, AttributeError, TypeError, AssertionError):
                return False
    if logits.shape != plain.shape:
        return False
    # Nobody reads what a token classifier says of padding.
    is_read = arguments["attention_mask"].bool() if plain.ndim == 3 else slice(None)
    logits, plain = logits[is_read], plain[is_read]
    return bool((logits - plain).abs().max() <= TOLERANCE * plain.abs().max().clamp(min=1))


def _first(value: Any) -> torch.Tensor | None:
    """Give the first tensor of a module's output or arguments."""
    if isinstance(value, torch.Tensor):
        return value
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return next((found for inner in values if (found := _first(inner)) is not None), None)


def _filled(template: Any, hidden: torch.Tensor) -> Any:
    """Give an output of the same structure with hidden states in the place of its tensors."""
    if isinstance(template, torch.Tensor):
        return hidden
    if type(template) in (tuple, list):
        return type(template)(_filled(inner, hidden) for inner in template)
    if isinstance(template, MutableMapping):
        filled = copy.copy(template)
        for name in template:
            filled[name] = _filled(template[name], hidden)
        return filled
    return template
