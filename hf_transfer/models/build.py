"""A checkpoint's architecture with the data's labels on it: pretrained or from scratch, its head found structurally."""

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from hf_transfer.errors import CheckpointError, first_line
from hf_transfer.models.checkpoint import Checkpoint
from hf_transfer.models.pooling import (
    MEAN,
    can_pool,
    find_pooler,
    has_pooling_block,
    pools_the_mean,
    read_pooling,
    with_pooling_block,
    without_pooling_block,
    write_pooling_block,
)

GENERIC_LABEL = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, eq=False)
class Architecture:
    """What every arm of a run shares: config and the names of the head's parameters."""

    checkpoint: Checkpoint
    auto_model: Any
    """transformers' `AutoModelFor...` class of the task."""
    config: PretrainedConfig
    output_layer: frozenset[str]
    """Parameters whose shape follows the number of labels."""
    head: frozenset[str]
    """Parameters the checkpoint does not hold or never trained, and the output layer."""
    untrained: frozenset[str] = frozenset()
    """The part of the head that the checkpoint holds but never trained: a sentence encoder's pooler."""
    pooling: str | None = None
    """"mean" where a block that pools was added behind the last."""
    fixed: frozenset[str] = frozenset()
    """The parameters of that block, which train under no tuning."""
    has_output_layer: bool = False
    """The checkpoint holds an output layer for as many labels."""


def inspect(
    checkpoint: Checkpoint, auto_model: Any, labels: Sequence[str], dropout: float | None = None, reads_texts_whole: bool = False
) -> Architecture:
    """Find out which parameters of the task's model are its head.

    The output layer is what changes shape in a twin with one label more; the rest of the head is what the loader reports as missing
    or mismatched and, in a sentence encoder, what its last hidden states do not depend on. Nothing is guessed by name.

    Args:
        checkpoint: Where the weights come from.
        auto_model: `AutoModelForSequenceClassification` or its like.
        labels: Label names, (C,).
        dropout: Replaces every dropout probability in the config; None keeps the checkpoint's own.
        reads_texts_whole: The task has one label for all tokens, so a sentence encoder's own pooling is of use to it.

    Raises:
        CheckpointError: The architecture has no model for the task, or the weights cannot be loaded.
    """
    config = labelled_config(checkpoint.config, labels, dropout)
    if reads_texts_whole and (read_pooling(checkpoint.folder) is not None or has_pooling_block(checkpoint.folder)):
        return _inspect_sentence_encoder(checkpoint, auto_model, config)
    return _inspect(checkpoint, auto_model, without_pooling_block(config, checkpoint.folder))


def build_model(architecture: Architecture, init: str, seed: int, keep_head: bool = False) -> nn.Module:
    """Build the model in fp32, every new parameter drawn from `seed`.

    The output layer starts anew unless the checkpoint's label names are the data's (or `keep_head` says so): a source with as many
    classes, or with generic names, must not be mistaken for the target.

    Args:
        architecture: From `inspect`.
        init: "pretrained" or "scratch".
        seed: Draws new parameters.
        keep_head: Keep the checkpoint's output layer whatever its labels are called.

    Raises:
        CheckpointError: `keep_head`, and the checkpoint's output layer has another size or is not there.
    """
    model = _build(architecture, init, seed, keep_head)
    if architecture.pooling == MEAN:
        write_pooling_block(model)
    return model


