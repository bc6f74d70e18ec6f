"""The arithmetic of batches, on lengths alone: deal rows to processes, cut them into micro-batches, pad. Pure functions."""

import heapq
from collections.abc import Sequence

import numpy as np


def deal(lengths: np.ndarray, num_processes: int) -> list[np.ndarray]:
    """Deal rows to processes so that each has about the same number of tokens: longest first, each to the lightest.

    Args:
        lengths: Tokens of each row, (B,).
        num_processes: How many shares.

    Returns:
        Positions of each process's rows; together every row once. A share is empty where there are fewer rows than processes.
    """
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [(0, process) for process in range(num_processes)]
    for row in np.argsort(-lengths, kind="stable"):
        load, process = heapq.heappop(loads)
        shares[process].append(int(row))
        heapq.heappush(loads, (load + int(lengths[row]), process))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def cut(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Cut rows into micro-batches of like lengths whose padded size (rows x longest) is at most `max_tokens`.

    A row longer than that stands alone. Longest first, so that what does not fit in memory shows at once.

    Args:
        lengths: Tokens of each row, (B,).
        max_tokens: Padded tokens a micro-batch may hold.

    Returns:
        Positions of each micro-batch's rows; together every row once.
    """
    order = np.argsort(-lengths, kind="stable")
    pieces = []
    start = 0
    while start < len(order):
        num_rows = max(1, max_tokens // max(1, int(lengths[order[start]])))
        pieces.append(order[start : start + num_rows])
        start += num_rows
    return pieces


def pad(rows: Sequence[np.ndarray], value: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of ids on the right to the longest.

    Args:
        rows: Ids, each (L_i,).
        value: Id to pad with.

    Returns:
        Ids and mask (1 = real), both (B, L) int64.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids = np.full(mask.shape, value, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64)
