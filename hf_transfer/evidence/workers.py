"""Several cells at once: worker processes, a device each, that are given cells until none is left.

A worker is `python -m hf_transfer.evidence.worker`: it reads a line of JSON for each thing it is to do, and answers with one. What it
prints is kept aside, and shown where it ends as it should not.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator

from hf_transfer import errors
from hf_transfer.data.images import num_cores
from hf_transfer.errors import ConfigError
from hf_transfer.evidence.attempt import PlannedCell, write_failure
from hf_transfer.evidence.study import Study
from hf_transfer.files import RESULT_FILE
from hf_transfer.run_settings import RunSettings

LOOK_SECONDS = 0.2
"""How often to look whether a worker was killed: what it has forked may keep its pipe open."""
PATIENCE_SECONDS = 2.0
"""How long one that closed its pipe may take to end."""
TAIL_BYTES = 2000
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""With these in its environment a worker would wait for the processes of a launcher."""


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    slot: int
    """Which device it has."""
    cell: PlannedCell
    """What it trains."""
    answers: IO[bytes]
    printed: IO[bytes]


def check_parallel(parallel: int, accelerator: Accelerator) -> None:
    """Refuse more workers than there are devices, or cores where cells train on them.

    Raises:
        ConfigError: Says how many there are.
    """
    if parallel == 1:
        return
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"parallel trains {parallel} cells at once, and {accelerator.num_processes} processes were started to train one together: "
            "take one of the two"
        )
    device = accelerator.device.type
    found, what = (num_cores(), "cores") if device == "cpu" else (len(visible_devices()) if device == "cuda" else 1, f"{device} devices")
    if parallel > found:
        raise ConfigError(f"parallel {parallel} needs as many {what}, found {found}: take {found} or less")


def train_in_workers(
    study: Study, cells: Sequence[PlannedCell], settings: RunSettings, run_folder: Path, local_files_only: bool
) -> Generator[tuple[PlannedCell, str | None]]:
    """Train cells in worker processes, and yield each as it ends, with the reason if it failed.

    A worker that is killed fails its cell, and another takes its place. None outlives this process, or the generator. Where the run is
    asked to end, so are they, and this process waits for them to save their states.

    Args:
        study: Of this process; workers prepare the same for themselves.
        cells: What to train.
        settings: Of the run; `parallel` workers are started.
        run_folder: That cells are written to.
        local_files_only: Take Hub ids from the cache.

    Raises:
        TransferError: A worker found a mistake in recipe, data or checkpoint.
        RuntimeError: A bug in a worker; holds its traceback.
        Interrupted: The run was asked to end.
    """
    recipe = study.recipe
    if recipe.training.num_workers is None:
        recipe = recipe.override({"training.num_workers": study.num_workers // settings.parallel})
    job = {"recipe": recipe.to_dict(), "settings": asdict(settings), "run_folder": str(run_folder), "local_files_only": local_files_only}
    devices = visible_devices() if study.accelerator.device.type == "cuda" else []
    waiting = list(cells)
    workers: dict[int, _Worker] = {}
    selector = selectors.DefaultSelector()

    def start(slot: int) -> None:
        worker = _start(slot, job, waiting.pop(0), worker_environment(slot, settings.parallel, devices))
        workers[slot] = worker
        selector.register(worker.answers, selectors.EVENT_READ, slot)

    told_to_end: set[int] = set()
    try:
        with study.stopping.deferred():
            for slot in range(min(settings.parallel, len(waiting))):
                start(slot)
            while workers:
                if study.stopping.is_asked:
                    waiting.clear()
                    for slot, worker in workers.items():
                        if slot not in told_to_end:
                            told_to_end.add(slot)
                            worker.process.send_signal(signal.SIGTERM)
                # In this order: what one that ended had answered is ready then.
                ended = {slot for slot, worker in workers.items() if worker.process.poll() is not None}
                ready = {key.data for key, _ in selector.select(LOOK_SECONDS)}
                for slot, worker in list(workers.items()):
                    line = worker.answers.readline() if slot in ready else b""
                    is_dead = not line.endswith(b"\n") and (slot in ready or slot in ended)
                    if not line and not is_dead:
                        continue
                    answer = None if is_dead else json.loads(line)
                    is_over = answer is None or "interrupted" in answer
                    # What ends because the run is to end has not failed.
                    is_told = is_over and study.stopping.is_asked
                    failure = None if is_told else _failure_of(worker, answer, run_folder)
                    if waiting and not is_over:
                        workers[slot] = _given(worker, waiting.pop(0))
                    else:
                        selector.unregister(worker.answers)
                        _end(workers.pop(slot))
                        if waiting:
                            start(slot)
                    if not is_told:
                        yield worker.cell, failure
        if study.stopping.is_asked:
            study.stopping.end("the trainings that were begun are saved")
    finally:
        for worker in workers.values():
            _end(worker)
        selector.close()


def worker_environment(slot: int, parallel: int, devices: Sequence[str]) -> dict[str, str]:
    """Give the environment of a worker: this process's, its device alone to be seen, its share of the cores.

    Args:
        slot: Which of the workers it is, from 0.
        parallel: How many there are.
        devices: Of CUDA, as CUDA_VISIBLE_DEVICES names them; none where cells train on cores.
    """
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    # It shall import what this process would, from wherever that is.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // parallel)))
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot]
    return environment


def visible_devices() -> list[str]:
    """Name the CUDA devices this process may use, as CUDA_VISIBLE_DEVICES would."""
    numbers = [str(number) for number in range(torch.cuda.device_count())]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # One that is not there hides those behind it.
    return [name.strip() for name in given.split(",")][: len(numbers)] if given.strip() else numbers


def _start(slot: int, job: dict[str, Any], cell: PlannedCell, environment: dict[str, str]) -> _Worker:
    """Start a worker on its first cell."""
    read_end, write_end = os.pipe()
    printed = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        # Without -P, modules of the folder we are in would come before those installed.
        [sys.executable, "-P", "-m", "hf_transfer.evidence.worker", str(write_end)],
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=[write_end],
        # A Ctrl-C in the terminal is for this process alone, which ends the worker with all that it has forked.
        start_new_session=True,
    )
    os.close(write_end)
    worker = _Worker(process, slot, cell, os.fdopen(read_end, "rb"), printed)
    _tell(worker, job)
    return _given(worker, cell)


