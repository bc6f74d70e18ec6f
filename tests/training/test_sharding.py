"""Sharded trainings (FSDP2) on two CPU processes: the same as on one; what is saved is whole; states go from one to the other.

See `sharded_on_cpu` for what stands in for Accelerate on a CPU. The configuration is a YAML as `accelerate config` writes it.
"""

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import hf_transfer as ht
from hf_transfer.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from hf_transfer.evaluation.prediction import predict_logits
from hf_transfer.models.sharding import check_shardable, check_sharding, is_sharded, local, prepare
from hf_transfer.models.tuning import find_blocks
from hf_transfer.tasks.items import TextWindow, lay_out
from hf_transfer.training import accumulation, loop
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.optimization import build_optimizer
from tests.conftest import make_rows, save_tiny_bert, write_csv
from tests.training.test_accumulation import CUDA, collate

ARMS = ["scratch", "head", "lora", "full", "top"]
STOPPED_AT = 7
NUM_UPDATES = 20
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: false
"""
SCRIPT = """
import sys
from pathlib import Path
from tests.training.test_sharding import shard_and_train
shard_and_train(Path(sys.argv[1]))
"""


def recipe_of(root: Path, optimizer: str) -> ht.Recipe:
    """Give a recipe of five updates an epoch; the last of them holds one row, fewer than there are processes."""
    training: dict[str, Any] = {"optimizer": optimizer, "batch_size": 8, "micro_batch_tokens": 64, "dropout": 0.0, "precision": "fp32"}
    rate = {"sgd": 0.02, "adamw": 0.002}[optimizer]
    arms: dict[str, dict[str, Any]] = {arm: {"num_epochs": 4, "learning_rate": rate} for arm in ARMS}
    own = {"full": {"layer_decay": 0.8, "gradual_unfreezing": 0.5}, "top": {"num_blocks": 1, "l2_sp": 3.0}}
    arms = {arm: settings | own.get(arm, {}) for arm, settings in arms.items()}
    changed = {f"arms.{arm}.{name}": value for arm, settings in arms.items() for name, value in settings.items()}
    changed |= {f"training.{name}": value for name, value in training.items()}
    changed |= {"task.max_length": 32, "checkpoint": str(root / "bert"), "data.source": str(root / "topics"), "data.label_names": None}
    return ht.load_recipe("newsgroups").override(changed)


def run(root: Path, name: str, arms: list[str], optimizer: str, **settings: Any) -> None:
    ht.run(recipe_of(root, optimizer), arms=arms, output_dir=root / name, **settings)


def run_until_stopped(root: Path, name: str) -> None:
    """Run arm lora, and let SIGTERM end it behind an update."""

    class Ends(loop.Progress):
        def advance(self, updates: int, *numbers: Any) -> None:
            super().advance(updates, *numbers)
            if updates == STOPPED_AT:
                os.kill(os.getpid(), signal.SIGTERM)

    with (
        mock.patch.object(loop, "Progress", Ends),
        pytest.raises(Interrupted, match=f"update {STOPPED_AT} of {NUM_UPDATES}, its state saved"),
    ):
        run(root, name, ["lora"], "adamw")


def shard_and_train(root: Path) -> None:
    """Do what two processes do: the trainings, and a look at one sharded model."""
    # A run leaves the group of processes at its end; here three runs share one.
    with mock.patch.object(Accelerator, "end_training"):
        run(root, "sharded", ARMS, "sgd")
        run_until_stopped(root, "sharded-stopped")
        run(root, "plain-stopped", ["lora"], "adamw", resume=True)
    accelerator = make_accelerator("fp32")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(root / "bert"))
    plain = copy.deepcopy(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    prepared, optimizer = prepare(model, build_optimizer(model, "adamw", 0.1, 0.0), accelerator)
    predictions = {}
    for num_rows in (1, 6, 7):
        layout = layout_of(num_rows)
        logits = [predict_logits(one, layout, collate, lambda logits, _: logits, 20, accelerator) for one in (model, plain)]
        predictions[num_rows] = [array.tolist() for array in logits]
    arguments = collate(layout_of(4).windows)
    prepared(**arguments).logits.sum().backward()
    optimizer.step()
    states = [held for state in optimizer.optimizer.state.values() for name, held in state.items() if name == "exp_avg"]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    found = {
        "sharded_blocks": [is_sharded(block) for block in find_blocks(prepared)[1]],
        "total": total,
        "held": {
            name: size_of(tensors) for name, tensors in (("weights", model.parameters()), ("gradients", gradients), ("states", states))
        },
        "predictions": predictions,
    }
    (root / f"found-{accelerator.process_index}.json").write_text(json.dumps(found))


def size_of(tensors: Any) -> int:
    return sum(local(tensor).numel() for tensor in tensors)


def layout_of(num_rows: int) -> Any:
    rng = np.random.default_rng(num_rows)
    sizes = [10, 3, 9, 15, 4, 12, 7][:num_rows]
    return lay_out([(TextWindow(rng.integers(1, 64, size).astype(np.int32), items=np.zeros(1, dtype=np.int64)),) for size in sizes])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the runs of one process and of two, sharded: whole ones, and ones that the other side went on with."""
    root = tmp_path_factory.mktemp("sharding")
    for split, num_rows in (("train", 33), ("validation", 51), ("test", 31)):
        (root / "topics").mkdir(exist_ok=True)
        write_csv(root / f"topics/{split}.csv", make_rows(num_rows, seed=num_rows))
    # Large weights, so that a plain SGD learns: unlike AdamW it shows any wrong factor of a gradient.
    save_tiny_bert(root / "bert", initializer_range=0.3)
    run(root, "plain", ARMS, "sgd")
    run(root, "plain-adamw", ["lora"], "adamw")
    run_until_stopped(root, "plain-stopped")
    (root / "fsdp.yaml").write_text(CONFIG)
    (root / "script.py").write_text(SCRIPT)
    project = Path(__file__).parents[2]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(root / "fsdp.yaml"), "--main_process_port", "0"]
    command = [*launch, str(Path(__file__).parent / "sharded_on_cpu.py"), str(root / "script.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(project)}, cwd=project, timeout=300)
    assert done.returncode == 0, done.stderr
    run(root, "sharded-stopped", ["lora"], "adamw", resume=True)
    return root


def cell_of(root: Path, run: str, arm: str) -> Path:
    return root / run / arm / "budget-all" / "seed-0"


def result_of(root: Path, run: str, arm: str) -> dict[str, Any]:
    return json.loads((cell_of(root, run, arm) / "result.json").read_text())


def weights_of(root: Path, run: str, arm: str) -> dict[str, torch.Tensor]:
    (path,) = (cell_of(root, run, arm) / "model").glob("*.safetensors")
    return load_file(path)


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def probabilities_of(root: Path, run: str, arm: str) -> np.ndarray:
    table = pq.read_table(cell_of(root, run, arm) / "predictions.parquet").to_pydict()
    assert table["row_id"] == list(range(31))
    return np.array(table["probabilities"])


@pytest.mark.parametrize("arm", ARMS)
def test_a_sharded_training_is_that_of_one_process(root: Path, arm: str) -> None:
    one, two = (result_of(root, run, arm) for run in ("plain", "sharded"))
    assert [result["environment"]["num_processes"] for result in (one, two)] == [1, 2]
    for key in ("updates", "rows_seen", "tokens_seen", "trainable_parameters", "total_parameters"):
        assert one["cost"][key] == two["cost"][key]
    assert one["cost"]["updates"] == NUM_UPDATES
    assert farthest(*(weights_of(root, run, arm) for run in ("plain", "sharded"))) < 1e-5
    assert np.abs(probabilities_of(root, "plain", arm) - probabilities_of(root, "sharded", arm)).max() < 1e-5
    for entries in zip(one["history"], two["history"], strict=True):
        losses, validation = (
            [value(entry) for entry in entries] for value in (lambda e: e["train_loss"], lambda e: e["validation"]["loss"])
        )
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert validation[0] == pytest.approx(validation[1], abs=1e-5)
    assert one["best_epoch"] == two["best_epoch"]


@pytest.mark.parametrize("arm", ARMS)
def test_the_best_state_is_restored_and_measured(root: Path, arm: str) -> None:
    result = result_of(root, "sharded", arm)
    losses = [entry["validation"]["loss"] for entry in result["history"]]
    assert result["best_epoch"] == 1 + losses.index(min(losses))
    assert result["metrics"]["validation"]["loss"] == pytest.approx(min(losses), abs=1e-9)


def test_a_best_state_before_the_last_is_among_those_restored(root: Path) -> None:
    assert any(result_of(root, "sharded", arm)["best_epoch"] < 4 for arm in ARMS)


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_what_is_saved_is_whole_and_predicts_the_same(root: Path, arm: str) -> None:
    texts = [row["text"] for row in make_rows(31, seed=31)]
    probabilities = probabilities_of(root, "sharded", arm)
    loaded = ht.load(str(cell_of(root, "sharded", arm)))
    for answer, expected in zip(loaded.predict(texts, precision="fp32"), probabilities, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(list(expected), abs=1e-5)
    names = [weights_of(root, run, arm).keys() for run in ("plain", "sharded")]
    assert names[0] == names[1], "an adapter holds no more than it would from one process"
    if arm == "lora":
        return
    folder = cell_of(root, "sharded", arm) / "model"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    encoded = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**encoded).logits.softmax(-1).numpy()
    assert np.abs(found - probabilities).max() < 1e-5


@pytest.mark.parametrize("stopped", ["plain-stopped", "sharded-stopped"])
def test_a_saved_state_goes_from_one_process_to_two_and_back(root: Path, stopped: str) -> None:
    whole, resumed = (result_of(root, run, "lora") for run in ("plain-adamw", stopped))
    assert resumed["resumed_from"] == [STOPPED_AT]
    assert resumed["environment"]["num_processes"] == (2 if stopped == "plain-stopped" else 1)
    assert [entry["train_loss"] for entry in resumed["history"]] == pytest.approx(
        [entry["train_loss"] for entry in whole["history"]], abs=1e-5
    )
    assert resumed["best_epoch"] == whole["best_epoch"]
    assert farthest(*(weights_of(root, run, "lora") for run in ("plain-adamw", stopped))) < 1e-5


def test_each_process_holds_its_share_and_predicts_every_row(root: Path) -> None:
    found = [json.loads((root / f"found-{process}.json").read_text()) for process in range(2)]
    assert [one["sharded_blocks"] for one in found] == [[True, True]] * 2, "a block's weights are gathered while it runs"
    for what in ("weights", "gradients", "states"):
        shares = [one["held"][what] for one in found]
        assert sum(shares) == found[0]["total"]
        assert max(shares) < 0.55 * found[0]["total"]
    # One row: the second process has none. Micro-batches of at most 20 tokens: one process has more of them than the other.
    for one in found:
        for sharded, plain in one["predictions"].values():
            assert np.abs(np.array(sharded) - np.array(plain)).max() < 1e-6


def test_a_cpu_run_that_asks_for_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match="shards on GPUs only"):
        make_accelerator("fp32")


def sharding(**settings: Any) -> Any:
    """Give what is looked at of an accelerator that shards on GPUs."""
    plugin = SimpleNamespace(cpu_offload=settings.pop("cpu_offload", None), activation_checkpointing=False, cpu_ram_efficient_loading=True)
    plugin.activation_checkpointing = settings.pop("activation_checkpointing", False)
    plain = {"device": torch.device("cuda"), "is_fsdp2": True, "parallelism_config": None, "mixed_precision": "bf16"}
    return SimpleNamespace(**(plain | settings), state=SimpleNamespace(fsdp_plugin=plugin))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"cpu_offload": torch.distributed.fsdp.CPUOffloadPolicy()}, "fsdp_offload_params"),
        ({"activation_checkpointing": True}, "take --activation-checkpointing"),
        ({"parallelism_config": object()}, "parallelism_config"),
        ({"mixed_precision": "fp16"}, "fp16"),
    ],
)
def test_what_is_not_supported_is_refused(settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(ConfigError, match=sentence):
        check_sharding(sharding(**settings))


def test_every_process_loads_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    accelerator = sharding()
    check_sharding(accelerator)
    assert not accelerator.state.fsdp_plugin.cpu_ram_efficient_loading
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def shared() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(("build", "sentence"), [(shared, "0.weight and 1.weight"), (lambda: nn.BatchNorm1d(3), "trains batch norms")])
def test_a_model_that_cannot_be_sharded_is_refused(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        check_shardable(build(), sharding())
    check_shardable(build(), sharding(is_fsdp2=False))


def test_out_of_memory_ends_a_sharded_run_instead_of_leaving_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(accumulation, "_losses_of", fail)
    model: Any = SimpleNamespace(set_requires_gradient_sync=None)
    # It has no `reduce`, in which a process asks the others.
    settings = {"num_processes": 2, "device": torch.device("cpu"), "no_sync": lambda model: nullcontext(), "backward": None}
    accelerator: Any = SimpleNamespace(**settings)
    for micro_batches in ([None], [None, None]):
        with pytest.raises(TrainingError, match="set training.micro_batch_tokens to half"):
            accumulation.accumulate(model, micro_batches, mock.MagicMock(weight_of=lambda _: 1.0), 0, None, accelerator)  # type: ignore[arg-type]
