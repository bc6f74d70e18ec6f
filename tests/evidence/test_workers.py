"""Cells trained at once by worker processes: the same results, whatever becomes of a worker."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hf_transfer as ht
from hf_transfer.errors import ConfigError, DataError
from hf_transfer.evidence import grid, workers
from hf_transfer.evidence.workers import check_parallel, visible_devices, worker_environment
from tests.evidence.conftest import GRID, finished, untimed, wait_for


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "num_cores", lambda: 2)


def comparable(cell: Path) -> dict[str, Any]:
    """Give a cell's result without what a clock or the machine says."""
    result = untimed(json.loads((cell / "result.json").read_text()))
    del result["environment"], result["cost"]["peak_memory_bytes"]
    return dict(result)


def test_cells_trained_at_once_are_those_trained_one_by_one_though_a_worker_is_killed(
    whole: ht.Comparison,
    copied: Path,
    topics_recipe: ht.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    start, started = workers._start, []

    def start_and_kill_the_first(*arguments: Any) -> Any:
        worker = start(*arguments)
        started.append(worker)
        if len(started) == 1:
            worker.process.kill()
        return worker

    monkeypatch.setattr(workers, "_start", start_and_kill_the_first)
    asked = GRID | {"arms": ["full", "scratch", "wild", "head"]}
    comparison = ht.run(topics_recipe, output_dir=tmp_path / "at-once", parallel=2, **asked)
    assert [(entry["arm"], entry["seed"]) for entry in comparison.failed] == [("full", 0), ("wild", 0), ("wild", 1)]
    assert comparison.failed[0]["error"] == "the process that trained it was killed (signal 9)"
    assert json.loads((tmp_path / "at-once/full/budget-30/seed-0/failure.json").read_text()) == comparison.failed[0]
    assert "is no finite number" in comparison.failed[1]["error"]
    for cell in finished(whole.folder):
        other = tmp_path / "at-once" / cell.relative_to(whole.folder)
        assert comparable(other) == comparable(cell)
        assert (other / "predictions.parquet").read_bytes() == (cell / "predictions.parquet").read_bytes()
    assert len(started) == 3
    assert all(worker.process.poll() is not None for worker in started)
    printed = capfd.readouterr()
    told = [line for line in printed.err.splitlines() if " of 8 " in line]
    assert [line.split(" of 8 ")[0] for line in told] == [str(number) for number in range(1, 9)]
    assert "epoch 1/2" not in printed.err, "no progress of a worker is shown"
    assert printed.out == ""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_run(background: Callable[..., subprocess.Popen[str]], tmp_path: Path, how: signal.Signals) -> None:
    process = background(tmp_path / "run", "--parallel", 2, "--epochs", 500)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("the system does not list a process's children")
    found: list[str] = []
    wait_for(lambda: found.extend(children.read_text().split()) or is_training(found), process)
    process.send_signal(how)
    # One that still imports torch looks up when it has.
    limit = time.monotonic() + 60
    while any(is_alive(int(child)) for child in found):
        assert time.monotonic() < limit, "a worker is left over"
        time.sleep(0.05)
    _, err = process.communicate(timeout=10)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "\ninterrupted (SIGINT): ending behind this update; Ctrl-C ends at once\n" in err
        assert err.splitlines()[-1] == (
            "interrupted (SIGINT): the trainings that were begun are saved; --resume goes on from what was finished and saved"
        )
    assert not (tmp_path / "run/comparison.json").exists()


def is_training(pids: list[str]) -> bool:
    """Say whether two workers have started; by then they import what they need, or train."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if Path(f"/proc/{pid}").exists()}
    return sum(b"hf_transfer.evidence.worker" in command for command in commands.values()) == 2


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_mistake_and_a_bug_in_a_worker_end_the_run(topics_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = grid.train_in_workers

    def train_on_other_data(study: Any, *arguments: Any) -> Any:
        recipe = study.recipe.override({"data.source": str(tmp_path / "gone")})
        return train(SimpleNamespace(recipe=recipe, num_workers=0, accelerator=study.accelerator, stopping=study.stopping), *arguments)

    def train_where_something_lies(study: Any, cells: Any, settings: Any, folder: Path, *arguments: Any) -> Any:
        (cell,) = cells
        cell.folder(folder).parent.mkdir(parents=True)
        cell.folder(folder).touch()
        return train(study, cells, settings, folder, *arguments)

    for name, error, message, wrong_train in (
        ("mistake", DataError, "gone", train_on_other_data),
        ("bug", RuntimeError, r"(?s)found a bug:.*Traceback.*FileExistsError", train_where_something_lies),
    ):
        monkeypatch.setattr(grid, "train_in_workers", wrong_train)
        with pytest.raises(error, match=message):
            ht.run(topics_recipe, arms=["full"], budgets=[30], output_dir=tmp_path / name, parallel=2)
        assert not finished(tmp_path / name)


def test_what_a_worker_said_before_it_ended_is_heard(topics_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, start, started = grid.train_in_workers, workers._start, []

    def train_on_other_data(study: Any, *arguments: Any) -> Any:
        recipe = study.recipe.override({"data.source": str(tmp_path / "gone")})
        return train(SimpleNamespace(recipe=recipe, num_workers=0, accelerator=study.accelerator, stopping=study.stopping), *arguments)

    def start_and_note(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    class BusyElsewhere(workers.selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            found = super().select(0)
            for worker in started:
                worker.process.wait(60)
            return found

    monkeypatch.setattr(grid, "train_in_workers", train_on_other_data)
    monkeypatch.setattr(workers, "_start", start_and_note)
    monkeypatch.setattr(workers.selectors, "DefaultSelector", BusyElsewhere)
    with pytest.raises(DataError, match="gone"):
        ht.run(topics_recipe, arms=["full"], budgets=[30], output_dir=tmp_path / "run", parallel=2)


def test_more_workers_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def accelerator(device: str, num_processes: int = 1) -> Any:
        return SimpleNamespace(device=torch.device(device), num_processes=num_processes)

    check_parallel(1, accelerator("cpu", 2))
    check_parallel(2, accelerator("cpu"))
    with pytest.raises(ConfigError, match="parallel 3 needs as many cores, found 2: take 2 or less"):
        check_parallel(3, accelerator("cpu"))
    with pytest.raises(ConfigError, match="parallel trains 2 cells at once, and 2 processes were started .*: take one of the two"):
        check_parallel(2, accelerator("cpu", 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_parallel(2, accelerator("cuda"))
    with pytest.raises(ConfigError, match="parallel 3 needs as many cuda devices, found 2"):
        check_parallel(3, accelerator("cuda"))


def test_a_worker_sees_its_own_device_and_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(workers, "num_cores", lambda: 7)
    for given, expected in ((None, ["0", "1"]), ("3, 5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"]), ("1,0,9", ["1", "0"])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_devices() == expected
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("OMP_NUM_THREADS")
    environment = worker_environment(1, 3, ["3", "5"])
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"], "RANK" in environment) == ("5", "2", False)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert worker_environment(0, 3, [])["OMP_NUM_THREADS"] == "4"