def _build(architecture: Architecture, init: str, seed: int, keep_head: bool) -> nn.Module:
    torch.manual_seed(seed)
    if init == "scratch":
        return _from_config(architecture.auto_model, architecture.config)
    checkpoint = architecture.checkpoint
    model, info = _load(checkpoint, architecture.auto_model, architecture.config)
    new = frozenset(info["missing_keys"]) | _names(info["mismatched_keys"])
    loaded = architecture.output_layer - new
    if keep_head and loaded != architecture.output_layer:
        raise CheckpointError(
            f"keep_head: checkpoint {checkpoint.name} has no output layer for {architecture.config.num_labels} labels to keep"
        )
    renewed = architecture.untrained
    if loaded and not keep_head and not same_labels(checkpoint.config, architecture.config):
        renewed |= architecture.output_layer
    if renewed:
        fresh = _drawn_head(architecture, seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in renewed:
                    parameter.copy_(fresh[name])
    return model


@functools.lru_cache(maxsize=1)
def _drawn_head(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Give the head that a model from scratch gets, for which the whole model must be drawn: the arms of one seed share it."""
    torch.manual_seed(seed)
    drawn = _from_config(architecture.auto_model, architecture.config).named_parameters()
    return {name: parameter.detach().clone() for name, parameter in drawn if name in architecture.head}


def build_meta_model(architecture: Architecture) -> nn.Module:
    """Build the model without memory for its parameters, to ask what it looks like."""
    with torch.device("meta"):
        return _from_config(architecture.auto_model, architecture.config)


def labelled_config(config: PretrainedConfig, labels: Sequence[str], dropout: float | None = None) -> PretrainedConfig:
    """Give a copy of a config with the data's labels on it and, where `dropout` is given, that probability for every dropout."""
    config = deepcopy(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    config.problem_type = None
    if dropout is not None:
        for key, value in config.to_dict().items():
            if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, (int, float)) and not isinstance(value, bool):
                setattr(config, key, dropout)
    return config


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Give (trainable, total) numbers of parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' progress bars and load reports: which parameters are new is ours to say."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _inspect(checkpoint: Checkpoint, auto_model: Any, config: PretrainedConfig) -> Architecture:
    output_layer = _output_layer(checkpoint, auto_model, config)
    _, info = _load(checkpoint, auto_model, config)
    new = frozenset(info["missing_keys"]) | _names(info["mismatched_keys"])
    return Architecture(checkpoint, auto_model, config, output_layer, new | output_layer, has_output_layer=not output_layer & new)


def _inspect_sentence_encoder(checkpoint: Checkpoint, auto_model: Any, config: PretrainedConfig) -> Architecture:
    """Count the untrained pooler as head and, where the encoder was trained through the mean of its tokens, add a block that pools so."""
    found = _inspect(checkpoint, auto_model, config)
    if config.is_encoder_decoder:
        return found
    model, _ = _load(checkpoint, auto_model, config)
    ids = torch.tensor([checkpoint.processor("a text to try it on")["input_ids"]])
    pools_already = has_pooling_block(checkpoint.folder)
    if not pools_already:
        untrained = find_pooler(model, ids) - found.head
        found = replace(found, head=found.head | untrained, untrained=untrained)
    if not can_pool(model) or not (pools_already or read_pooling(checkpoint.folder) == MEAN):
        return found
    deeper = with_pooling_block(config, checkpoint.folder)
    model, _ = _load(checkpoint, auto_model, deeper)
    fixed = write_pooling_block(model)
    return replace(found, config=deeper, pooling=MEAN, fixed=fixed) if pools_the_mean(model.eval(), ids) else found


def _output_layer(checkpoint: Checkpoint, auto_model: Any, config: PretrainedConfig) -> frozenset[str]:
    names = [config.id2label[index] for index in sorted(config.id2label)]
    shapes = [_parameter_shapes(auto_model, labelled_config(config, labels), checkpoint.name) for labels in (names, [*names, "one more"])]
    return frozenset(name for name, shape in shapes[0].items() if shapes[1].get(name) != shape)


def _parameter_shapes(auto_model: Any, config: PretrainedConfig, name: str) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            return {key: parameter.shape for key, parameter in _from_config(auto_model, config).named_parameters()}
    except ValueError as error:
        raise CheckpointError(f"checkpoint {name} (model type {config.model_type}) cannot do this task: {first_line(error)}") from None


def _from_config(auto_model: Any, config: PretrainedConfig) -> nn.Module:
    # dtype would follow the checkpoint otherwise: an fp16 checkpoint gives fp16 scratch models.
    with quiet_loading():
        return auto_model.from_config(deepcopy(config), dtype=torch.float32, trust_remote_code=False)


def _load(checkpoint: Checkpoint, auto_model: Any, config: PretrainedConfig) -> tuple[nn.Module, dict[str, Any]]:
    with loading(checkpoint.name):
        return auto_model.from_pretrained(
            checkpoint.folder,
            config=deepcopy(config),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Load a checkpoint's weights in the block, without what transformers tells of it.

    Raises:
        CheckpointError: They cannot be loaded.
    """
    try:
        with quiet_loading():
            yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, SafetensorError) as error:
        # A config that says what cannot be meant shows in any of these, deep in transformers or PEFT.
        raise CheckpointError(f"cannot load the weights of checkpoint {name}: {first_line(error)}") from error


def _names(mismatched: Any) -> frozenset[str]:
    """Give the names among the loader's mismatched keys, which come as (name, shape, shape)."""
    return frozenset(key if isinstance(key, str) else key[0] for key in mismatched)


def same_labels(source: PretrainedConfig, target: PretrainedConfig) -> bool:
    """Say whether two configs name the same classes in the same order; names that a library made up are none."""
    names = [source.id2label[index] for index in sorted(source.id2label)]
    return names == [target.id2label[index] for index in sorted(target.id2label)] and not any(
        GENERIC_LABEL.fullmatch(name) for name in names
    )
