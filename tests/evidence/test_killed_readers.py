"""A process that reads input ahead is killed in mid-training or mid-prediction: its cell fails, the grid goes on."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_transfer as ht
from hf_transfer.data.ahead import make_ahead
from tests.conftest import Run
from tests.evidence.conftest import finished, stamps


def make_and_kill() -> Callable[..., Generator[Any]]:
    """Give a `make_ahead` that is slow the first time, and one of whose workers is killed then."""
    made: list[int] = []

    def kill(before: set[Any]) -> None:
        while not (children := set(multiprocessing.active_children()) - before):
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(children.pop().pid, signal.SIGKILL)

    def making(make: Callable[[int], Any], count: int, num_workers: int) -> Generator[Any]:
        if num_workers == 0 or count <= 2 * num_workers or made:
            return make_ahead(make, count, num_workers)
        made.append(count)
        threading.Thread(target=kill, args=(set(multiprocessing.active_children()),), daemon=True).start()

        def slowly(index: int) -> Any:
            time.sleep(0.2)
            return make(index)

        return make_ahead(slowly, count, num_workers)

    return making


@pytest.mark.parametrize("where", ["training.batches", "evaluation.prediction"])
def test_a_killed_reader_fails_its_cell_alone(
    photos_folder: Path, tiny_vit: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    recipe = ht.Recipe(
        name="photos",
        task=ht.ImageClassification(),
        data=ht.DataConfig(str(photos_folder)),
        checkpoint=str(tiny_vit),
        arms={"full": ht.Arm(learning_rate=3e-3, num_epochs=1)},
        # As many micro-batches to predict as two workers have to do with.
        training=ht.TrainingConfig(batch_size=8, precision="fp32", num_workers=2, micro_batch_tokens=32),
    )
    config, folder = tmp_path / "asked.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(recipe.to_dict() | {"run": {"arms": ["full"], "budgets": ["all"], "seeds": [0, 1]}}))
    with monkeypatch.context() as patch:
        patch.setattr(f"hf_transfer.{where}.make_ahead", make_and_kill())
        started = time.monotonic()
        code, _, err = run("run", "--config", config, "--output-dir", folder)
    assert (code, "Traceback" in err) == (2, False), err
    assert time.monotonic() - started < 40
    (told,) = [line for line in err.splitlines() if " failed: " in line]
    assert told.startswith("1 of 2 failed: full, budget all, seed 0: a process that reads input ahead was killed (")
    assert "set training.num_workers=0" in told
    failure = json.loads((folder / "full/budget-all/seed-0/failure.json").read_text())
    assert failure["error"].startswith("a process that reads input ahead was killed (")
    (cell,) = finished(folder)
    before = stamps(cell)
    assert run("run", "--config", config, "--output-dir", folder, "--resume")[0] == 0
    assert len(finished(folder)) == 2
    assert before.items() <= stamps(cell).items()
