"""Activation checkpointing and compiled blocks: the same training by other means."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers.models.bert.modeling_bert import BertIntermediate

import hf_transfer as ht
from hf_transfer.errors import CheckpointError
from hf_transfer.evidence.arms import build_arm, check_arm
from hf_transfer.models.build import Architecture, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.tuning import check_blocks, find_blocks, prepare_blocks, set_training_mode
from hf_transfer.tasks import functions_of
from hf_transfer.training import accumulation
from tests.conftest import TOPICS, Run, make_rows, refused, save_tiny_bert, save_tiny_resnet

TEXTS, IMAGES = ht.TextClassification(max_length=48), ht.ImageClassification()
ARMS = {
    "full": ht.Arm(learning_rate=2e-3, num_epochs=1),
    "lora": ht.Arm(tuning="lora", learning_rate=2e-3, num_epochs=1),
    "top": ht.Arm(tuning="top", num_blocks=1, learning_rate=2e-3, num_epochs=1),
}
TORCHS_OWN = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning", "ignore:The .grad attribute of:UserWarning")
"""What torch warns of in its own code when it first compiles."""


@pytest.fixture(params=[TEXTS, IMAGES], ids=lambda task: task.kind)
def case(request: pytest.FixtureRequest, tiny_bert: Path, tiny_vit: Path) -> tuple[Any, Path]:
    """Give a task and its tiny checkpoint."""
    return request.param, tiny_bert if request.param is TEXTS else tiny_vit


def look_at(task: Any, folder: Path, dropout: float | None) -> Architecture:
    functions = functions_of(task)
    return inspect(open_checkpoint(str(folder), functions.load_processor), functions.AUTO_MODEL, list(TOPICS), dropout)


def built(task: Any, folder: Path, arm: str, dropout: float, checkpointing: bool) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Give an arm's model in training mode, and its loss on a few rows under a fixed seed."""
    functions, architecture = functions_of(task), look_at(task, folder, dropout)
    model = build_arm(architecture, ARMS[arm], 0, functions.PEFT_TASK_TYPE)
    processor = architecture.checkpoint.processor
    rng = np.random.default_rng(3)
    noise = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(6)]
    inputs = [row["text"] for row in make_rows(6)] if task is TEXTS else functions.to_inputs(noise, task)
    arguments = functions.collate([window for row in functions.encode(processor, inputs, task) for window in row], processor)
    prepare_blocks(model, checkpointing, False)
    set_training_mode(model)

    def loss() -> torch.Tensor:
        torch.manual_seed(11)
        return nn.functional.cross_entropy(model(**arguments).logits, torch.arange(6) % 3)

    return model, loss


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("arm", list(ARMS))
def test_checkpointed_gradients_are_the_same(case: tuple[Any, Path], arm: str, dropout: float) -> None:
    plain, checkpointed = (built(*case, arm, dropout, checkpointing) for checkpointing in (False, True))
    losses = []
    for _, loss_of in (plain, checkpointed):
        loss = loss_of()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    trained = 0
    for (name, expected), (_, found) in zip(plain[0].named_parameters(), checkpointed[0].named_parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), name
        if expected.grad is not None and found.grad is not None:
            trained += 1
            assert (expected.grad - found.grad).abs().max() < 1e-6, name
    assert trained > 4


@pytest.mark.parametrize("arm", list(ARMS))
def test_checkpointing_keeps_less_for_the_backward(case: tuple[Any, Path], arm: str) -> None:
    def kept_bytes(checkpointing: bool) -> int:
        model, loss_of = built(*case, arm, 0.1, checkpointing)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                # Held, so that an address is not used again while we count.
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_of()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    # Where one block trains, what lies behind it counts for more.
    assert kept_bytes(True) < kept_bytes(False) * (0.75 if arm == "top" else 0.5)


def recipe_of(tiny_bert: Path, topics_folder: Path, **training: Any) -> ht.Recipe:
    return ht.Recipe(
        name="topics",
        task=TEXTS,
        data=ht.DataConfig(str(topics_folder)),
        checkpoint=str(tiny_bert),
        arms=ARMS,
        training=ht.TrainingConfig(**({"batch_size": 8, "precision": "fp32", "dropout": 0.0} | training)),
    )


