"""Only what should train trains, and what is frozen runs as at inference."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from hf_transfer.errors import CheckpointError
from hf_transfer.models.build import Architecture, build_model, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.tuning import apply_tuning, freeze_unused, set_training_mode
from hf_transfer.recipe import LoRA
from hf_transfer.tasks.tokenizers import load_tokenizer

INPUTS = {"input_ids": torch.tensor([[2, 9, 10, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}


@pytest.fixture(scope="module")
def architecture(tiny_bert: Path) -> Architecture:
    return inspect(open_checkpoint(str(tiny_bert), load_tokenizer), AutoModelForSequenceClassification, ["a", "b", "c"])


def tuned(architecture: Architecture, tuning: str, num_blocks: int | None = None, **lora: object) -> nn.Module:
    return apply_tuning(build_model(architecture, "pretrained", 0), architecture.head, tuning, num_blocks, LoRA(**lora), "SEQ_CLS")


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_trains(architecture: Architecture) -> None:
    every = {name for name, _ in build_model(architecture, "scratch", 0).named_parameters()}
    classifier = {"classifier.weight", "classifier.bias"}
    assert trainable(tuned(architecture, "full")) == every
    assert trainable(tuned(architecture, "head")) == classifier
    assert trainable(tuned(architecture, "top", 1)) == classifier | {name for name in every if ".layer.1." in name}
    lora = trainable(tuned(architecture, "lora"))
    adapters = {name for name in lora if ".lora_" in name}
    assert lora - adapters == {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}
    # Six Linear a block and the pooler, two matrices each; none on the classifier.
    assert len(adapters) == 2 * (2 * 6 + 1)
    assert not any("classifier" in name for name in adapters)


def test_lora_starts_as_the_base_model(architecture: Architecture) -> None:
    plain = build_model(architecture, "pretrained", 0).eval()
    for settings in ({}, {"use_dora": True}, {"use_rslora": True}):
        adapted = tuned(architecture, "lora", **settings).eval()
        with torch.no_grad():
            assert torch.allclose(adapted(**INPUTS).logits, plain(**INPUTS).logits, atol=1e-6)


def test_lora_targets_by_name_and_by_pattern(architecture: Architecture) -> None:
    for targets, count in (
        (["query", "value"], 4),
        (r".*layer\.1\..*\.key", 1),
        (["bert.encoder.layer.0.output.dense"], 1),
    ):
        adapters = {name for name in trainable(tuned(architecture, "lora", target_modules=targets)) if ".lora_A" in name}
        assert len(adapters) == count


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["query", "valu"], "'valu' matches no module outside the head; .*did you mean 'value'"),
        (["q_proj"], "'q_proj' matches no module"),
        (["classifier"], "'classifier' matches no module outside the head"),
        (r".*layer\.7.*", "matches no module"),
        ("(", "no regular expression"),
        ([], "target_modules is empty"),
    ],
)
def test_a_target_that_matches_nothing(architecture: Architecture, targets: str | list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tuned(architecture, "lora", target_modules=targets)


def test_more_blocks_than_there_are(architecture: Architecture) -> None:
    with pytest.raises(CheckpointError, match="'top' with 3 blocks: this architecture has 2"):
        tuned(architecture, "top", 3)


def modes(model: nn.Module) -> dict[str, bool]:
    set_training_mode(model)
    return {name: module.training for name, module in model.named_modules() if isinstance(module, nn.Dropout) or "attention.self" in name}


def test_frozen_modules_run_as_at_inference(architecture: Architecture) -> None:
    def training(tuning: str, num_blocks: int | None = None) -> set[str]:
        return {name.replace("base_model.model.", "") for name, on in modes(tuned(architecture, tuning, num_blocks)).items() if on}

    everything = training("full")
    assert "bert.embeddings.dropout" in everything
    assert "bert.encoder.layer.0.attention.self" in everything
    # The classifier's dropout stands before the only thing that trains.
    assert training("head") == set()
    top = training("top", 1)
    assert {name for name in top if ".layer.0." in name or "embeddings" in name} == set()
    assert "bert.encoder.layer.1.attention.self" in top
    assert "dropout" in top
    lora = training("lora")
    assert "bert.embeddings.dropout" not in lora
    assert "bert.encoder.layer.0.attention.self" in lora


def test_frozen_batch_norm_stays_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    set_training_mode(model)
    assert [module.training for module in model] == [True, False, True, True]


def test_what_gets_no_gradient_is_frozen_and_named(architecture: Architecture) -> None:
    model = tuned(architecture, "full")
    assert freeze_unused(model, INPUTS) == []
    model.extra = nn.Linear(2, 2)
    assert freeze_unused(model, INPUTS) == ["extra.bias", "extra.weight"]
    assert not model.extra.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
