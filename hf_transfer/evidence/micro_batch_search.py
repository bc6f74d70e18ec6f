"""Which size of micro-batch is fastest here: measured on purpose and written to a file, never while a run trains."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hf_transfer.errors import ConfigError
from hf_transfer.evidence.arms import build_arm, check_arm
from hf_transfer.evidence.environment import describe_environment
from hf_transfer.evidence.fit import lay_plan
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.models.build import count_parameters
from hf_transfer.models.cpu_kernels import sparse_gradients
from hf_transfer.models.tuning import freeze_unused, prepare_blocks, set_training_mode, trainable_batch_norms
from hf_transfer.recipe import Recipe
from hf_transfer.run_settings import Budget
from hf_transfer.training.accumulation import accumulate
from hf_transfer.training.batches import read_update
from hf_transfer.training.device import make_accelerator

CPU_SIZES = (256, 512, 1024, 2048, 4096)
GPU_SIZES = (2048, 4096, 8192, 16384, 32768, 65536)
ROUNDS = 5
UPDATES = 2
"""Updates a size is given in each round: one may be all short rows."""


@dataclass(frozen=True)
class MicroBatchRates:
    """What a search found. `str()` of it is for people."""

    arm: str
    rates: dict[int, list[float]]
    """Padded tokens a micro-batch may hold -> real tokens/s of each round; sizes that do not fit in memory are not there."""
    unit: str
    device: str

    @property
    def best(self) -> int:
        """Give the size with the highest median; the smaller of equals, which takes less memory."""
        return max(self.rates, key=lambda size: (statistics.median(self.rates[size]), -size))

    def __str__(self) -> str:
        reference = self.rates[self.best]
        lines = [f"arm {self.arm} on {self.device}, {len(reference)} rounds in turn; beside the best, round by round:"]
        for size, rates in self.rates.items():
            ratios = [rate / best for rate, best in zip(rates, reference, strict=True)]
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            mark = "  <- best" if size == self.best else ""
            lines.append(f"  {size:7,} {self.unit} a micro-batch: {statistics.median(rates):9,.0f} {self.unit}/s  {spread}{mark}")
        return "\n".join(lines)


def search_micro_batches(
    recipe: Recipe,
    arms: Sequence[str],
    budgets: Sequence[Budget],
    seeds: Sequence[int],
    max_test_rows: int | None = None,
    local_files_only: bool = False,
) -> MicroBatchRates:
    """Time forward and backward of the arm that trains most parameters, at several sizes in turn; a round gives all of them the same rows.

    Args:
        recipe: What to train.
        arms: Names of the arms that will run.
        budgets: Budgets that will run; the last one is measured.
        seeds: Seeds that will run; the first one is measured.
        max_test_rows: As for a run.
        local_files_only: Take Hub ids from the cache.

    Raises:
        ConfigError: The arm takes each update at once, or there is more than one process.
        TransferError: What a run would refuse.
    """
    accelerator = make_accelerator(recipe.training.precision)
    if accelerator.num_processes > 1:
        raise ConfigError(f"tune measures one process, found {accelerator.num_processes}: start it without accelerate launch")
    study = prepare_study(recipe, arms, budgets, seeds, accelerator, max_test_rows, local_files_only)
    outlines = {name: check_arm(study.architecture, recipe.arms[name], recipe.training, study.task.PEFT_TASK_TYPE) for name in arms}
    name = max(outlines, key=lambda arm: count_parameters(outlines[arm])[0])
    model = build_arm(study.architecture, recipe.arms[name], seeds[0], study.task.PEFT_TASK_TYPE)
    if trainable_batch_norms(model):
        raise ConfigError(f"arm {name} trains batch norms and takes each update at once: there is nothing to tune")
    sizes = CPU_SIZES if accelerator.device.type == "cpu" else GPU_SIZES
    rates = _measure(study, name, model, budgets[-1], seeds[0], sizes)
    unit = "patches" if study.task.READS_FILES else "tokens"
    if not rates:
        raise ConfigError(f"arm {name} does not fit in memory at {sizes[0]:,} {unit} a micro-batch: take a smaller checkpoint")
    return MicroBatchRates(name, rates, unit, describe_environment(accelerator)["device"])


def _measure(study: Study, name: str, model: torch.nn.Module, budget: Budget, seed: int, sizes: Sequence[int]) -> dict[int, list[float]]:
    accelerator, settings = study.accelerator, study.recipe.training
    rows, _ = study.draw(budget, seed)
    freeze_unused(model, study.collate(rows.layout.windows[:1]))
    plan, batches = lay_plan(study, model, study.recipe.arms[name], rows, seed)
    prepare_blocks(model, settings.activation_checkpointing, settings.compile)
    set_training_mode(model)
    if accelerator.device.type == "cpu":
        sparse_gradients(model)
    prepared = accelerator.prepare(model.to(accelerator.device))

    def rate_of(size: int, turn: int) -> float | None:
        """Give real tokens/s over the updates of a round; None where memory does not suffice."""
        sized = replace(plan, max_tokens=size)
        seconds, tokens = 0.0, 0
        for place in range(UPDATES):
            update = (turn * UPDATES + place) % plan.num_updates
            reads = read_update(update, sized, batches, 0)
            _wait()
            started = time.perf_counter()
            loss = accumulate(prepared, reads, sized, update, batches, accelerator, settings.activation_checkpointing or settings.compile)
            _wait()
            seconds += time.perf_counter() - started
            model.zero_grad()
            if loss is None:
                return None
            tokens += int(batches.layout.tokens[plan.windows_of(update)].sum())
        return tokens / seconds

    # Larger than an update they are all the same. An update may have fewer rows than asked for, and more windows than rows.
    updates = [plan.windows_of(place) for place in range(plan.updates_per_epoch)]
    largest = max(len(windows) * int(plan.lengths[windows].max()) for windows in updates)
    sizes = [size for size in sizes if size == sizes[0] or size < 2 * largest]
    # A first look warms up, and leaves out what does not fit.
    sizes = [size for size in sizes if rate_of(size, ROUNDS) is not None]
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(ROUNDS):
        for place in range(len(sizes)):
            size = sizes[(turn + place) % len(sizes)]
            if (rate := rate_of(size, turn)) is not None:
                rates[size].append(rate)
    return {size: found for size, found in rates.items() if len(found) == ROUNDS}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
