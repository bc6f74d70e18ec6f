"""Mean pooling for sentence encoders, in a form that plain transformers reads.

A sentence encoder (its folder holds `1_Pooling`) was trained through the mean of its last hidden states, never through its first token or
its pooler, so a classifier on those starts from something that means little. transformers' heads read the first token. So one block is
added behind the last: its attention looks at every token alike, which puts the mean where the head looks, and its feed-forward part adds
nothing. The block is fixed under every tuning, and a saved model is an ordinary one with a layer more.
"""

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_transfer.disk import read_json
from hf_transfer.errors import CheckpointError, RunFolderError
from hf_transfer.files import SIDECAR_FILE
from hf_transfer.models.tuning import find_blocks

MEAN = "mean"
POOLING_FILE = Path("1_Pooling") / "config.json"
SCALE = 1e4
"""How much the mean outweighs the first token it is added to; the layer norm behind it makes the rest of them equal."""
TOLERANCE = 1e-2
"""Farthest a probe's pooled vector, of entries around 1, may be from the mean."""


def read_pooling(folder: Path) -> str | None:
    """Give how a checkpoint was pooled in its training: "mean", "other", or None where it is no sentence encoder.

    Raises:
        CheckpointError: Its pooling file cannot be read.
    """
    if not (folder / POOLING_FILE).is_file():
        return None
    try:
        settings = dict(read_json(folder / POOLING_FILE))
    except (RunFolderError, ValueError, TypeError):
        raise CheckpointError(f"{folder / POOLING_FILE} is no JSON object: mend it, or remove the folder {POOLING_FILE.parent}") from None
    modes = {key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True}
    return MEAN if modes == {"pooling_mode_mean_tokens"} or settings.get("pooling_mode") == MEAN else "other"


def has_pooling_block(folder: Path) -> bool:
    """Say whether a folder holds a model of ours whose last block pools already."""
    return (folder / SIDECAR_FILE).is_file() and read_json(folder / SIDECAR_FILE).get("pooling") == MEAN


def with_pooling_block(config: PretrainedConfig, folder: Path) -> PretrainedConfig:
    """Give a copy of a config with one block more than its checkpoint's folder holds, unless the last one there pools already."""
    config = copy.deepcopy(config)
    config.num_hidden_layers += not has_pooling_block(folder)
    return config


def without_pooling_block(config: PretrainedConfig, folder: Path) -> PretrainedConfig:
    """Give a copy of a config without the block that pools, where its checkpoint's folder holds one: behind it all tokens are alike."""
    config = copy.deepcopy(config)
    if has_pooling_block(folder):
        config.num_hidden_layers -= 1
    return config


def can_pool(model: nn.Module) -> bool:
    """Say whether a model's blocks are built as BERT's are, so that one of them can be made to pool."""
    return _parts(model) is not None


def write_pooling_block(model: nn.Module) -> frozenset[str]:
    """Make the last block of a BERT-like model put the layer-normed mean of its input where the head looks.

    Args:
        model: One that `can_pool`, with one block more than its checkpoint; changed in place.

    Returns:
        Full names of the block's parameters.
    """
    parts = _parts(model)
    assert parts is not None
    name, block, value, mixed = parts
    with torch.no_grad():
        for linear in block.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.zero_()
                linear.bias.zero_()
        value.weight.copy_(torch.eye(len(value.weight)))
        mixed.weight.copy_(SCALE * torch.eye(len(mixed.weight)))
        for module in block.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, nn.Dropout):
                # A fixed operation drops nothing.
                module.p = 0.0
    return frozenset(f"{name}.{parameter}" for parameter, _ in block.named_parameters())


def pools_the_mean(model: nn.Module, ids: torch.Tensor) -> bool:
    """Say whether the written block does what it should, by a forward of one row and a padded one.

    Args:
        model: The task's model, in eval mode.
        ids: Token ids of a text, (1, L).
    """
    mask = torch.ones(2, ids.shape[1], dtype=torch.long)
    mask[1, -1] = 0
    with torch.no_grad():
        states = model.base_model(input_ids=ids.repeat(2, 1), attention_mask=mask, output_hidden_states=True).hidden_states
    weights = mask[..., None].float()
    mean = (states[-2] * weights).sum(1) / weights.sum(1)
    expected = nn.functional.layer_norm(mean, mean.shape[-1:])
    return bool((states[-1][:, 0] - expected).abs().max() < TOLERANCE)


def find_pooler(model: nn.Module, ids: torch.Tensor) -> frozenset[str]:
    """Find the encoder's parameters that its last hidden states do not depend on: what a sentence encoder's training never touched.

    Args:
        model: The task's model.
        ids: Token ids of a text, (1, L).

    Returns:
        Full names.
    """
    encoder = model.base_model
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.sum().backward()
    reached = {id(parameter) for parameter in encoder.parameters() if parameter.grad is not None}
    inside = {id(parameter) for parameter in encoder.parameters()}
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(gradients[name])
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in inside - reached)


def _parts(model: nn.Module) -> tuple[str, nn.Module, nn.Linear, nn.Linear] | None:
    """Give the last block's full name, the block, and its Linears for values and behind attention; None where it is not built as BERT's."""
    try:
        prefix, blocks = find_blocks(model)
        block = blocks[-1]
        value, mixed = block.attention.self.value, block.attention.output.dense
    except (CheckpointError, AttributeError):
        return None
    num_linears = sum(isinstance(module, nn.Linear) for module in block.modules())
    if num_linears != 6 or value.weight.shape[0] != value.weight.shape[1]:
        return None
    return f"{prefix}.{len(blocks) - 1}", block, value, mixed
