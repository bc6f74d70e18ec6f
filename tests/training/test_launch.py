"""What a launcher says it was asked for, against what it started."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from hf_transfer.errors import ConfigError
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.launch import check_launch, check_processes, wait_limit

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""What `accelerate launch --cpu --num_processes 2` sets for the one process it starts."""
STARTED = {"LOCAL_RANK": "1", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
TORCHRUN = STARTED | {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(("ACCELERATE_", "FSDP_", "MASTER_", "OMPI_", "PMI_")) or variable in TORCHRUN:
            monkeypatch.delenv(variable)


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Give what is said of a launch with these variables, "" where nothing is."""
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            check_launch()
        except ConfigError as error:
            return str(error)
    return ""


def test_fewer_processes_than_asked_for_are_refused_with_the_command_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    said = launched(monkeypatch, **LAUNCHED)
    assert said.startswith("accelerate launch was asked for several processes and started one")
    assert "accelerate launch --multi_gpu --num_processes 2 --num_machines 1" in said
    assert "torchrun --nproc_per_node 2" in said
    for fine in (
        {},
        {"ACCELERATE_MIXED_PRECISION": "no"},  # --num_processes 1
        {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},  # a batch script's own, and no launcher
        LAUNCHED | STARTED,
        LAUNCHED | {"OMPI_COMM_WORLD_SIZE": "2"},  # mpirun numbers its processes in its own way
        TORCHRUN,
    ):
        assert launched(monkeypatch, **fine) == "", fine


def test_accelerate_launch_still_shows_that_it_was_asked_for_more(tmp_path: Path) -> None:
    (tmp_path / "ask.py").write_text("from hf_transfer.training.launch import check_launch\ncheck_launch()\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes"]
    asked = {
        number: subprocess.run([*command, number, str(tmp_path / "ask.py")], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        for number in ("1", "2")
    }
    assert asked["1"].returncode == 0, asked["1"].stderr
    assert asked["2"].returncode != 0
    assert "asked for several processes and started one" in asked["2"].stderr


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "tensor, context or sequence"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP version 1 is"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 is"),
    ],
)
def test_ways_that_are_not_tested_are_refused_before_the_processes_join(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in (TORCHRUN | variables).items():
        monkeypatch.setenv(variable, value)
    # It would wait for the other process otherwise.
    with pytest.raises(ConfigError, match=f"^{name}.* not supported.*--use_fsdp --fsdp_version 2"):
        make_accelerator("fp32")


def test_fsdp2_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", **STARTED) == ""


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.XLA, DistributedType.MEGATRON_LM])
def test_a_distributed_type_that_is_not_tested_is_refused(kind: DistributedType) -> None:
    accelerator: Any = SimpleNamespace(num_processes=2, distributed_type=kind)
    with pytest.raises(ConfigError, match=f"distributed type {kind.value} is not supported"):
        check_processes(accelerator)
    for tested in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP):
        check_processes(SimpleNamespace(num_processes=2, distributed_type=tested))  # type: ignore[arg-type]


def test_fewer_processes_than_world_size_says_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    accelerator: Any = SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO)
    with pytest.raises(ConfigError, match="WORLD_SIZE asks for 4 processes, found 1"):
        check_processes(accelerator)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    four = TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "4"}
    assert launched(monkeypatch, **(four | {"LOCAL_RANK": "1"})) == ""
    said = launched(monkeypatch, **(four | {"LOCAL_RANK": "2"}))
    assert said == "4 processes were started on this machine, it has 2 GPUs: start one for each"
    # Another launcher may show each process a GPU of its own.
    assert launched(monkeypatch, **(STARTED | {"LOCAL_RANK": "2"})) == ""
    # On a machine without GPUs any number may be started.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert launched(monkeypatch, **(four | {"LOCAL_RANK": "2"})) == ""


def test_how_long_a_process_waits_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TRANSFER_WAIT_MINUTES", raising=False)
    assert wait_limit() == timedelta(minutes=30)
    monkeypatch.setenv("HF_TRANSFER_WAIT_MINUTES", "90.5")
    assert wait_limit() == timedelta(minutes=90.5)
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("HF_TRANSFER_WAIT_MINUTES", wrong)
        with pytest.raises(ConfigError, match=f"HF_TRANSFER_WAIT_MINUTES .* found '{wrong}'"):
            wait_limit()
