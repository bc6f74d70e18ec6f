"""Sizes of micro-batch: which the memory model lets a GPU begin with, and which is measured to be fastest."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hf_transfer as ht
from hf_transfer.errors import ConfigError
from hf_transfer.evidence import micro_batch_search, study
from hf_transfer.evidence.arms import build_arm, estimate_arm
from hf_transfer.evidence.micro_batch_search import CPU_SIZES, ROUNDS, UPDATES, MicroBatchRates
from hf_transfer.models.build import inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.tasks import functions_of
from hf_transfer.training.device import CPU_MICRO_BATCH_TOKENS, GPU_MICRO_BATCH_TOKENS
from hf_transfer.training.plan import UpdatePlan
from tests.conftest import TOPICS, save_tiny_resnet

ARMS = {
    "head": ht.Arm(tuning="head", learning_rate=1e-3, num_epochs=1),
    "full": ht.Arm(learning_rate=1e-3, num_epochs=1),
    "lora": ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=1),
}


@pytest.fixture
def recipe(topics_recipe: ht.Recipe) -> ht.Recipe:
    return dataclasses.replace(topics_recipe, arms=ARMS, training=ht.TrainingConfig(batch_size=64, precision="fp32", dropout=0.0))


def fitting(
    recipe: ht.Recipe, device: str, monkeypatch: pytest.MonkeyPatch, memory: float, arms: tuple[str, ...] = ("head", "full")
) -> int:
    """Give the size that a device of so many bytes begins with."""
    functions = functions_of(recipe.task)
    checkpoint = open_checkpoint(recipe.checkpoint, functions.load_processor)
    architecture = inspect(checkpoint, functions.AUTO_MODEL, list(TOPICS), None)
    monkeypatch.setattr(study, "device_memory_bytes", lambda accelerator: int(memory))
    accelerator: Any = SimpleNamespace(device=torch.device(device), mixed_precision="no")

    def collate(windows: Any) -> dict[str, torch.Tensor]:
        return functions.collate(windows, checkpoint.processor)

    tokens = study._fitting_tokens(recipe, arms, architecture, collate, accelerator)
    if device == "cuda":
        budget = study.MEMORY_SHARE * int(memory)
        models = [build_arm(architecture, recipe.arms[name], 0, functions.PEFT_TASK_TYPE) for name in arms]
        estimates = [estimate_arm(model, recipe.task, architecture, collate, recipe.training, accelerator) for model in models]

        def largest(size: int) -> int:
            return max(estimate.total(size, recipe.training.batch_size) for estimate in estimates)

        assert tokens == study.LEAST_TOKENS or largest(tokens) <= budget, "it fits"
        assert tokens == GPU_MICRO_BATCH_TOKENS or largest(2 * tokens) > budget, "twice as many would not"
    return tokens


def test_a_gpu_begins_with_what_fits_in_its_memory(recipe: ht.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe.override({"training.batch_size": 1024})
    found = [fitting(recipe, "cuda", monkeypatch, memory) for memory in (80e9, 100e6, 50e6, 25e6, 12e6, 6e6, 1)]
    assert found == [fitting(recipe, "cuda", monkeypatch, memory) for memory in (80e9, 100e6, 50e6, 25e6, 12e6, 6e6, 1)]
    assert found[0] == GPU_MICRO_BATCH_TOKENS
    assert found[-1] == study.LEAST_TOKENS
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 3, "it follows the memory"
    assert all(tokens & (tokens - 1) == 0 and tokens >= study.LEAST_TOKENS for tokens in found), "powers of two"


def test_every_arm_counts_and_no_more_rows_than_an_update_has(recipe: ht.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    many = recipe.override({"training.batch_size": 1024})
    head, both, full = (fitting(many, "cuda", monkeypatch, 20e6, arms) for arms in (("head",), ("head", "full"), ("full",)))
    assert head > both == full
    assert fitting(recipe.override({"training.batch_size": 2}), "cuda", monkeypatch, 20e6) == GPU_MICRO_BATCH_TOKENS


def test_a_cpu_begins_with_a_constant(recipe: ht.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {fitting(recipe, "cpu", monkeypatch, memory) for memory in (80e9, 1)} == {CPU_MICRO_BATCH_TOKENS}


class Bench:
    """A clock that goes on by what a size costs, and a record of what was measured."""

    def __init__(self, seconds_of: Callable[[int, int], float | None]) -> None:
        self.seconds_of = seconds_of
        self.now = 0.0
        self.measured: list[tuple[int, int]] = []
        """(size, update) of each."""
        self.plan: Any = None

    def accumulate(self, model: Any, reads: Any, plan: UpdatePlan, update: int, *others: Any) -> float | None:
        assert plan.max_tokens is not None
        assert [read.micro_batch.windows.tolist() for read in reads] == [made.windows.tolist() for made in plan.micro_batches(update, 0)]
        self.plan = plan
        self.measured.append((plan.max_tokens, update))
        seconds = self.seconds_of(plan.max_tokens, len(self.measured))
        if seconds is None:
            return None
        self.now += seconds
        return 0.0


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], float | None]], Bench]:
    def install(seconds_of: Callable[[int, int], float | None]) -> Bench:
        made = Bench(seconds_of)
        monkeypatch.setattr(micro_batch_search, "accumulate", made.accumulate)
        monkeypatch.setattr(micro_batch_search, "time", SimpleNamespace(perf_counter=lambda: made.now))
        return made

    return install


def test_every_size_is_measured_as_often_in_turn(recipe: ht.Recipe, bench: Any) -> None:
    made = bench(lambda size, call: {256: 3.0, 512: 2.0, 1024: 1.0, 2048: 2.0}.get(size, 9.0))
    found = ht.tune(recipe)
    assert found.arm == "full", "that trains most"
    assert (found.best, found.unit) == (1024, "tokens")
    sizes = list(found.rates)
    assert sizes == [256, 512, 1024, 2048, 4096], "64 rows of up to 44 tokens"
    assert all(len(rates) == ROUNDS for rates in found.rates.values())
    # A first look at each, then rounds; a size has its updates one after the other.
    turns = [made.measured[start][0] for start in range(0, len(made.measured), UPDATES)]
    assert all(len({size for size, _ in made.measured[start : start + UPDATES]}) == 1 for start in range(0, len(made.measured), UPDATES))
    rounds = [turns[start : start + len(sizes)] for start in range(0, len(turns), len(sizes))]
    assert len(rounds) == 1 + ROUNDS
    assert all(sorted(turn) == sizes for turn in rounds)
    first = Counter(turn[0] for turn in rounds[1:])
    assert first == dict.fromkeys(sizes, 1), "none is always the first"
    assert "1,024 tokens a micro-batch" in next(line for line in str(found).splitlines() if "<- best" in line)


def test_rates_count_real_tokens_over_seconds(recipe: ht.Recipe, bench: Any) -> None:
    made = bench(lambda size, call: 2.0)
    one_update = recipe.override({"training.batch_size": 1000})
    rates = [rate for found in ht.tune(one_update).rates.values() for rate in found]
    assert len(made.plan.lengths) == 72
    assert set(rates) == {made.plan.lengths.sum() / 2.0}, "without padding"


def test_the_best_has_the_highest_median_the_smaller_of_equals() -> None:
    lucky = {256: [1.0, 1.0, 9.0], 512: [2.0, 2.0, 2.0], 1024: [2.0, 2.0, 2.0], 2048: [0.1, 3.0, 1.9]}
    assert MicroBatchRates("full", lucky, "tokens", "here").best == 512


def test_what_does_not_fit_is_left_out(recipe: ht.Recipe, bench: Any) -> None:
    made = bench(lambda size, call: None if size > 512 else 1.0)
    assert list(ht.tune(recipe).rates) == [256, 512]
    assert Counter(size for size, _ in made.measured)[1024] == 1, "not tried again"
    # What fits at first and fails later has no full record.
    late = bench(lambda size, call: None if size == 512 and call > 30 else 1.0)
    assert 512 not in ht.tune(recipe).rates
    assert late.measured


def test_nothing_that_fits_is_one_sentence(recipe: ht.Recipe, bench: Any) -> None:
    bench(lambda size, call: None)
    with pytest.raises(ConfigError, match="arm full does not fit in memory at 256 tokens a micro-batch: take a smaller checkpoint"):
        ht.tune(recipe)


@pytest.mark.parametrize(
    ("batch_size", "budget", "task"),
    [
        (2, "all", "text"),
        (8, "all", "text"),
        (32, "all", "text"),
        (1000, "all", "text"),
        (1000, 20, "text"),
        (1, 20, "text"),
        (8, 41, "ner"),
    ],
)
def test_only_one_size_holds_every_update_whole(
    recipe: ht.Recipe, bench: Any, names_folder: Path, batch_size: int, budget: int | str, task: str
) -> None:
    made = bench(lambda size, call: 1.0)
    if task == "ner":
        # A sentence is read in several windows.
        recipe = dataclasses.replace(recipe, task=ht.TokenClassification(max_length=8)).override({"data.source": str(names_folder)})
    sizes = list(ht.tune(recipe.override({"training.batch_size": batch_size}), budgets=[budget]).rates)
    assert {size for size, _ in made.measured} == set(sizes)
    assert sizes == list(CPU_SIZES[: len(sizes)])
    cut = {size: dataclasses.replace(made.plan, max_tokens=size) for size in sizes}
    whole = [size for size in sizes if all(len(cut[size].micro_batches(update, 0)) == 1 for update in range(made.plan.updates_per_epoch))]
    assert whole == ([] if sizes[-1] == CPU_SIZES[-1] and sizes[-1] not in whole else [sizes[-1]])


def test_a_real_measurement_moves_no_weight(recipe: ht.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch_search, "ROUNDS", 1)
    models: list[tuple[torch.nn.Module, dict[str, torch.Tensor]]] = []
    real = micro_batch_search.build_arm

    def kept(*arguments: Any) -> torch.nn.Module:
        model = real(*arguments)
        models.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    monkeypatch.setattr(micro_batch_search, "build_arm", kept)
    before = dataclasses.asdict(recipe)
    found = ht.tune(recipe, arms=["head", "lora"])
    assert found.arm == "lora"
    assert dataclasses.asdict(recipe) == before
    assert all(rate > 0 for rates in found.rates.values() for rate in rates)
    for model, weights in models:
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_tuned_is_refused(recipe: ht.Recipe, photos_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"checkpoint": str(save_tiny_resnet(tmp_path / "resnet")), "data.source": str(photos_folder)}
    images = dataclasses.replace(recipe, task=ht.ImageClassification()).override(changes)
    with pytest.raises(ConfigError, match="arm full trains batch norms and takes each update at once: there is nothing to tune"):
        ht.tune(images, arms=["head", "full"])
    two: Any = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(micro_batch_search, "make_accelerator", lambda precision: two)
    with pytest.raises(ConfigError, match="tune measures one process, found 2: start it without accelerate launch"):
        ht.tune(recipe)