def weights_in(comparison: ht.Comparison) -> dict[str, torch.Tensor]:
    """Give all that a run saved, by cell and name."""
    found = {}
    for cell in comparison.cells():
        for file in (cell / "model").glob("*.safetensors"):
            found |= {f"{cell.relative_to(comparison.folder)} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.fixture(scope="module")
def plain(tiny_bert: Path, topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ht.Comparison:
    """Run every arm, neither checkpointed nor compiled."""
    return ht.run(recipe_of(tiny_bert, topics_folder), arms=list(ARMS), budgets=[30], output_dir=tmp_path_factory.mktemp("plain") / "run")


def test_a_checkpointed_run_trains_the_same_weights(
    plain: ht.Comparison, tiny_bert: Path, topics_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"training": 0, "elsewhere": 0}
    real = BertIntermediate.forward

    def counted(self: nn.Module, *arguments: Any) -> torch.Tensor:
        calls["training" if self.training and torch.is_grad_enabled() else "elsewhere"] += 1
        return real(self, *arguments)

    monkeypatch.setattr(BertIntermediate, "forward", counted)
    recipe = recipe_of(tiny_bert, topics_folder)
    ht.run(recipe, arms=["full"], budgets=[30], output_dir=tmp_path / "counted")
    once = dict(calls)
    calls.update(training=0, elsewhere=0)
    changed = recipe.override({"training.activation_checkpointing": True})
    ht.run(changed, arms=["full"], budgets=[30], output_dir=tmp_path / "twice")
    assert calls == {"training": 2 * once["training"], "elsewhere": once["elsewhere"]}, "again in the backward, and nowhere else"
    monkeypatch.undo()
    checkpointed = ht.run(changed, arms=list(ARMS), budgets=[30], output_dir=tmp_path / "checkpointed")
    assert farthest(weights_in(checkpointed), weights_in(plain)) < 1e-5
    for cell in checkpointed.cells():
        assert "gradient_checkpointing" not in "".join(file.read_text() for file in (cell / "model").glob("*config.json"))


def test_a_checkpointed_run_draws_the_same_masks_again(
    tiny_bert: Path, topics_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own CPU kernels draw other masks the second time, so such a run leaves dropout to torch."""
    recipe = recipe_of(tiny_bert, topics_folder, dropout=0.2)
    changed = recipe.override({"training.activation_checkpointing": True})
    found = ht.run(changed, arms=["full"], budgets=[30], output_dir=tmp_path / "checkpointed")
    monkeypatch.setattr(accumulation, "cpu_kernels", lambda *_: nullcontext())
    expected = ht.run(recipe, arms=["full"], budgets=[30], output_dir=tmp_path / "torch")
    assert farthest(weights_in(found), weights_in(expected)) < 1e-5


def test_an_architecture_without_checkpointing_is_refused_before_training(run: Run, tmp_path: Path, photos_folder: Path) -> None:
    resnet = save_tiny_resnet(tmp_path / "resnet")
    flags = ["--dataset", photos_folder, "--checkpoint", resnet, "--arms", "head", "--activation-checkpointing"]
    message = refused(run("run", "image", *flags))
    assert message == "error: this architecture has no activation checkpointing: leave training.activation_checkpointing out"
    with pytest.raises(CheckpointError, match="no activation checkpointing"):
        check_blocks(nn.Linear(2, 2), True, False)
    check_blocks(nn.Linear(2, 2), False, False)


def test_an_architecture_without_blocks_is_not_compiled(run: Run, tmp_path: Path, topics_folder: Path) -> None:
    folder = save_tiny_bert(tmp_path / "one-block", num_hidden_layers=1)
    training = ht.TrainingConfig(compile=True)
    with pytest.raises(CheckpointError, match="compile need a stack of blocks"):
        check_arm(look_at(TEXTS, folder, None), ARMS["full"], training, "SEQ_CLS")
    message = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, "--max-length", 32, "--compile"))
    assert "compile need a stack of blocks, this architecture has none" in message


@TORCHS_OWN
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_trains_the_same_weights(
    plain: ht.Comparison, tiny_bert: Path, topics_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Compiling by the default backend takes 20 s (2 cores); what torch traces is the same with any."""
    compiled: list[nn.Module] = []
    real = nn.Module.compile

    def compile_by(self: nn.Module, **settings: Any) -> None:
        compiled.append(self)
        real(self, backend=backend, **settings)

    monkeypatch.setattr(nn.Module, "compile", compile_by)
    torch._dynamo.reset()
    recipe = recipe_of(tiny_bert, topics_folder, compile=True)
    arms = ["full", "top"]
    found = ht.run(recipe, arms=arms, budgets=[30], output_dir=tmp_path / "run")
    assert len(compiled) == 2 + 1, "the blocks that train"
    weights = weights_in(found)
    expected = {name: value for name, value in weights_in(plain).items() if name.split("/")[0] in arms}
    assert not [name for name in weights if "_orig_mod" in name]
    assert farthest(weights, expected) < 1e-4
    for cell in found.cells():
        folders = (cell, plain.folder / cell.relative_to(found.folder))
        answers, others = (ht.load(folder).predict(["anchor sail", "oven"]) for folder in folders)
        for ours, theirs in zip(answers, others, strict=True):
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-4)


@TORCHS_OWN
def test_only_blocks_that_train_are_compiled(tiny_bert: Path) -> None:
    architecture = look_at(TEXTS, tiny_bert, None)
    for arm, expected in (("full", [True, True]), ("top", [False, True]), ("lora", [True, True])):
        model = build_arm(architecture, ARMS[arm], 0, "SEQ_CLS")
        prepare_blocks(model, False, True)
        assert [block._compiled_call_impl is not None for block in find_blocks(model)[1]] == expected
        assert not [name for name in model.state_dict() if "_orig_mod" in name]
