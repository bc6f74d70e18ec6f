"""The others, as their own documentation uses them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments, get_scheduler
from transformers.trainer_callback import PrinterCallback

from cases import BATCH_SIZE
from hf_transfer.evidence.study import Rows
from hf_transfer.models.build import quiet_loading
from hf_transfer.models.tuning import find_head_modules, quiet_peft
from hf_transfer.recipe import Arm
from material import Ground
from measure import Job

TRAINER_SETTINGS: dict[str, dict[str, Any]] = {
    "trainer": {},
    "trainer-bf16": {"bf16": True},
    "trainer-bf16-grouped": {"bf16": True, "train_sampling_strategy": "group_by_length"},
}


def build_model(ground: Ground, arm: Arm, seed: int, attention: str | None = None) -> nn.Module:
    """Build what transformers and PEFT make of the checkpoint under an arm's tuning, new parameters drawn as on our side.

    Args:
        ground: What the case works on.
        arm: Its settings.
        seed: Draws new parameters.
        attention: Implementation; None = the library's own choice.
    """
    architecture = ground.study.architecture
    torch.manual_seed(seed)
    with quiet_loading():
        model = AutoModelForSequenceClassification.from_pretrained(
            architecture.checkpoint.folder, num_labels=len(ground.study.labels), dtype=torch.float32, attn_implementation=attention
        )
    if arm.tuning == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in architecture.head)
    if arm.tuning != "lora":
        return model
    head = find_head_modules(model, architecture.head)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=arm.lora.r,
        lora_alpha=arm.lora.lora_alpha,
        lora_dropout=arm.lora.lora_dropout,
        target_modules=arm.lora.target_modules,
        modules_to_save=head,
        exclude_modules=rf"({'|'.join(map(re.escape, head))})(\..+)?",
    )
    torch.manual_seed(seed)
    with quiet_peft():
        return get_peft_model(model, config)


def prepare_training(peer: str, ground: Ground, arm: Arm, rows: Rows, seed: int, folder: Path) -> Job:
    """Build a peer's model, data and, where it has one, its trainer; arguments as on our side."""
    make = _prepare_loop if peer == "accelerate-bf16" else _prepare_trainer
    return make(peer, ground, arm, rows, seed, folder)


def prepare_prediction(classify: Any, texts: Sequence[str], max_length: int, answers: list[Any]) -> Job:
    """Give the job that predicts texts, tokenisation included, and leaves its answers in a list."""

    def run() -> None:
        answers.extend(classify(list(texts), batch_size=BATCH_SIZE, truncation=True, max_length=max_length))

    return Job(classify.model, run)


def _prepare_trainer(peer: str, ground: Ground, arm: Arm, rows: Rows, seed: int, folder: Path) -> Job:
    settings = ground.study.recipe.training
    model = build_model(ground, arm, seed)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=arm.num_epochs,
        learning_rate=arm.learning_rate,
        weight_decay=arm.weight_decay,
        warmup_steps=settings.warmup_fraction,
        seed=seed,
        use_cpu=ground.device == "cpu",
        # Means something on a GPU alone, and warns elsewhere.
        dataloader_pin_memory=ground.device != "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **TRAINER_SETTINGS[peer],
    )
    collator = DataCollatorWithPadding(ground.study.architecture.checkpoint.processor)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=ground.as_dataset(rows))
    trainer.remove_callback(PrinterCallback)
    return Job(model, trainer.train)


def _prepare_loop(peer: str, ground: Ground, arm: Arm, rows: Rows, seed: int, folder: Path) -> Job:
    """Follow transformers' run_glue_no_trainer.py: padded to the batch's longest, in eights under mixed precision; AdamW; no clipping."""
    settings = ground.study.recipe.training
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=ground.device == "cpu")
    model = build_model(ground, arm, seed)
    dataset = ground.as_dataset(rows)
    collator = DataCollatorWithPadding(ground.study.architecture.checkpoint.processor, pad_to_multiple_of=8)

    def run() -> None:
        loader = DataLoader(dataset, shuffle=True, collate_fn=collator, batch_size=settings.batch_size)
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (others if "bias" in name or "LayerNorm.weight" in name else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": arm.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=arm.learning_rate)
        num_updates = arm.num_epochs * len(loader)
        num_warmup = round(settings.warmup_fraction * num_updates)
        scheduler = get_scheduler("linear", optimizer, num_warmup_steps=num_warmup, num_training_steps=num_updates)
        prepared, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
        for _ in range(arm.num_epochs):
            prepared.train()
            for batch in loader:
                accelerator.backward(prepared(**batch).loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    return Job(model, run)
