"""Models whose parameters are shared out among the processes: FSDP2 (`torch.distributed.fsdp.fully_shard`), through Accelerate.

Whether a run shards is Accelerate's own configuration: `accelerate launch --use_fsdp --fsdp_version 2`, or what `accelerate config` wrote.
A process holds a piece of every parameter, its gradient and its optimizer's state (a `DTensor`), and gathers a block's parameters while
that block runs. So a forward is a joint act of all processes: each must run as many of them as the others.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_transfer.errors import CheckpointError, ConfigError
from hf_transfer.models.tuning import find_blocks, trainable_batch_norms


def check_sharding(accelerator: Accelerator) -> None:
    """Refuse an FSDP configuration that would not do what it says, and let every process load the checkpoint itself.

    Raises:
        ConfigError: It asks for what this project does not support, or for a device that Accelerate does not shard on.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.device.type == "cpu" and not accelerator.is_fsdp2:
        raise ConfigError("Accelerate shards on GPUs only, found a CPU, where it passes FSDP over in silence: launch without --use_fsdp")
    if not accelerator.is_fsdp2:
        return
    plugin = accelerator.state.fsdp_plugin
    refused = {
        "fsdp_offload_params": (type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy", "leave it out"),
        "fsdp_activation_checkpointing": (plugin.activation_checkpointing, "take --activation-checkpointing"),
        "parallelism_config": (accelerator.parallelism_config is not None, "leave it out"),
        "precision fp16": (accelerator.mixed_precision == "fp16", "take auto, bf16 or fp32"),
    }
    for name, (is_asked, remedy) in refused.items():
        if is_asked:
            raise ConfigError(f"{name} is not supported with FSDP2: {remedy}")
    # Otherwise transformers leaves the weights of all processes but the first empty, and they are looked at before they are shared out.
    plugin.cpu_ram_efficient_loading = False
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    # Precision is autocast's, as on one process; the policy would round norms and gradients to it, too.
    plugin.mixed_precision_policy = None


def check_shardable(model: nn.Module, accelerator: Accelerator) -> None:
    """Refuse a model that this run would shard and cannot.

    Args:
        model: Built for training, what trains marked; it may be without its memory.
        accelerator: Says whether it would.

    Raises:
        CheckpointError: Batch norms train, or modules share a parameter.
    """
    if not accelerator.is_fsdp2:
        return
    if trainable_batch_norms(model):
        raise CheckpointError("an arm that trains batch norms cannot be sharded: take arm head or lora, or launch without --use_fsdp")
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(parameter), name)) != name:
            raise CheckpointError(f"this architecture cannot be sharded, {other} and {name} are one parameter: launch without --use_fsdp")


def prepare(model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> tuple[nn.Module, Any]:
    """Let Accelerate prepare a model and its optimizer; where it shards, each block of the model's stack is gathered by itself.

    The blocks are found in the model, and not by the class names of the configuration: the default (`_no_split_modules`) holds the
    embeddings of BERT, RoBERTa, ModernBERT and ViT, which Accelerate 1.15 shards once more and fails.
    """
    if accelerator.is_fsdp2:
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        plugin = accelerator.state.fsdp_plugin
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = _block_classes(model)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    return prepared, prepared_optimizer


def _block_classes(model: nn.Module) -> list[str]:
    try:
        return sorted({type(block).__name__ for block in find_blocks(model)[1]})
    except CheckpointError:
        # Without a stack the model is gathered as a whole.
        return []


def is_sharded(model: nn.Module) -> bool:
    """Say whether a model, or a module of it, is sharded."""
    # An `FSDPModule`, whose own module is slow to import.
    return hasattr(model, "set_requires_gradient_sync")


def reshard(model: nn.Module) -> None:
    """Drop what a forward without a backward left gathered: it would not see that the shards change."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Give the shard of a tensor that this process holds, in the same memory; a tensor that is not sharded as it is."""
    return tensor.detach().to_local() if _is_dtensor(tensor) else tensor.detach()


def shard_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give the shard of a whole tensor that this process holds where it is shared out like another; the tensor where that is not."""
    return local(shard(whole, like)) if _is_dtensor(like) else whole


def shard(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Share out a whole tensor that every process holds, like another of its shape; one that is not sharded only moves to its device."""
    if not _is_dtensor(like):
        return whole.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    # Nothing is sent: each process cuts out its own.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather(shard: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give a whole tensor from its shards, by all processes together; on the main process's CPU, the others get an empty one.

    Args:
        shard: This process's, as of `local`.
        like: A tensor that is shared out so; where it is not sharded, `shard` is whole and given back.
    """
    if not _is_dtensor(like):
        return shard
    from torch.distributed.tensor import DTensor

    placed = shard.to(local(like).device)
    mesh, placements = like.device_mesh, like.placements
    whole = DTensor.from_local(placed, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()).full_tensor()
    return whole.cpu() if torch.distributed.get_rank() == 0 else whole.new_empty(0, device="cpu")


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Give the weights of a sharded model, gathered as of `gather`; None where it is not sharded, and holds them itself."""
    if not is_sharded(model):
        return None
    return {name: gather(local(tensor), tensor) for name, tensor in model.state_dict().items()}


def _is_dtensor(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
