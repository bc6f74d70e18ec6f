"""Input made ahead: the same, in the same order, whoever makes it."""

import functools
import os
from pathlib import Path

import pytest
import torch

from hf_transfer.data.ahead import make_ahead
from hf_transfer.errors import DataError, TrainingError


def squared(index: int) -> torch.Tensor:
    return torch.tensor([index, index**2])


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 3, 17])
def test_in_order_on_any_number_of_workers_and_without_the_global_generator(num_workers: int, count: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert [made.tolist() for made in make_ahead(squared, count, num_workers)] == [[index, index**2] for index in range(count)]
    assert torch.equal(torch.get_rng_state(), before)


def read_number(index: int, folder: Path) -> int:
    file = folder / f"{index}.txt"
    if not file.is_file():
        raise DataError(f"{file.name} is gone")
    return int(file.read_text())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_goes_wrong_in_a_worker_is_raised_here(tmp_path: Path, num_workers: int) -> None:
    for index in range(9):
        (tmp_path / f"{index}.txt").write_text(str(index))
    (tmp_path / "5.txt").unlink()
    made = make_ahead(functools.partial(read_number, folder=tmp_path), 9, num_workers)
    assert [next(made) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError) as error:
        next(made)
    assert str(error.value) == "5.txt is gone", "no traceback of a worker in the sentence"


def dies(index: int, parent: int) -> int:
    if index == 3 and os.getpid() != parent:
        os._exit(1)
    return index


def test_a_worker_that_is_killed_ends_in_one_sentence() -> None:
    made = make_ahead(functools.partial(dies, parent=os.getpid()), 9, 1)
    with pytest.raises(TrainingError, match="reads input ahead was killed .*: set training.num_workers=0, or give the machine more shared"):
        list(made)


def stumbles(index: int) -> int:
    if index == 3:
        raise RuntimeError("a bug of ours")
    return index


def test_a_bug_in_a_worker_keeps_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="a bug of ours") as error:
        list(make_ahead(stumbles, 9, 1))
    assert not isinstance(error.value, TrainingError)
