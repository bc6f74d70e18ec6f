"""How much arithmetic a training needs, and how much the machine can do: their quotient does not depend on anybody's clock."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048
"""Of the matrices that measure the machine."""
NUM_PRODUCTS = 5
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Quadratic:
    """FLOP of a row by its length: attention makes them a quadratic, and the products of one make it exact."""

    coefficients: tuple[float, float, float]
    """Of L^2, L and 1."""

    def total(self, lengths: np.ndarray) -> float:
        """Give the sum over rows of true lengths (B,)."""
        return float(np.polyval(self.coefficients, lengths.astype(np.float64)).sum())


def count_flops(model: nn.Module, length: int, backward: bool = True) -> int:
    """Count the FLOP of matrix products in one row's forward, and in the backward that what trains needs.

    Args:
        model: With eager attention, whose products all count.
        length: Tokens of the row.
        backward: False = forward only.
    """
    ids = torch.full((1, length), 5)
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum()
        if backward:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def fit_quadratic(model: nn.Module, max_length: int, backward: bool = True) -> Quadratic:
    """Find the quadratic through three lengths up to `max_length`."""
    lengths = [max_length // 4, max_length // 2, max_length]
    counts = [count_flops(model, length, backward) for length in lengths]
    a, b, c = np.linalg.solve(np.vander(np.array(lengths, dtype=np.float64), 3), np.array(counts, dtype=np.float64))
    return Quadratic((a, b, c))


def useful_flops(model: nn.Module, max_length: int, lengths: Sequence[np.ndarray], num_epochs: int, frozen: bool) -> list[float]:
    """Give the FLOP that rounds of training need, without padding.

    Args:
        model: What trains marked.
        max_length: Of the case.
        lengths: True lengths of each round's rows.
        num_epochs: Of a round.
        frozen: The backbone does not train: its forward is needed once, however many epochs there are.
    """
    whole = fit_quadratic(model, max_length)
    if not frozen:
        return [num_epochs * whole.total(of_round) for of_round in lengths]
    forward = fit_quadratic(model, max_length, backward=False)
    return [forward.total(of_round) + num_epochs * (whole.total(of_round) - forward.total(of_round)) for of_round in lengths]


def matrix_product_rate(precision: str, device: str) -> float:
    """Measure the machine's own FLOP/s: the median of a few products of two square matrices."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(DTYPES[precision]) for _ in range(2))
    a @ b
    seconds = []
    for _ in range(NUM_PRODUCTS):
        _wait(device)
        started = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / statistics.median(seconds)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
