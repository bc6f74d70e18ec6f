"""Which parameters of a model train: full, head, top or LoRA; and modes in which frozen means frozen."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_transfer.errors import CheckpointError, did_you_mean, first_line, listed
from hf_transfer.recipe import LoRA

ALL_LINEAR = "all-linear"


def apply_tuning(
    model: nn.Module,
    head: frozenset[str],
    tuning: str,
    num_blocks: int | None,
    lora: LoRA,
    peft_task_type: str,
    fixed: frozenset[str] = frozenset(),
) -> nn.Module:
    """Freeze what does not train, and add adapters where LoRA asks for them.

    Args:
        model: Built by `build_model`; changed in place.
        head: Names of the head's parameters, which train under every tuning.
        tuning: "full", "head", "top" (the head and the last `num_blocks` blocks) or "lora" (the head and adapters).
        num_blocks: For "top".
        lora: For "lora".
        peft_task_type: PEFT's name of the task, written into the adapter's config.
        fixed: Names of a last block's parameters that train under no tuning.

    Returns:
        The model to train: `model` itself, or its `PeftModel`.

    Raises:
        CheckpointError: The architecture cannot do it: fewer blocks than asked for, or a LoRA target that matches nothing.
    """
    if tuning == "lora":
        return _add_lora(model, head, lora, peft_task_type, fixed)
    trained = {name for name, _ in model.named_parameters()} - fixed if tuning == "full" else set(head)
    if tuning == "top":
        assert num_blocks is not None
        prefix, blocks = find_blocks(model)
        end = len(blocks) - bool(fixed)
        if num_blocks > end:
            raise CheckpointError(f"tuning 'top' with {num_blocks} blocks: this architecture has {end} ({prefix})")
        last = tuple(f"{prefix}.{index}." for index in range(end - num_blocks, end))
        trained |= {name for name, _ in model.named_parameters() if name.startswith(last)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the stack of blocks: the longest `ModuleList` whose members are all of one class, the deeper of equals (a decoder's).

    Returns:
        Its full name and the list.

    Raises:
        CheckpointError: There is none of two or more.
    """
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1
    ]
    if not stacks:
        raise CheckpointError("tuning 'top' needs a stack of like blocks, this architecture has none: take tuning 'head' or 'full'")
    return max(reversed(stacks), key=lambda stack: len(stack[1]))


def set_training_mode(model: nn.Module) -> None:
    """Put the trainable part into train mode and everything before it into eval mode.

    A module trains if it holds a trainable parameter, or if one stands before it in depth (the order of `modules()`); frozen batch
    norms stay in eval mode everywhere, so their running statistics do not move.
    """
    reached = False
    for module in model.modules():
        holds = any(parameter.requires_grad for parameter in module.parameters())
        reached = reached or any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        module.training = holds or (reached and not isinstance(module, _BatchNorm))


def freeze_unused(model: nn.Module, arguments: dict[str, torch.Tensor]) -> list[str]:
    """Freeze trainable parameters that a forward and backward leave without a gradient, as DDP would wait for them forever.

    Args:
        model: Model in any mode.
        arguments: Forward arguments of a row.

    Returns:
        Names of what was frozen, sorted.
    """
    model.eval()
    model(**arguments).logits.float().sum().backward()
    unused = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return sorted(name for name, _ in unused)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence what PEFT 0.21 itself calls and transformers 5.23 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
        yield


def _add_lora(model: nn.Module, head: frozenset[str], lora: LoRA, peft_task_type: str, fixed: frozenset[str]) -> nn.Module:
    """Wrap a model with adapters outside the head and save the head's modules whole.

    PEFT's own defaults put adapters on the random classifier, or refuse: so the head's modules go into `modules_to_save` and, as a
    regular expression, into `exclude_modules`.

    Raises:
        CheckpointError: A target matches nothing, or PEFT would train other whole modules than the head.
    """
    head_modules = find_head_modules(model, head)
    untouched = [*head_modules, *find_head_modules(model, fixed)]
    excluded = rf"({'|'.join(re.escape(name) for name in untouched)})(\..+)?"
    _check_targets(model, lora.target_modules, excluded)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        modules_to_save=head_modules,
        exclude_modules=excluded,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        task_type=peft_task_type,
    )
    try:
        with quiet_peft():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise CheckpointError(f"LoRA cannot adapt target_modules {lora.target_modules}: {first_line(error)}") from None
    whole = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and ".lora_" not in name]
    saved = {name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".") for name in whole}
    if saved != head or len(whole) != len(head):
        raise CheckpointError(
            f"LoRA cannot keep the head of this architecture apart: expected {listed(sorted(head))} to train whole, PEFT trains "
            f"{listed(sorted(saved))}; leave the arm out"
        )
    # PEFT appends `classifier` and `score`, whether the model has them or not.
    adapted.peft_config["default"].modules_to_save = head_modules
    return adapted


def find_head_modules(model: nn.Module, head: frozenset[str]) -> list[str]:
    """Give the fewest modules that hold the head's parameters and no others, by full name, sorted.

    They have to be the outermost: PEFT adds a module called `classifier` to what it saves, and where the head's own modules lie inside
    one (RoBERTa, ELECTRA), both would be wrapped and neither trained.
    """
    whole = [
        name
        for name, module in model.named_modules()
        if name and (inside := {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}) and inside <= head
    ]
    return sorted(name for name in whole if not any(name.startswith(f"{other}.") for other in whole))


def _check_targets(model: nn.Module, targets: str | list[str], excluded: str) -> None:
    """Refuse a target that matches nothing: PEFT ignores one of several silently.

    Raises:
        CheckpointError: Names the first target without a match.
    """
    outside = {name: module for name, module in model.named_modules() if name and not re.fullmatch(excluded, name)}
    if targets == ALL_LINEAR:
        if not any(isinstance(module, nn.Linear) for module in outside.values()):
            raise CheckpointError(
                "this architecture has no Linear outside its head for LoRA to adapt: name target_modules, or leave the arm out"
            )
        return
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        raise CheckpointError(
            f"LoRA target_modules: '{targets}' is no regular expression ({error}): name modules in a list instead"
        ) from None
    leaves = {name.rpartition(".")[2] for name, module in outside.items() if isinstance(module, nn.Linear)}
    for target in [targets] if isinstance(targets, str) else targets:
        if not any(_matches(target, name, is_pattern=isinstance(targets, str)) for name in outside):
            raise CheckpointError(
                f"LoRA target_modules: '{target}' matches no module outside the head; Linear modules are called {listed(sorted(leaves))}"
                f"{did_you_mean(target, leaves)}"
            )
    if not targets:
        raise CheckpointError(f"LoRA target_modules is empty: name modules ({listed(sorted(leaves))}) or '{ALL_LINEAR}'")


def _matches(target: str, name: str, is_pattern: bool) -> bool:
    return re.fullmatch(target, name) is not None if is_pattern else name == target or name.endswith(f".{target}")
