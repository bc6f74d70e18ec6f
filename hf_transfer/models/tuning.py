"""Which parameters of a model train: full, head, top or LoRA; and modes in which frozen means frozen."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
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
    peft_task_type: str | None,
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
    """Find the stack of blocks: the outermost `ModuleList` of two or more that holds most parameters, the deeper of equals.

    Of an encoder and a decoder as deep that is the decoder, which attends to both; where stages are stacks themselves (Swin, MobileViT), a
    block is a stage.

    Returns:
        Its full name and the list.

    Raises:
        CheckpointError: There is none.
    """
    stacks: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer, _ in stacks)
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not is_inside:
            stacks.append((name, module))
    if not stacks:
        raise CheckpointError(
            "tuning 'top', layer_decay, gradual_unfreezing and compile need a stack of blocks, this architecture has none: take "
            "tuning 'head' or 'full' without them"
        )
    return max(reversed(stacks), key=lambda stack: sum(parameter.numel() for parameter in stack[1].parameters()))


def depths_of(model: nn.Module, head: frozenset[str]) -> dict[str, int]:
    """Give each parameter's depth: 0 before the blocks (embeddings), 1 for the first block, and one more than the last for what follows.

    Args:
        model: Built for training, adapters included.
        head: Names of the head's parameters, which are deepest wherever they lie.

    Raises:
        CheckpointError: The architecture has no stack of blocks.
    """
    prefix, blocks = find_blocks(model)
    depths = {}
    reached = 0
    for name, _ in model.named_parameters():
        if name.startswith(f"{prefix}."):
            reached = 1 + int(name.removeprefix(f"{prefix}.").partition(".")[0])
        # What comes behind the last block in the model's own order follows it.
        elif reached:
            reached = len(blocks) + 1
        depths[name] = len(blocks) + 1 if plain_name(name) in head else reached
    return depths


def plain_name(name: str) -> str:
    """Give a parameter's name as it is without adapters."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")


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


def check_blocks(model: nn.Module, activation_checkpointing: bool, compiled: bool) -> None:
    """Refuse what `prepare_blocks` cannot do with a model.

    Raises:
        CheckpointError: The architecture has no activation checkpointing, or no stack of blocks.
    """
    if activation_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise CheckpointError("this architecture has no activation checkpointing: leave training.activation_checkpointing out")
    if compiled:
        find_blocks(model)


def prepare_blocks(model: nn.Module, activation_checkpointing: bool, compiled: bool) -> None:
    """Let the blocks that train keep less for their backward, or run compiled.

    Args:
        model: Built for training, adapters included.
        activation_checkpointing: Keep what enters a block, compute the rest again in the backward (Chen et al. 2016,
            https://arxiv.org/abs/1604.06174).
        compiled: Compile each block by itself, for rows of any length.

    """
    if activation_checkpointing:
        # The reentrant kind gives no gradients behind a frozen input.
        model.activation_checkpointing_enable({"use_reentrant": False})
    if compiled:
        for block in find_blocks(model)[1]:
            if any(parameter.requires_grad for parameter in block.parameters()):
                block.compile(dynamic=True)


def trainable_batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Give the batch norms whose scale or shift trains, by full name: they see the rows of a micro-batch together."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and any(parameter.requires_grad for parameter in module.parameters())
    }


def batch_norm_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Give the running statistics that a training moves, by full name: those of trainable batch norms."""
    return {f"{name}.{key}": buffer for name, module in trainable_batch_norms(model).items() for key, buffer in module.named_buffers()}


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


def _add_lora(model: nn.Module, head: frozenset[str], lora: LoRA, peft_task_type: str | None, fixed: frozenset[str]) -> nn.Module:
    """Wrap a model with adapters outside the head and save the head's modules whole.

    PEFT's own defaults put adapters on the random classifier, or refuse: so the head's modules go into `modules_to_save` and, as a
    regular expression, into `exclude_modules`.

    Raises:
        CheckpointError: A target matches nothing, or PEFT would train other whole modules than the head.
    """
    from peft import LoraConfig, get_peft_model

    head_modules = find_head_modules(model, head)
    untouched = [*head_modules, *find_head_modules(model, fixed)]
    excluded = rf"({'|'.join(re.escape(name) for name in untouched)})(\..+)?"
    targets = _targets(model, lora.target_modules, excluded)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
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
    saved = {plain_name(name) for name in whole}
    if saved != head or len(whole) != len(head):
        raise CheckpointError(
            f"LoRA cannot keep the head of this architecture apart: expected {listed(sorted(head))} to train whole, PEFT trains "
            f"{listed(sorted(saved))}; leave the arm out"
        )
    # PEFT appends `classifier` and `score`, whether the model has them or not.
    adapted.peft_config["default"].modules_to_save = head_modules
    return show_convolutions(adapted)


def show_convolutions(adapted: nn.Module) -> nn.Module:
    """Show the shape of adapted convolutions on their wrappers, where some architectures (MobileNet) read it for their padding."""
    for module in adapted.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Conv2d):
            for name in ("stride", "kernel_size", "dilation", "padding"):
                setattr(module, name, getattr(base, name))
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


def _targets(model: nn.Module, targets: str | list[str], excluded: str) -> str | list[str]:
    """Give PEFT the modules to adapt; a backbone without any Linear has its convolutions adapted, those without groups.

    PEFT ignores one of several targets silently where it matches nothing, and has no low-rank form of a grouped convolution.

    Raises:
        CheckpointError: Names the first target without a match.
    """
    outside = {name: module for name, module in model.named_modules() if name and not re.fullmatch(excluded, name)}
    if targets == ALL_LINEAR:
        if any(isinstance(module, nn.Linear) for module in outside.values()):
            return targets
        convolutions = [name for name, module in outside.items() if isinstance(module, nn.Conv2d) and module.groups == 1]
        if not convolutions:
            raise CheckpointError(
                "this architecture has neither a Linear nor an ungrouped Conv2d outside its head for LoRA to adapt: leave the arm out"
            )
        return convolutions
    try:
        re.compile(targets if isinstance(targets, str) else "")
    except re.error as error:
        raise CheckpointError(
            f"LoRA target_modules: '{targets}' is no regular expression ({error}): name modules in a list instead"
        ) from None
    # What can be adapted, and what it is called where a target matches nothing.
    kind = next((kind for kind in (nn.Linear, nn.Conv2d) if any(isinstance(module, kind) for module in outside.values())), nn.Linear)
    leaves = sorted({name.rpartition(".")[2] for name, module in outside.items() if isinstance(module, kind)})
    called = f"{kind.__name__} modules are called {listed(leaves)}"
    if not targets:
        raise CheckpointError(f"LoRA target_modules is empty: name modules ({called}) or '{ALL_LINEAR}'")
    for target in [targets] if isinstance(targets, str) else targets:
        matched = [name for name in outside if _matches(target, name, is_pattern=isinstance(targets, str))]
        if not matched:
            raise CheckpointError(
                f"LoRA target_modules: '{target}' matches no module outside the head; {called}{did_you_mean(target, leaves)}"
            )
        if grouped := [name for name in matched if isinstance(outside[name], nn.Conv2d) and outside[name].groups > 1]:
            raise CheckpointError(
                f"LoRA target_modules: '{target}' matches the grouped convolution {grouped[0]}, whose adapter could not be merged: name "
                "ungrouped ones"
            )
    return targets


def _matches(target: str, name: str, is_pattern: bool) -> bool:
    return re.fullmatch(target, name) is not None if is_pattern else name == target or name.endswith(f".{target}")
