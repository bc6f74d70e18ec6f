"""What the tests of grids share: a small recipe, a run of it that nothing interrupted, and ways to compare another with it."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_transfer as ht
from tests.evidence.made_runs import MakeRun, write_run

ARMS = {
    "scratch": ht.Arm(init="scratch", learning_rate=2e-3, num_epochs=2),
    "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=2),
    "full": ht.Arm(learning_rate=2e-3, num_epochs=2),
    "wild": ht.Arm(learning_rate=1e30, num_epochs=2),
}
GRID: dict[str, Any] = {"arms": ["scratch", "head"], "budgets": [30], "seeds": [0, 1]}
SECONDS = ("wall_seconds", "train_seconds", "wait_seconds", "cache_seconds")


@pytest.fixture(scope="session")
def topics_recipe(tiny_bert: Path, topics_folder: Path) -> ht.Recipe:
    return ht.Recipe(
        name="topics",
        task=ht.TextClassification(max_length=48),
        data=ht.DataConfig(str(topics_folder)),
        checkpoint=str(tiny_bert),
        arms=ARMS,
        training=ht.TrainingConfig(batch_size=8, precision="fp32"),
    )


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the cache that the uninterrupted run fills."""
    return tmp_path_factory.mktemp("whole") / "cache"


@pytest.fixture(scope="session")
def whole(topics_recipe: ht.Recipe, warm_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> ht.Comparison:
    """Give a run that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TRANSFER_CACHE", str(warm_cache))
        return ht.run(topics_recipe, output_dir=tmp_path_factory.mktemp("runs") / "whole", **GRID)


@pytest.fixture
def copied(whole: ht.Comparison, warm_cache: Path, cache: Path, tmp_path: Path) -> Path:
    """Give the folder of such a run, to do what one likes with, and the cache that it filled.

    From an empty cache the frozen blocks are computed in other company, which moves their last bits.
    """
    shutil.copytree(warm_cache, cache, dirs_exist_ok=True)
    return shutil.copytree(whole.folder, tmp_path / "run")


def untimed(value: Any) -> Any:
    """Give a JSON value without the fields that a clock fills."""
    if isinstance(value, dict):
        return {name: untimed(inner) for name, inner in value.items() if name not in SECONDS}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Give the time and bytes of every file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def finished(run: Path) -> list[Path]:
    return sorted(path.parent for path in run.glob("*/*/*/result.json"))


def assert_is_whole(run: Path, whole: ht.Comparison) -> None:
    """Check that a run found what the uninterrupted one did, and left nothing behind."""
    assert untimed(json.loads((run / "comparison.json").read_text())) == untimed(whole.values)
    assert (run / "recipe.yaml").read_bytes() == (whole.folder / "recipe.yaml").read_bytes()
    assert sorted(map(str, stamps(run))) == sorted(map(str, stamps(whole.folder)))
    for cell in finished(whole.folder):
        for path in (cell / "predictions.parquet", *(cell / "model").glob("*.safetensors")):
            assert (run / path.relative_to(whole.folder)).read_bytes() == path.read_bytes(), path


@pytest.fixture
def background(topics_recipe: ht.Recipe, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give a function that starts `hf-transfer run --config ... FLAGS` as a process of its own, with its group."""
    config = tmp_path / "asked.yaml"
    config.write_text(yaml.safe_dump(topics_recipe.to_dict() | {"run": GRID}))
    command = [sys.executable, "-c", "from hf_transfer.cli import run_cli; run_cli()", "run", "--config", str(config), "--output-dir"]
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *flags: object) -> subprocess.Popen[str]:
        process = subprocess.Popen([*command, str(folder), *map(str, flags)], stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Give a function that makes up the folder of a finished run; nothing is trained."""
    return functools.partial(write_run, tmp_path)
