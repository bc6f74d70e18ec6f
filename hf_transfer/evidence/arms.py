"""What an arm is on an architecture: its model, what that model can and cannot do, and the memory its training takes."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator

from hf_transfer.errors import ConfigError, listed
from hf_transfer.evaluation.prediction import Collate
from hf_transfer.models.build import Architecture, build_meta_model, build_model
from hf_transfer.models.cpu_kernels import cpu_kernels
from hf_transfer.models.memory import MemoryEstimate, estimate_memory
from hf_transfer.models.tuning import apply_tuning, check_blocks, depths_of, prepare_blocks, set_training_mode
from hf_transfer.recipe import Arm, Recipe, TrainingConfig
from hf_transfer.task_configs import Task
from hf_transfer.tasks import functions_of
from hf_transfer.tasks.items import item_losses

MIN_ROWS_TO_NORM = 2
"""Rows of a micro-batch below which a batch norm has no variance to divide by."""


def build_arm(architecture: Architecture, arm: Arm, seed: int, peft_task_type: str | None) -> torch.nn.Module:
    """Build the model of an arm, what trains marked.

    Raises:
        CheckpointError: The architecture cannot do it.
    """
    model = build_model(architecture, arm.init, seed, arm.keep_head)
    torch.manual_seed(seed)
    return apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type, architecture.fixed)


def check_arm(architecture: Architecture, arm: Arm, training: TrainingConfig, peft_task_type: str | None) -> torch.nn.Module:
    """Give the model of an arm without its memory, what trains marked; refuse an arm that the architecture cannot do.

    Raises:
        CheckpointError: Why not.
    """
    if arm.keep_head:
        build_model(architecture, arm.init, 0, keep_head=True)
    model = build_meta_model(architecture)
    model = apply_tuning(model, architecture.head, arm.tuning, arm.num_blocks, arm.lora, peft_task_type, architecture.fixed)
    check_blocks(model, training.activation_checkpointing, training.compile)
    if arm.layer_decay is not None or arm.gradual_unfreezing is not None:
        depths_of(model, architecture.head)
    return model


def check_batch_norm(recipe: Recipe, arms: Sequence[str], accelerator: Accelerator) -> list[str]:
    """Refuse what batch norms that train cannot bear, and tell how they are trained: each process's share of an update at once.

    Their statistics are those of a micro-batch: cut in several, or spread over processes that do not tell each other, it would be another
    model.

    Args:
        recipe: What is trained.
        arms: Names of the arms whose batch norms train.
        accelerator: Devices and processes.

    Raises:
        ConfigError: Processes on CPUs, which cannot share statistics; or too few rows a process.
    """
    num_processes, batch_size = accelerator.num_processes, recipe.training.batch_size
    what = f"arm {listed(arms)} trains batch norms"
    if num_processes > 1 and accelerator.device.type == "cpu":
        raise ConfigError(f"{what}, which torch cannot synchronise over {num_processes} CPU processes: run one, or leave the arm out")
    least = MIN_ROWS_TO_NORM * num_processes
    if batch_size < least:
        raise ConfigError(f"{what}, which need {MIN_ROWS_TO_NORM} rows a process: take a batch_size of {least} or more, found {batch_size}")
    return [f"{what}: each update is one micro-batch, whatever micro_batch_tokens says"]


def augments(arm: Arm) -> bool:
    """Say whether an arm trains on what the task's augmentation makes of its rows."""
    return arm.tuning in ("full", "lora") if arm.augment is None else arm.augment


def describe_augmentation(arms: dict[str, bool]) -> str:
    """Tell which arms (name -> whether) train on augmented images."""
    on, off = ([name for name, augmented in arms.items() if augmented is wanted] for wanted in (True, False))
    if not on:
        return f"training images are not augmented for {listed(off)} (arms.{off[0]}.augment)"
    return f"training images are augmented for {listed(on)}" + (f", not for {listed(off)} (arms.{off[0]}.augment)" if off else "")


def estimate_arm(
    model: torch.nn.Module, task: Task, architecture: Architecture, collate: Collate, training: TrainingConfig, accelerator: Accelerator
) -> MemoryEstimate:
    """Estimate the memory of an arm's training.

    Args:
        model: From `build_arm`, on the CPU; put into its training mode.
        task: Says what a row of the largest size is.
        architecture: Of the model.
        collate: Windows -> forward arguments.
        training: Its optimizer, and whether the backward computes again.
        accelerator: Device and precision.
    """
    functions = functions_of(task)
    set_training_mode(model)
    prepare_blocks(model, training.activation_checkpointing, compiled=False)
    on_gpu = accelerator.device.type != "cpu"
    plain_kernels = on_gpu or training.activation_checkpointing or training.compile
    half = accelerator.mixed_precision != "no"

    def loss_of(num_rows: int) -> torch.Tensor:
        windows = functions.probe_windows(architecture.checkpoint.processor, task, num_rows)
        arguments = collate(windows)
        if "attention_mask" in arguments:
            # As in a real micro-batch, some of it is padding.
            arguments["attention_mask"][:, -1] = 0
        kernels = nullcontext() if plain_kernels else cpu_kernels(accelerator.device)
        with torch.autocast("cpu", torch.bfloat16, enabled=half), kernels:
            logits = functions.item_logits(model(**arguments).logits, windows)
        return item_losses(logits, torch.zeros(len(logits), dtype=torch.long)).sum()

    row_tokens = functions.probe_windows(architecture.checkpoint.processor, task, 1)[0].num_tokens
    # Only in its training mode does a model compute again in the backward; then no block keeps what differs on a GPU.
    return estimate_memory(model, loss_of, row_tokens, training.optimizer, on_gpu=on_gpu and not training.activation_checkpointing)
