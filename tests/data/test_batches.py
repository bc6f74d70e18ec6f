import numpy as np
import pytest

from hf_transfer.data.batches import cut, deal, pad

LENGTHS = [np.random.default_rng(seed).integers(1, 300, size=seed * 7 + 1) for seed in range(8)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
@pytest.mark.parametrize("max_tokens", [1, 64, 1024])
def test_cut_holds_every_row_once_within_the_budget(lengths: np.ndarray, max_tokens: int) -> None:
    pieces = cut(lengths, max_tokens)
    assert sorted(np.concatenate(pieces)) == list(range(len(lengths)))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * lengths[piece].max() <= max_tokens


@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
@pytest.mark.parametrize("num_processes", [1, 2, 5])
def test_deal_holds_every_row_once_balanced_by_tokens(lengths: np.ndarray, num_processes: int) -> None:
    shares = deal(lengths, num_processes)
    assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
    loads = [lengths[share].sum() for share in shares]
    assert max(loads) - min(loads) <= lengths.max()


def test_nothing_to_cut() -> None:
    assert cut(np.array([], dtype=np.int64), 10) == []
    assert [len(share) for share in deal(np.array([3]), 3)] == [1, 0, 0]


def test_pad_fills_on_the_right() -> None:
    ids, mask = pad([np.array([5, 6, 7]), np.array([8])], 9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
