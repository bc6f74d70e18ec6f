"""The recipe as a subprocess, as users run it: all its arms on a tiny model, on one process and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import hf_transfer as ht

RECIPE = Path(__file__).parents[2] / "recipes" / "newsgroups.py"
ARMS = ["scratch", "head", "top", "lora", "full"]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
LAUNCH = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def launched(num_processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the recipe under `accelerate launch`; two CPU processes take the form that really starts two."""
    many = ["--multi_gpu", "--main_process_port", "0"] if num_processes > 1 else []  # 0: any free port
    command = [
        sys.executable,
        "-m",
        *LAUNCH,
        *many,
        "--num_processes",
        str(num_processes),
        str(RECIPE),
        *map(str, words),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


@pytest.fixture(scope="module")
def flags(tiny_bert: Path, topics_folder: Path) -> list[object]:
    # 33 training rows: the last update of an epoch holds one row, fewer than two processes, and one of them forwards a filler.
    # Dropout is off: its masks follow the micro-batches, which differ between one process and two.
    shape = "--max-length 32 --batch-size 8 --epochs 2 --precision fp32 --set training.dropout=0 training.class_weights=balanced"
    return [
        "--checkpoint",
        tiny_bert,
        "--dataset",
        topics_folder,
        "--arms",
        *ARMS,
        "--budgets",
        41,
        *shape.split(),
        "arms.top.num_blocks=1",
    ]


@pytest.fixture(scope="module")
def alone(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    done = launched(1, *flags, "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_all_arms_on_one_process(alone: tuple[Path, str]) -> None:
    folder, printed = alone
    for arm in ARMS:
        assert f"\n  {arm} " in printed
    assert "Ship: " in printed
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ARMS, "comparison.json", "recipe.yaml"])


def test_two_processes_make_the_same_updates_and_count_every_row_once(flags: list[object], alone: tuple[Path, str], tmp_path: Path) -> None:
    done = launched(2, *flags, "--output-dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Ship: ") == 1, "one process prints"
    for arm in ARMS:
        one, two = (folder / arm / "budget-41/seed-0" for folder in (alone[0], tmp_path / "two"))
        results = [json.loads((cell / "result.json").read_text()) for cell in (one, two)]
        assert [result["environment"]["num_processes"] for result in results] == [1, 2]
        for key in ("updates", "rows_seen", "tokens_seen", "trainable_parameters"):
            assert results[0]["cost"][key] == results[1]["cost"][key]
        tables = [pq.read_table(cell / "predictions.parquet").to_pydict() for cell in (one, two)]
        assert tables[1]["row_id"] == list(range(31)), "31 test rows on 2 processes"
        assert np.abs(np.array(tables[0]["probabilities"]) - np.array(tables[1]["probabilities"])).max() < 1e-5
        losses = [[entry["train_loss"] for entry in result["history"]] for result in results]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_mistake_on_two_processes_is_said_once_and_by_all(flags: list[object], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: other")
    done = launched(2, *flags, "--output-dir", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: output folder") == 1
    # Accelerate's launcher adds a traceback of its own; none of ours, and none of a process whose peer went away.
    assert "Connection closed" not in done.stderr
    assert "run_grid" not in done.stderr


def test_a_mistake_ends_with_code_2_and_one_sentence() -> None:
    done = subprocess.run([sys.executable, str(RECIPE), "--arms", "lroa"], capture_output=True, text=True, env=ENVIRONMENT, cwd="/")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "error: recipe newsgroups has no arm 'lroa', it has scratch, head, top, lora, full; did you mean 'lora'?"


def test_the_embedded_newsgroups_read_whole(tmp_path: Path) -> None:
    """The main job's data and checkpoint, on the cheapest arm: what scripts/quickstart runs with all four."""
    recipe = ht.load_recipe("newsgroups").override(
        {
            "data": {"source": "embedded:newsgroups"},
            "checkpoint": "embedded:all-MiniLM-L6-v2",
            "task.max_length": 32,
            "arms.head.num_epochs": 3,
        }
    )
    comparison = ht.run(recipe, arms=["head"], output_dir=tmp_path / "run")
    assert comparison.values["gains"] == []
    assert comparison.values["arms"][0]["mean"] > 0.4, "a frozen encoder beats chance (0.125) by far"
    assert comparison.best().predict(["My telescope shows Saturn's rings, but the tripod shakes."])[0]["label"] == "astronomy"
