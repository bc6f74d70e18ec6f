"""A B A B: every contender once a round, the order rotating, each round on other rows from the same fresh weights."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from flops import matrix_product_rate


@dataclass(frozen=True)
class Job:
    """A training or a prediction, ready to run."""

    model: nn.Module
    run: Callable[[], Any]


@dataclass
class Counts:
    """What went through a model in train mode."""

    rows: int = 0
    tokens: Any = 0
    """Without padding."""
    padded_tokens: int = 0


@dataclass(frozen=True)
class Spent:
    """One job's time."""

    seconds: float
    counted: Counts


def rotate(names: Sequence[str], round_number: int) -> list[str]:
    """Give the order of a round: nobody always comes first, or always after the same one."""
    start = round_number % len(names)
    return [*names[start:], *names[:start]]


@contextmanager
def counting(model: nn.Module) -> Iterator[Counts]:
    """While the block runs, count what a model reads in train mode."""
    counts = Counts()

    def count(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module.training and "attention_mask" in named:
            mask = named["attention_mask"]
            counts.rows += mask.shape[0]
            # Stays on the device: reading it there and then would make a GPU wait.
            counts.tokens = counts.tokens + mask.sum()
            counts.padded_tokens += mask.numel()

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()
        counts.tokens = int(counts.tokens)


def spend(job: Job, device: str) -> Spent:
    """Run a job and read the clock around it."""
    gc.collect()
    with counting(job.model) as counts:
        _synchronize(device)
        started = time.perf_counter()
        job.run()
        _synchronize(device)
        seconds = time.perf_counter() - started
    return Spent(seconds, counts)


def interleave(
    prepare: Mapping[str, Callable[[int], Job]], num_rounds: int, precisions: Sequence[str], device: str, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run every contender once a round.

    Args:
        prepare: Contender -> round -> its job on that round's rows; what it takes to prepare is not measured.
        num_rounds: That count.
        precisions: The machine's rate is measured in each of them in every round.
        device: "cpu" or "cuda".
        tell: Takes a line a round.

    Returns:
        `contenders`: name -> `seconds` and what each counted, an entry a round; `matrix_product_rate`: precision -> FLOP/s, likewise.
    """
    names = list(prepare)
    spent: dict[str, list[Spent]] = {name: [] for name in names}
    rates: dict[str, list[float]] = {precision: [] for precision in precisions}
    with _set_aside():
        for round_number in range(num_rounds):
            for precision in precisions:
                rates[precision].append(matrix_product_rate(precision, device))
            for name in rotate(names, round_number):
                spent[name].append(spend(prepare[name](round_number), device))
            tell(f"round {round_number + 1}/{num_rounds}  " + "  ".join(f"{name} {spent[name][-1].seconds:.2f} s" for name in names))
    contenders = {
        name: {"seconds": [one.seconds for one in of_name], "counted": [asdict(one.counted) for one in of_name]}
        for name, of_name in spent.items()
    }
    return {"contenders": contenders, "matrix_product_rate": rates}


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Give median, least and greatest beside the values themselves."""
    return {"values": list(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(peer: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Give how many times our seconds a peer's are, round by round: neighbours in time share the machine's mood."""
    return summarise([theirs / mine for theirs, mine in zip(peer, ours, strict=True)])


@contextmanager
def _set_aside() -> Iterator[None]:
    """While the block runs, hide from the garbage collector what is there: Trainer calls it whenever it begins to train."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
