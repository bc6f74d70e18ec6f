"""The memory model against the definition: what a forward keeps for its backward."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hf_transfer as ht
from hf_transfer.evidence.arms import build_arm, estimate_arm
from hf_transfer.models.build import inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.memory import TRANSIENT_TENSORS, estimate_memory
from hf_transfer.tasks import text_classification


class Stack(nn.Module):
    """Two Linears and a ReLU with dropout before each, of width D: what they keep can be counted by hand."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(torch.relu(self.first(rows))))


def losses(model: Stack, tokens: int) -> Callable[[int], torch.Tensor]:
    return lambda num_rows: model(torch.zeros(num_rows, tokens, model.width)).sum()


@pytest.mark.parametrize("on_gpu", [True, False])
def test_what_two_linears_keep(on_gpu: bool) -> None:
    model = Stack().train()
    found = estimate_memory(model, losses(model, 10), 10, "adamw", on_gpu=on_gpu)
    parameters = 2 * (64 * 64 + 64)
    assert (found.weights, found.gradients, found.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
    element = 10 * 64
    # The input and the ReLU's output; behind dropout, on a GPU a mask of a byte an element, on a CPU one as wide as the numbers and
    # its product.
    mask = 1 if on_gpu else 2 * 4
    assert found.activations_per_row == (2 * 4 + mask + TRANSIENT_TENSORS * 4) * element
    assert found.total(100) == 16 * parameters + 10 * found.activations_per_row
    assert found.total(100, max_rows=3) == 16 * parameters + 3 * found.activations_per_row, "no more rows than an update has"
    assert found.total(5) == 16 * parameters + found.activations_per_row, "a row longer than the micro-batch stands alone"
    assert model.training
    assert model.dropout.training


def test_what_is_frozen_takes_no_gradient_and_keeps_nothing_below() -> None:
    model = Stack().eval()
    model.first.requires_grad_(False)
    whole = Stack().eval()
    full = estimate_memory(whole, losses(whole, 10), 10, "sgd", on_gpu=False)
    found = estimate_memory(model, losses(model, 10), 10, "sgd", on_gpu=False)
    trainable = 64 * 64 + 64
    assert (found.gradients, found.optimizer) == (4 * trainable, 4 * trainable)
    assert found.weights == full.weights
    assert found.activations_per_row < full.activations_per_row


def test_computing_again_takes_less_memory_on_a_gpu_too(tiny_bert: Path) -> None:
    accelerator = SimpleNamespace(device=torch.device("cuda"), mixed_precision="no")
    checkpoint = open_checkpoint(str(tiny_bert), text_classification.load_processor)
    architecture = inspect(checkpoint, text_classification.AUTO_MODEL, ["a", "b"])
    collate = functools.partial(text_classification.collate, processor=checkpoint.processor)
    kept = []
    for checkpointing in (False, True):
        model = build_arm(architecture, ht.Arm(learning_rate=1e-3, num_epochs=1), 0, "SEQ_CLS")
        training = ht.TrainingConfig(activation_checkpointing=checkpointing)
        task = ht.TextClassification(max_length=32)
        kept.append(estimate_arm(model, task, architecture, collate, training, accelerator).activations_per_row)
    assert kept[1] < kept[0]
