"""Trainings told to an experiment tracker, through Accelerate's trackers: one run a training, in a project of the recipe's name.

Numbers and settings only: no row, no text and no label of the data.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from hf_transfer.errors import ConfigError, InstallationError, first_line
from hf_transfer.escaping import visible_line, without_secrets

Log = Callable[[int, Mapping[str, Any]], None]
"""Takes an update, from 1, and what is known after it: name -> number; what is no number is left out."""


def check_tracker(tracker: str) -> None:
    """Check that a tracker can be used; wandb asks its server who is there, unless WANDB_MODE says otherwise.

    Raises:
        InstallationError: It is not installed.
        ConfigError: wandb does not know the user.
    """
    if importlib.util.find_spec(tracker) is None:
        raise InstallationError(f"tracker {tracker} is not installed: pip install {tracker}")
    if tracker == "wandb":
        import wandb

        if wandb.setup().settings.mode == "online":
            remedy = "run `wandb login`, or set WANDB_MODE=offline to keep the runs on this machine"
            try:
                known = wandb.login(prompt=False)
            except wandb.Error as error:
                raise ConfigError(f"tracker wandb: {first_line(error)}; {remedy}") from None
            if not known:
                raise ConfigError(f"tracker wandb does not know you: {remedy}")


@contextmanager
def tracked(
    tracker: str | None, project: str, run: str, settings: Mapping[str, Any], folder: Path, updates: int = 0
) -> Iterator[Log | None]:
    """Lend what logs one training; a tracker that fails is told of on standard error, and the training goes on without it.

    Args:
        tracker: "tensorboard", "wandb", "mlflow", "trackio", or None. For the main process only.
        project: What the runs of one recipe stand under.
        run: Name of this one, a path: `lora/budget-all/seed-0`.
        settings: Nested; stored beside the run, by dotted names.
        folder: What a tracker keeps on this machine goes here; trackio's goes where `trackio show` looks.
        updates: Behind which a training that was broken off goes on. TensorBoard keeps what was logged up to there; with the others it
            becomes a run of its own.
    """
    if tracker is None:
        yield None
        return
    opened: list[GeneralTracker] = []
    failed = False

    def attempt(work: Callable[[], Any]) -> None:
        nonlocal failed
        try:
            # trackio prints to standard output, which holds the comparison.
            with contextlib.redirect_stdout(sys.stderr):
                work()
        except Exception as error:
            # Whatever a tracker raises (its server is gone, its disk is full), hours of training are worth more than their log.
            if not failed:
                what = visible_line(without_secrets(" ".join(str(error).split())[:200]))
                print(f"note: {run} is not tracked any more, {tracker} failed: {type(error).__name__}: {what}", file=sys.stderr)
            failed = True

    def start() -> None:
        begun = _open(tracker, project, run, folder, updates)
        begun.start()
        opened.append(begun)
        begun.store_init_configuration(_flat(settings))

    def log(update: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        if not failed:
            attempt(functools.partial(opened[0].log, numbers, step=update))

    with _mlflow_in(folder) if tracker == "mlflow" else contextlib.nullcontext():
        attempt(start)
        try:
            yield log
        finally:
            # One that failed, too: mlflow begins no run before the last is ended.
            for begun in opened:
                attempt(functools.partial(_finish, tracker, begun))


def named(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Give values by the names under which a tracker groups them: `test/accuracy`."""
    return {f"{group}/{name}": value for name, value in values.items()}


def _open(tracker: str, project: str, run: str, folder: Path, updates: int) -> GeneralTracker:
    match tracker:
        case "tensorboard":
            # What a training that was killed wrote there would be drawn over by this one: all of it, or what is done once more.
            if not updates:
                shutil.rmtree(folder / run, ignore_errors=True)
            return TensorBoardTracker(run, folder, purge_step=updates + 1 if updates else None)
        case "wandb":
            folder.mkdir(parents=True, exist_ok=True)
            return WandBTracker(project, name=run, dir=str(folder))
        case "mlflow":
            return MLflowTracker(project, run_name=run)
        case "trackio":
            return TrackioTracker(project, name=run)
    raise AssertionError(tracker)


def _finish(tracker: str, opened: GeneralTracker) -> None:
    if tracker == "trackio":
        import trackio

        # Accelerate's leaves the run current: trackio ends it again with the program, and says so on standard output.
        trackio.finish()
    else:
        opened.finish()


@contextmanager
def _mlflow_in(folder: Path) -> Iterator[None]:
    """Let mlflow write to a folder, unless the user says where; by itself it takes the current one."""
    variable = "MLFLOW_TRACKING_URI"
    if variable in os.environ:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[variable] = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    try:
        yield
    finally:
        del os.environ[variable]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Give nested settings by dotted names; what trackers cannot hold, as text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
