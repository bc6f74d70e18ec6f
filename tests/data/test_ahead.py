"""Input made ahead: the same, in the same order, whoever makes it."""

import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def killing_a_worker() -> Iterator[list[float]]:
    """While the block runs, kill the first process that is forked, half a second after -> the time of it."""
    killed: list[float] = []
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.5):
            if children := multiprocessing.active_children():
                os.kill(children[0].pid or 0, signal.SIGKILL)
                killed.append(time.monotonic())
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def made_slowly(index: int) -> int:
    time.sleep(0.02)
    return index


def test_a_worker_killed_while_we_are_elsewhere_is_told_of_when_we_ask_and_not_before() -> None:
    """Not in the middle of an update or of a write, where an error would do harm."""
    made, elsewhere = make_ahead(made_slowly, 500, 2), 0.0
    with killing_a_worker() as killed, pytest.raises(TrainingError, match="reads input ahead was killed"):
        for count, index in enumerate(made):
            assert index == count, "what is there still comes in order"
            if killed and not elsewhere:
                elsewhere = time.monotonic()
            try:
                for _ in range(20):
                    time.sleep(0.002)
            except RuntimeError as error:
                pytest.fail(f"raised elsewhere: {error}")
    assert time.monotonic() - killed[0] < 20


def test_full_shared_memory_is_one_sentence_and_no_endless_wait(tmp_path: Path) -> None:
    program = tmp_path / "read.py"
    program.write_text(
        "import torch\n"
        "from hf_transfer.data.ahead import make_ahead\n"
        "from hf_transfer.errors import TrainingError\n"
        "try:\n"
        "    for made in make_ahead(lambda index: [{'pixels': torch.zeros(50_000)}], 12, 2):\n"
        "        pass\n"
        "except TrainingError as error:\n"
        "    print(error)\n"
    )
    mount = "mount -t tmpfs -o size=64k none /dev/shm"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    # In a place of its own: others' shared memory is left alone.
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" "$1"', sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("shared memory does not suffice to read input ahead (unable to allocate shared memory"), done.stderr
    assert "set training.num_workers=0" in done.stdout
    assert done.stderr == ""


def stumbles(index: int) -> int:
    if index == 3:
        raise RuntimeError("a bug of ours")
    return index


def test_a_bug_in_a_worker_keeps_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="a bug of ours") as error:
        list(make_ahead(stumbles, 9, 1))
    assert not isinstance(error.value, TrainingError)
    # Its frames hold the worker.
    del error
    gc.collect()
