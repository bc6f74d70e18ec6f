"""What a result was made with."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Give versions, device, processes, threads, precision and commit, as `result.json` keeps them."""
    precision = accelerator.mixed_precision
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "transformers", "accelerate", "peft")},
        "device": _device_name(accelerator),
        "num_processes": accelerator.num_processes,
        "num_threads": torch.get_num_threads(),
        "precision": "fp32" if precision == "no" else str(precision),
        "git": _commit(),
    }


def _device_name(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(accelerator.device)
    if accelerator.device.type == "cpu":
        return f"cpu ({torch.cpu.get_capabilities().get('cpu_name') or platform.machine()})"
    return accelerator.device.type


@functools.cache
def _commit() -> str | None:
    """Give the commit of this package's own checkout, or None where it was installed from a wheel; once, as the code is loaded once."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
