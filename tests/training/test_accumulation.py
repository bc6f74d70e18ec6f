"""Out of memory: micro-batches are halved, the update is redone, and the training is the one that it would have been."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import hf_transfer as ht
from hf_transfer.data.batches import pad
from hf_transfer.errors import TrainingError
from hf_transfer.tasks.items import TextWindow, lay_out
from hf_transfer.training import accumulation, loop
from hf_transfer.training.batches import Batches
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.optimization import build_optimizer
from hf_transfer.training.plan import UpdatePlan
from tests.conftest import Run

RATE = 0.1
NUM_ROWS = 40
UPDATES_PER_EPOCH = 5
EPOCHS = 2
CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB"
Fails = Callable[[torch.Tensor], Exception | None]


class Words(nn.Module):
    """A mean of embeddings and two layers: as small as a model with dropout gets. `fails` says which micro-batches end in an error."""

    def __init__(self, dropout: float = 0.0, fails: Fails | None = None, where: str = "forward", is_normed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fails, self.where = fails, where
        self.embedding, self.hidden, self.output = nn.Embedding(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(8) if is_normed else nn.Identity()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        error = self.fails(input_ids) if self.fails else None
        if error is not None and self.where == "forward":
            raise error
        mask = attention_mask[..., None].float()
        mean = (self.dropout(self.embedding(input_ids)) * mask).sum(1) / mask.sum(1)
        hidden = self.norm(self.hidden(mean))
        if error is not None:

            def fail(gradient: torch.Tensor) -> None:
                raise error

            # Behind the output layer, whose gradient is there by then.
            hidden.register_hook(fail)
        return SimpleNamespace(logits=self.output(self.dropout(torch.tanh(hidden))))


def lengths_of(long_row: int | None = None) -> list[int]:
    """Give rows of 10 tokens, of which one may have 30."""
    return [30 if row == long_row else 10 for row in range(NUM_ROWS)]


def collate(windows: Any) -> dict[str, torch.Tensor]:
    ids, mask = pad([window.ids for window in windows], 0)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def lay(lengths: list[int], max_tokens: int | None, num_processes: int = 1) -> tuple[UpdatePlan, Batches]:
    """Give the plan and batches of rows of those lengths, of random tokens and labels, 8 rows an update."""
    rng = np.random.default_rng(5)
    windows = [TextWindow(rng.integers(1, 64, length).astype(np.int32), items=np.zeros(1, dtype=np.int64)) for length in lengths]
    layout, weights = lay_out([(window,) for window in windows]), (1 + np.arange(len(lengths)) % 3).astype(np.float64)
    plan = UpdatePlan(layout.lengths, weights, 8, EPOCHS, max_tokens, seed=3, num_processes=num_processes)
    labels = rng.integers(0, 3, len(lengths))
    return plan, Batches(layout, labels, weights.astype(np.float32), collate, lambda logits, _: logits, np.arange(len(lengths)))


def fit(
    model: nn.Module, lengths: list[int], max_tokens: int | None, accelerator: Accelerator | None = None, **settings: Any
) -> loop.Training:
    """Train with SGD and without clipping: any wrong factor of a gradient is seen in the weights."""
    accelerator = accelerator or make_accelerator("fp32")
    plan, batches = lay(lengths, max_tokens, accelerator.num_processes)
    return loop.train(
        model,
        build_optimizer(model, "sgd", RATE, 0.0),
        plan,
        batches,
        validate=lambda model: {"loss": 0.0},
        accelerator=accelerator,
        learning_rate=RATE,
        max_grad_norm=None,
        **settings,
    )


def farthest(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def above(limit: int, error: type[Exception] = RuntimeError) -> Fails:
    """Give what fails with more padded tokens than `limit`."""
    return lambda ids: error(CUDA) if ids.numel() > limit else None


def on_calls(*calls: int) -> Fails:
    """Give what fails on the n-th micro-batches, from 0, whatever they hold."""
    count = iter(range(10**6))
    return lambda ids: RuntimeError(CUDA) if next(count) in calls else None


def long_update(long_row: int) -> int:
    """Give the update, from 1, that holds a row first."""
    plan, _ = lay(lengths_of(long_row), 1)
    return next(update + 1 for update in range(plan.num_updates) if long_row in plan.rows_of(update))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_halved_micro_batches_train_to_the_same_weights(where: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = Words()
    reference = fit(undisturbed, lengths_of(), 10**6)
    finished: list[list[int]] = []
    real = loop.accumulate

    def spy(model: nn.Module, micro_batches: Any, *arguments: Any) -> float | None:
        loss = real(model, micro_batches, *arguments)
        if loss is not None:
            finished.append([window for read in micro_batches for window in read.micro_batch.windows])
        return loss

    monkeypatch.setattr(loop, "accumulate", spy)
    disturbed = Words(fails=above(45, error), where=where)
    done = fit(disturbed, lengths_of(), 10**6)
    # An update has 80 tokens: halved once, from there, not from what a micro-batch might hold.
    assert done.out_of_memory == [{"update": 1, "micro_batch_tokens": 40}]
    assert reference.out_of_memory == []
    assert farthest(disturbed, undisturbed) < 1e-5
    assert farthest(disturbed, Words()) > 1e-2, "something was learned"
    assert (done.updates, done.rows_seen, done.tokens_seen) == (reference.updates, reference.rows_seen, reference.tokens_seen)
    losses = [[entry["train_loss"] for entry in found.history] for found in (done, reference)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for epoch in range(EPOCHS):
        seen = [row for update in finished[epoch * UPDATES_PER_EPOCH : (epoch + 1) * UPDATES_PER_EPOCH] for row in update]
        assert sorted(seen) == list(range(NUM_ROWS)), "every row once an epoch"


def test_a_gradient_begun_before_the_error_is_forgotten() -> None:
    # 40 tokens a micro-batch: two of them an update. The second of the third update fails, as does a part of it when redone.
    undisturbed, disturbed = Words(), Words(fails=on_calls(5, 8))
    fit(undisturbed, lengths_of(), 40)
    done = fit(disturbed, lengths_of(), 40)
    assert done.out_of_memory == [{"update": 3, "micro_batch_tokens": 20}, {"update": 3, "micro_batch_tokens": 10}]
    assert farthest(disturbed, undisturbed) < 1e-5


@pytest.mark.parametrize("long_row", [0, 17, 39])
def test_an_event_names_its_update_and_the_new_size(long_row: int) -> None:
    done = fit(Words(fails=above(100)), lengths_of(long_row), 125)
    assert done.out_of_memory == [{"update": long_update(long_row), "micro_batch_tokens": 60}]


@pytest.mark.parametrize("plain_kernels", [False, True])
def test_a_redone_update_draws_what_a_smaller_micro_batch_draws(plain_kernels: bool) -> None:
    redone, started_smaller, larger = Words(0.3, above(45)), Words(0.3), Words(0.3)
    done = fit(redone, lengths_of(), 10**6, plain_kernels=plain_kernels)
    fit(started_smaller, lengths_of(), done.out_of_memory[0]["micro_batch_tokens"], plain_kernels=plain_kernels)
    fit(larger, lengths_of(), 10**6, plain_kernels=plain_kernels)
    assert farthest(redone, started_smaller) == 0.0
    assert farthest(redone, larger) > 1e-4, "dropout masks follow the micro-batches"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_goes_on_at_the_right_update(num_workers: int) -> None:
    undisturbed, disturbed = Words(), Words(fails=above(100))
    fit(undisturbed, lengths_of(17), 125)
    done = fit(disturbed, lengths_of(17), 125, num_workers=num_workers)
    assert [event["update"] for event in done.out_of_memory] == [long_update(17)]
    assert done.updates == EPOCHS * UPDATES_PER_EPOCH
    assert farthest(disturbed, undisturbed) < 1e-5
    assert multiprocessing.active_children() == []


def test_one_row_that_does_not_fit_is_a_training_error() -> None:
    with pytest.raises(TrainingError) as error:
        fit(Words(fails=above(29)), lengths_of(17), 10**6)
    expected = f"training: one row alone does not fit in memory at update {long_update(17)} of 10: take shorter rows (--max-length)"
    assert str(error.value).startswith(expected)
    assert "--batch-size" not in str(error.value), "it would not help"


def test_an_update_that_may_not_be_cut_is_a_training_error() -> None:
    with pytest.raises(TrainingError, match="an update, which an arm that trains batch norms takes at once, does not fit.*--batch-size"):
        fit(Words(fails=above(45), is_normed=True), lengths_of(), None)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError(CUDA)])
def test_any_other_error_goes_through_unchanged(error: Exception, where: str) -> None:
    with pytest.raises(type(error)) as raised:
        fit(Words(fails=lambda ids: error, where=where), lengths_of(), 40)
    assert raised.value is error


def tight(limit: int) -> Callable[..., torch.Tensor]:
    """Give a `send` to a device that has no room for larger tensors."""

    def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.numel() > limit:
            raise torch.OutOfMemoryError(CUDA)
        return tensor

    return send


def test_the_result_of_a_run_tells_of_it(tiny_bert: Path, topics_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ht.Recipe(
        name="topics",
        task=ht.TextClassification(max_length=48),
        data=ht.DataConfig(str(topics_folder)),
        checkpoint=str(tiny_bert),
        arms={"full": ht.Arm(learning_rate=2e-3, num_epochs=1)},
        training=ht.TrainingConfig(batch_size=8, precision="fp32", dropout=0.0),
    )

    def result_of(name: str) -> tuple[dict[str, Any], np.ndarray]:
        comparison = ht.run(recipe, budgets=[30], output_dir=tmp_path / name)
        predicted = comparison.best().predict(["anchor sail mast", "oven yeast", ""])
        probabilities = np.array([list(row["probabilities"].values()) for row in predicted])
        return json.loads((comparison.cells()[0] / "result.json").read_text()), probabilities

    undisturbed, expected = result_of("undisturbed")
    monkeypatch.setattr(accumulation, "send", tight(150))
    disturbed, found = result_of("disturbed")
    assert undisturbed["out_of_memory"] == []
    assert disturbed["out_of_memory"]
    for event in disturbed["out_of_memory"]:
        assert set(event) == {"update", "micro_batch_tokens"}
        assert 1 <= event["update"] <= 3
        assert 1 <= event["micro_batch_tokens"] < 8 * 48
    assert np.abs(found - expected).max() < 1e-5


def test_a_run_whose_row_does_not_fit_is_one_sentence(
    run: Run, tiny_bert: Path, topics_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulation, "send", tight(0))
    flags = ["--dataset", topics_folder, "--checkpoint", tiny_bert, "--max-length", 32, "--epochs", 1, "--arms", "full"]
    code, _, err = run("run", "text", *flags, "--precision", "fp32")
    assert code == 2
    assert "Traceback" not in err
    sentences = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1
    assert "one row alone does not fit in memory at update 1 of" in sentences[0]


TWO_PROCESSES = """
import json, sys
import torch
from accelerate import Accelerator
from tests.training.test_accumulation import Words, fit, lengths_of, on_calls

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
found = {}
# 20 tokens: each process has two micro-batches an update. One runs out of memory in the first of the second update.
for name, fails in (("undisturbed", None), ("disturbed", on_calls(2) if accelerator.process_index == 1 else None)):
    model = Words(fails=fails)
    done = fit(model, lengths_of(), 20, accelerator)
    weights = [parameter.detach().flatten().tolist() for parameter in model.parameters()]
    found[name] = {"events": done.out_of_memory, "updates": done.updates, "weights": weights}
with open(sys.argv[1] + str(accelerator.process_index), "w") as file:
    json.dump(found, file)
"""


def test_two_processes_agree_where_one_runs_out_of_memory(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    root = Path(__file__).parents[2]
    # "0": any free port.
    launch = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]
    command = [sys.executable, "-m", *launch, "--main_process_port", "0", "--num_processes", "2", str(script), str(tmp_path / "found-")]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"found-{process}").read_text()) for process in range(2)]
    alone = Words()
    fit(alone, lengths_of(), 20)
    for ours in found:
        assert ours["undisturbed"]["events"] == []
        assert ours["disturbed"]["events"] == [{"update": 2, "micro_batch_tokens": 10}], "both halve"
        assert ours["disturbed"]["updates"] == ours["undisturbed"]["updates"] == EPOCHS * UPDATES_PER_EPOCH
        for place, parameter in enumerate(alone.parameters()):
            expected = ours["undisturbed"]["weights"][place]
            assert ours["disturbed"]["weights"][place] == pytest.approx(expected, abs=1e-5)
            assert parameter.detach().flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert found[0]["disturbed"]["weights"] == found[1]["disturbed"]["weights"]
