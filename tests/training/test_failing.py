"""One of two processes fails: both end within seconds, and what the first one found is what the user reads."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import distributed

from hf_transfer.errors import TrainingError
from hf_transfer.training.failing import lost_another

LAUNCH = "-m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes 2 --num_machines 1 --mixed_precision no"
WITHIN_SECONDS = 15.0
"""One to three were measured; the launcher kills after 30 a process that does not end."""


@pytest.fixture
def fail(tiny_bert: Path, topics_folder: Path, tmp_path: Path):
    """Give a function that runs a recipe in which a process fails -> standard error above the launcher's own, seconds it took to end."""

    def run(rank: int, fault: str, **environment: str) -> tuple[list[str], float]:
        script = Path(__file__).parent / "failing_run.py"
        flags = ["--max-length", 32, "--arms", "full", "--budgets", 41, "--batch-size", 8, "--precision", "fp32", "--output-dir", "run"]
        words = [rank, fault, "newsgroups", "--dataset", topics_folder, "--checkpoint", tiny_bert, *flags]
        command = [sys.executable, *LAUNCH.split(), "--dynamo_backend", "no", script, *words]
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=300
        )
        ended = time.time()
        assert done.returncode != 0
        failed_at = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("fails at ")]
        ours = done.stderr.split("torch/distributed/elastic/")[0].splitlines()
        assert "terminate called" not in done.stderr
        assert "Connection closed by peer" not in done.stderr
        return ours, ended - failed_at[0] if failed_at else 0.0

    return run


def errors_in(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("error: ", "process "))]


def test_a_mistake_that_only_the_second_process_finds_is_told_with_its_name(fail) -> None:
    lines, _ = fail(1, "mistake")
    assert errors_in(lines) == ["error: process 1 of 2: no file or folder missing.csv"]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_on_one_process_shows_its_traceback_and_no_other(fail, rank: int) -> None:
    lines, seconds = fail(rank, "bug")
    assert errors_in(lines) == [f"process {rank} of 2 failed:"]
    assert "ZeroDivisionError: planted" in lines
    assert sum("Traceback" in line for line in lines) == 1
    assert seconds < WITHIN_SECONDS


def test_a_killed_process_is_missed_by_the_other(fail) -> None:
    lines, seconds = fail(1, "SIGKILL")
    (error,) = errors_in(lines)
    assert error.startswith("error: process 0 of 2 has lost another, which ended without a word: it was killed")
    assert not any("Traceback" in line for line in lines)
    assert seconds < WITHIN_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stalled_process_is_given_up_after_a_while(fail, rank: int) -> None:
    lines, seconds = fail(rank, "SIGSTOP", HF_TRANSFER_WAIT_MINUTES="0.1")
    (error,) = errors_in(lines)
    assert error.startswith(f"error: process {1 - rank} of 2 has waited 0.1 minutes for another, which hangs")
    # The launcher asks the stopped one to end, and kills it after 30 s.
    assert 6 <= seconds < 6 + 30 + WITHIN_SECONDS


def test_what_follows_from_a_lost_process_is_no_reason() -> None:
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1416.")
    assert lost_another(lost)
    assert lost_another(distributed.DistNetworkError("the store is gone"))
    assert not lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    for first, second, is_lost in ((lost, TrainingError("..."), True), (TrainingError("..."), lost, False)):
        with pytest.raises(RuntimeError) as raised:
            try:
                raise first
            finally:
                raise second
        assert lost_another(raised.value) == is_lost
