"""The recipes as subprocesses, as users run them: all their arms on a tiny model, on one process and on two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

import hf_transfer as ht
from tests.conftest import make_rows, write_csv

FOLDER = Path(__file__).parents[2] / "recipes"
ARMS = ["scratch", "head", "lora", "full"]
RECIPES = {"newsgroups": [*ARMS, "top"], "sentiment": ARMS, "ner": ARMS, "text": ARMS, "vit": [*ARMS, "top"], "image": [*ARMS, "top"]}
ZERO = Image.fromarray((load_digits().images[0] * 15).astype(np.uint8))
"""A scan of the embedded digits."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
LAUNCH = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def launched(script: Path, num_processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script under `accelerate launch`; two CPU processes take the form that really starts two."""
    many = ["--multi_gpu", "--main_process_port", "0"] if num_processes > 1 else []  # 0: any free port
    command = [sys.executable, "-m", *LAUNCH, *many, "--num_processes", str(num_processes), str(script)]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=300)


@pytest.fixture(scope="module")
def datasets(
    topics_folder: Path, names_folder: Path, photos_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[object]]:
    """Give the flags that name each recipe's data."""
    pairs = tmp_path_factory.mktemp("pairs")
    for split, num_rows in (("train", 60), ("test", 31)):
        rows = make_rows(2 * num_rows, seed=num_rows)
        made = [
            {"first": one["text"], "second": two["text"], "same": "yes" if one["label"] == two["label"] else "no"}
            for one, two in zip(rows[::2], rows[1::2], strict=True)
        ]
        write_csv(pairs / f"{split}.csv", made)
    return {
        "newsgroups": ["--dataset", topics_folder],
        "sentiment": ["--dataset", topics_folder],
        "ner": ["--dataset", names_folder],
        "text": ["--dataset", pairs, "--columns", "text=first", "text_pair=second", "label=same"],
        "vit": ["--dataset", photos_folder, "--columns", "image=image"],
        "image": ["--dataset", photos_folder],
    }


@pytest.fixture(scope="module")
def flags(tiny_bert: Path, tiny_vit: Path, datasets: dict[str, list[object]]) -> dict[str, list[object]]:
    # 33 training rows: the last update of an epoch holds one row, fewer than two processes, and one of them forwards a filler.
    # Dropout is off: its masks follow the micro-batches, which differ between one process and two. Sentences are read in windows.
    # 5 updates an epoch, 20 in all.
    shape = "--budgets 41 --batch-size 8 --epochs 4 --precision fp32 --set training.dropout=0"
    # Texts' weights move fast, so that a wrong update shows; those of images would carry rounding past the bound.
    length: list[object] = ["--max-length", 32, "--learning-rate", 1e-3]
    own = {
        "newsgroups": [
            "arms.top.num_blocks=1",
            "training.label_smoothing=0.1",
            "training.sampling=balanced",
            "training.class_weights={boats: 3}",
            "arms.full.gradual_unfreezing=0.5",
            "arms.full.layer_decay=0.8",
            "arms.top.l2_sp=0.1",
        ],
        "sentiment": ["training.class_weights=balanced"],
        "ner": ["training.class_weights=balanced", "task.loss_per=row", "task.max_length=12", "training.focal_gamma=2"],
        "text": ["training.class_weights=balanced"],
        "vit": ["arms.top.num_blocks=1", "task.augmentation.mixup=0.2", "task.augmentation.cutmix=1", "training.micro_batch_tokens=48"],
        "image": ["arms.top.num_blocks=1", "training.class_weights=balanced", "task.augmentation.erasing=0.5", "training.num_workers=2"],
    }
    checkpoints = {
        recipe: ["--checkpoint", tiny_vit] if recipe in ("vit", "image") else ["--checkpoint", tiny_bert, *length] for recipe in RECIPES
    }
    return {
        recipe: [*datasets[recipe], *checkpoints[recipe], "--arms", *arms, *shape.split(), *own[recipe]] for recipe, arms in RECIPES.items()
    }


@pytest.fixture(scope="module", params=list(RECIPES))
def alone(
    request: pytest.FixtureRequest, flags: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str]:
    """Run a recipe on one process -> its name, run folder and standard output."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    done = launched(FOLDER / f"{request.param}.py", 1, *flags[request.param], "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return request.param, folder, done.stdout


@pytest.fixture(scope="module")
def together(flags: dict[str, list[object]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run all recipes on two processes, one after the other in one launch -> the folder of the run folders, and standard output."""
    folder = tmp_path_factory.mktemp("runs-of-two")
    commands = [[recipe, [str(word) for word in [*flags[recipe], "--output-dir", folder / recipe]]] for recipe in RECIPES]
    (folder / "commands.json").write_text(json.dumps(commands))
    done = launched(Path(__file__).parent / "run_several.py", 2, folder / "commands.json")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def result_of(folder: Path, arm: str) -> dict[str, Any]:
    return json.loads((folder / arm / "budget-41/seed-0/result.json").read_text())


def probabilities_of(folder: Path, arm: str) -> tuple[list[int], np.ndarray]:
    """Give row ids and the probabilities of all items."""
    table = pq.read_table(folder / arm / "budget-41/seed-0/predictions.parquet").to_pydict()
    rows = table["probabilities"]
    items = [item for row in rows for item in (row if isinstance(row[0], list) else [row])]
    return table["row_id"], np.array(items)


def weights_of(folder: Path, arm: str) -> dict[str, np.ndarray]:
    """Give the weights of a cell's saved model; of LoRA its adapter and the head."""
    (file,) = (folder / arm / "budget-41/seed-0/model").glob("*.safetensors")
    return load_file(file)


def test_all_arms_on_one_process(alone: tuple[str, Path, str]) -> None:
    recipe, folder, printed = alone
    for arm in RECIPES[recipe]:
        assert f"\n  {arm} " in printed
    assert "Ship: " in printed
    assert files_of(folder) == sorted([*RECIPES[recipe], "comparison.json", "examples.json", "hygiene.json", "recipe.yaml", "report.html"])


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_same_updates_weights_and_predictions_on_two_processes(alone: tuple[str, Path, str], together: tuple[Path, str]) -> None:
    recipe, folder, _ = alone
    of_two = together[0] / recipe
    for arm in RECIPES[recipe]:
        one, two = (result_of(run, arm) for run in (folder, of_two))
        assert [result["environment"]["num_processes"] for result in (one, two)] == [1, 2]
        assert one["cost"]["updates"] == 20
        for key in ("updates", "rows_seen", "tokens_seen", "trainable_parameters"):
            assert one["cost"][key] == two["cost"][key]
        # Each run fills a cache of its own, the second by both processes.
        assert [result["cost"]["cache_seconds"] > 0 for result in (one, two)] == [arm in ("head", "top")] * 2
        expected_weights, weights = (weights_of(run, arm) for run in (folder, of_two))
        assert expected_weights.keys() == weights.keys()
        for name, expected in expected_weights.items():
            assert np.abs(weights[name] - expected).max() < 1e-5, name
        (ids, expected), (ids_of_two, found) = (probabilities_of(run, arm) for run in (folder, of_two))
        assert ids == ids_of_two == list(range(31)), "31 test rows on 2 processes"
        assert np.abs(found - expected).max() < 1e-5
        losses = [[entry["train_loss"] for entry in result["history"]] for result in (one, two)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert one["metrics"]["test"] == pytest.approx(two["metrics"]["test"], abs=1e-5)


def test_of_two_processes_one_writes_and_prints(alone: tuple[str, Path, str], together: tuple[Path, str]) -> None:
    folder, printed = together
    assert printed.count("Ship: ") == len(RECIPES)
    # The second was given folders of its own.
    assert files_of(folder) == sorted(["commands.json", *RECIPES])
    assert files_of(folder / alone[0]) == files_of(alone[1])


@pytest.mark.slow
def test_two_machines_need_no_disk_that_they_share(flags: dict[str, list[object]], tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launchers = []
    for machine in (0, 1):
        (tmp_path / f"{machine}").mkdir()
        launch = (
            f"-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank {machine} --master_addr 127.0.0.1 --master_port {port} --"
        )
        words = [*launch.split(), FOLDER / "newsgroups.py", *flags["newsgroups"], "--output-dir", "run"]
        own = {"HF_TRANSFER_CACHE": str(tmp_path / f"{machine}" / "cache")}
        launchers.append(
            subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=tmp_path / f"{machine}", env=os.environ | ENVIRONMENT | own, stderr=subprocess.PIPE
            )
        )
    said = [launcher.communicate(timeout=300)[1].decode() for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert "is not shared by all processes" in said[0]
    assert (tmp_path / "0/run/comparison.json").is_file()
    assert files_of(tmp_path / "1") == ["cache"]


def test_a_mistake_on_two_processes_is_said_once_and_by_all(flags: dict[str, list[object]], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: other")
    done = launched(FOLDER / "newsgroups.py", 2, *flags["newsgroups"], "--output-dir", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: output folder") == 1
    # Accelerate's launcher adds a traceback of its own; none of ours, and none of a process whose peer went away.
    assert "Connection closed" not in done.stderr
    assert "run_grid" not in done.stderr


def test_a_mistake_ends_with_code_2_and_one_sentence() -> None:
    command = [sys.executable, str(FOLDER / "newsgroups.py"), "--arms", "lroa"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, cwd="/")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "error: recipe newsgroups has no arm 'lroa', it has scratch, head, top, lora, full; did you mean 'lora'?"


@pytest.mark.parametrize(
    ("name", "epochs", "metric", "least", "example", "label"),
    [
        ("newsgroups", 3, "accuracy", 0.4, "My telescope shows Saturn's rings, but the tripod shakes.", "astronomy"),
        ("sentiment", 2, "accuracy", 0.55, "A waste of money: it broke after a week and the support was useless.", "negative"),
        ("ner", 10, "f1", 0.15, "Maria Lopez moved from Lisbon to Oslo.", "location"),
        ("vit", 5, "accuracy", 0.6, ZERO, "0"),
    ],
)
def test_the_embedded_data_read_whole(name: str, epochs: int, metric: str, least: float, example: Any, label: str, tmp_path: Path) -> None:
    """Each recipe's own `--embedded`, on the cheapest arm."""
    recipe = ht.load_recipe(name).override(
        {
            "data": {"source": f"embedded:{name}"},
            "checkpoint": "embedded:vit-cifar10" if name == "vit" else "embedded:all-MiniLM-L6-v2",
            "arms.head.num_epochs": epochs,
            **({"task.image": "image"} if name == "vit" else {"task.max_length": 48}),
        }
    )
    comparison = ht.run(recipe, arms=["head"], output_dir=tmp_path / "run")
    assert comparison.values["gains"] == []
    assert comparison.values["primary_metric"] == metric
    assert comparison.values["arms"][0]["mean"] > least
    answer = comparison.best().predict([example])[0]
    found = [answer["label"]] if "label" in answer else [entity["label"] for entity in answer["entities"]]
    assert label in found