def _given(worker: _Worker, cell: PlannedCell) -> _Worker:
    """Give a worker the next cell."""
    _tell(worker, asdict(cell))
    return replace(worker, cell=cell)


def _tell(worker: _Worker, what: dict[str, Any]) -> None:
    assert worker.process.stdin is not None
    # One that is dead is found out when it is waited for.
    with suppress(BrokenPipeError):
        worker.process.stdin.write(json.dumps(what).encode() + b"\n")
        worker.process.stdin.flush()


def _failure_of(worker: _Worker, answer: dict[str, Any] | None, run_folder: Path) -> str | None:
    """Give why a worker's cell failed, or None.

    Args:
        worker: That trained it.
        answer: Of the worker; None where it ended without one.
        run_folder: That the cell's folder lies in.

    Raises:
        TransferError: The worker found a mistake of the user's.
        RuntimeError: It found a bug of ours.
    """
    if answer is None:
        return _found_dead(worker, run_folder)
    if "interrupted" in answer:
        failure = f"the process that trained it was {answer['interrupted']}"
        write_failure(worker.cell, failure, run_folder)
        return failure
    if "refused" in answer:
        raise getattr(errors, answer["kind"])(answer["refused"])
    if "traceback" in answer:
        raise RuntimeError(f"the process that trained {worker.cell} found a bug:\n{answer['traceback']}")
    failed: str | None = answer["failure"]
    return failed


def _found_dead(worker: _Worker, run_folder: Path) -> str | None:
    """Give why the cell of a worker that has ended failed, and write it down; None where it was finished by then."""
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(PATIENCE_SECONDS)
    code = worker.process.returncode
    # From here on nobody writes to the cell's folder but this process.
    _kill(worker)
    if (worker.cell.folder(run_folder) / RESULT_FILE).is_file():
        return None
    how = "closed its pipe" if code is None else f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
    failure = f"the process that trained it {how}"
    worker.printed.seek(max(0, worker.printed.seek(0, os.SEEK_END) - TAIL_BYTES))
    if printed := worker.printed.read().decode(errors="replace").strip():
        print(f"{worker.cell}: {failure}; it printed last:\n{printed}", file=sys.stderr)
    write_failure(worker.cell, failure, run_folder)
    return failure


def _kill(worker: _Worker) -> None:
    """Kill a worker with all that it has forked; what it was writing is swept when the run is resumed."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait()


def _end(worker: _Worker) -> None:
    _kill(worker)
    assert worker.process.stdin is not None
    for file in (worker.process.stdin, worker.answers, worker.printed):
        with suppress(BrokenPipeError):
            file.close()
