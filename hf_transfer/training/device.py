"""What the hardware does well: precision "auto", padded tokens of a micro-batch, peak memory."""

import atexit
import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from hf_transfer.data.images import num_cores
from hf_transfer.errors import ConfigError, did_you_mean, listed
from hf_transfer.models.cpu_kernels import bound_kernel_cache
from hf_transfer.models.sharding import check_sharding
from hf_transfer.training.launch import check_launch, check_processes, wait_limit

CPU_MICRO_BATCH_TOKENS = 1024
"""In training and in prediction. Predicting 32 newsgroups posts (all-MiniLM-L6-v2, 512 tokens, median 198; AMD EPYC, 2026-11-20; the
sizes in turn, five rounds, medians of ratios to 1,024): 512 takes 0.95, 2,048 takes 1.07 and 4,096 takes 1.24 times as long in bf16 on one
thread; 0.99, 1.03 and 1.19 in fp32 on two. Half as many tokens gain too little for a constant of their own."""
GPU_MICRO_BATCH_TOKENS = 8192
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Precision -> what a model computes in."""


def make_accelerator(precision: str) -> Accelerator:
    """Make the Accelerator of a run, which says the device, the processes and the precision.

    Raises:
        ConfigError: The device cannot do the precision, the launcher started other processes than a run can use, or it asked for a sharding
            that is not supported.
    """
    check_launch()
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        bound_kernel_cache()
    resolved = resolve_precision(precision)
    mixed_precision = "no" if resolved == "fp32" else resolved
    # Accelerate keeps the first precision of a process for ever; a second run may ask for another.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    joining = InitProcessGroupKwargs(timeout=wait_limit())
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=on_cpu, kwargs_handlers=[joining])
    check_processes(accelerator)
    check_sharding(accelerator)
    atexit.register(_leave_group)
    return accelerator


def _leave_group() -> None:
    """Leave the processes at the end, not with a run: one that left cannot join again, and a script may run several.

    A wrapped model that outlives the group aborted 2 of 10 processes of gloo at their end; none of 30 where it was collected before.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def resolve_precision(precision: str) -> str:
    """Give "bf16", "fp16" or "fp32": what was asked for, or what "auto" means here.

    Raises:
        ConfigError: There is no such precision, or the device cannot do it.
    """
    if precision not in ("auto", *DTYPES):
        raise ConfigError(f"precision must be {listed(['auto', *DTYPES])}, found {precision!r}{did_you_mean(str(precision), DTYPES)}")
    if precision == "fp16" and not torch.accelerator.is_available():
        raise ConfigError("precision fp16 needs a GPU, found a CPU only: take auto, bf16 or fp32")
    return auto_precision() if precision == "auto" else precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Give the context in which a model of fp32 weights computes in a precision ("auto" included).

    Raises:
        ConfigError: There is no such precision, or the device cannot do it.
    """
    resolved = resolve_precision(precision)
    return torch.autocast(device.type, DTYPES[resolved], enabled=resolved != "fp32")


def auto_precision() -> str:
    """Give "bf16" where the hardware multiplies bf16 (recent GPUs; CPUs with AVX512-BF16 or AMX), else "fp32"."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.accelerator.is_available():
        return "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def default_micro_batch_tokens(device: torch.device) -> int:
    """Give the padded tokens of a micro-batch: constants, never a stopwatch, so that runs repeat bit for bit."""
    return CPU_MICRO_BATCH_TOKENS if device.type == "cpu" else GPU_MICRO_BATCH_TOKENS


def default_num_workers(accelerator: Accelerator) -> int:
    """Give the processes that read images ahead for each training process: what cores are left over, one at least, eight at most."""
    share = num_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    return min(8, max(1, share - 1))


def device_memory_bytes(accelerator: Accelerator) -> int:
    """Give the memory of the device: the GPU's own, or this machine's."""
    if accelerator.device.type == "cuda":
        return int(torch.cuda.get_device_properties(accelerator.device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def process_memory_bytes() -> int:
    """Give what this process holds in memory now; its peak, where the system does not say."""
    return _status_bytes("VmRSS:")


def reset_loss_scale(accelerator: Accelerator) -> None:
    """Let the scaler of fp16 begin anew, so that a training does not depend on those before it."""
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(torch.amp.GradScaler(accelerator.device.type).state_dict())


def reset_peak_memory(accelerator: Accelerator) -> None:
    """Start measuring peak memory anew."""
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    # Linux lets a process reset its own high-water mark; elsewhere the peak is that of the whole process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(accelerator: Accelerator) -> int:
    """Give the peak since `reset_peak_memory`: allocated on a GPU, resident in this process on a CPU."""
    if accelerator.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return _status_bytes("VmHWM:")


def _status_bytes(field: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
