"""What a launcher was asked for, against what it started: a run on fewer processes, or in a way that is not tested, does not begin."""

import math
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, get_int_from_env

from hf_transfer.errors import ConfigError

WAIT_MINUTES = 30.0
"""How long a process waits for another. What the main process does alone must fit in: the longest is the look for near-duplicates among
all rows, 9 s for the 18,822 posts of 20 Newsgroups (one thread of an AMD EPYC, 2026-11-21)."""
TESTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
UNTESTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism (parallelism_config)",
}
"""Variable in which `accelerate launch` says that it was asked for something -> its name."""
TWO_ON_CPUS = (
    "`accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no FILE.py` or "
    "`torchrun --nproc_per_node 2 -- FILE.py`"
)
MPI_SIZES = ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]


def check_launch() -> None:
    """Refuse what can be seen to be wrong before the processes join.

    Raises:
        ConfigError: Fewer processes were started than asked for, or more on this machine than it has GPUs; or they shall train in a way
            that is not tested.
    """
    for variable, name in UNTESTED.items():
        if _is_on(variable):
            raise ConfigError(f"{name} is not supported: {_INSTEAD}")
    if _is_on("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(f"FSDP version 1 is not supported, version 2 is (--fsdp_version 2): {_INSTEAD}")
    # For one process Accelerate's launcher says no address; where it starts the others, it numbers them, and so does MPI.
    is_lone = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ and get_int_from_env(MPI_SIZES, 1) == 1
    if is_lone and "MASTER_ADDR" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does with --cpu, or where it finds one GPU or "
            f"none: for two processes on CPUs take {TWO_ON_CPUS}, for one --num_processes 1 (and unset MASTER_ADDR where you set it)"
        )
    num_local, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    # Its processes see the same GPUs; those of other launchers may each see one alone.
    is_torchrun = "TORCHELASTIC_RUN_ID" in os.environ and not _is_on("ACCELERATE_USE_CPU")
    if is_torchrun and 0 < num_gpus <= int(os.environ.get("LOCAL_RANK", "0")):
        raise ConfigError(
            f"{num_local} processes were started on this machine, it has {num_gpus} GPU{'' if num_gpus == 1 else 's'}: start one for each"
        )


def check_processes(accelerator: Accelerator) -> None:
    """Refuse what shows once the processes have joined.

    Raises:
        ConfigError: They are fewer than the launcher numbered, or train in a way that is not tested.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes < asked:
        raise ConfigError(
            f"WORLD_SIZE asks for {asked} processes, found {accelerator.num_processes}: start them with accelerate launch or torchrun, "
            "which set RANK and LOCAL_RANK too, or unset it"
        )
    if accelerator.distributed_type not in TESTED:
        raise ConfigError(f"Accelerate's distributed type {accelerator.distributed_type.value} is not supported: {_INSTEAD}")


def wait_limit() -> timedelta:
    """Give how long a process waits for another before it gives up: HF_TRANSFER_WAIT_MINUTES, 30 where it is not set.

    Raises:
        ConfigError: It is set to no number above 0.
    """
    given = os.environ.get("HF_TRANSFER_WAIT_MINUTES", str(WAIT_MINUTES))
    try:
        minutes = float(given)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise ConfigError(f"HF_TRANSFER_WAIT_MINUTES must be a number of minutes above 0, found {given!r}")
    return timedelta(minutes=minutes)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


_INSTEAD = "start one process a GPU (--multi_gpu), or take FSDP2 (--use_fsdp --fsdp_version 2)"
