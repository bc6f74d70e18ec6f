"""What one of several processes does for all."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hf_transfer.errors import TransferError
from hf_transfer.escaping import visible

Value = TypeVar("Value")


def on_main_process(accelerator: Accelerator, do: Callable[[], Value]) -> Value:
    """Give what the main process finds, on every process; where it raises a user's mistake, all raise it."""
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found = [do(), None]
        except TransferError as error:
            error.is_shared = True
            found = [None, error]
    value, failure = broadcast_object_list(found)
    if failure is not None:
        raise failure
    return value


def any_process(accelerator: Accelerator, *found: bool) -> list[bool]:
    """Give what is so on one process at least, the same on all."""
    if accelerator.num_processes == 1:
        return list(found)
    counts = accelerator.reduce(torch.tensor([float(one) for one in found], device=accelerator.device), reduction="sum")
    return [count > 0 for count in counts.tolist()]


def say(accelerator: Accelerator, text: str) -> None:
    """Tell a person, once; where nobody reads it any more, go on."""
    if accelerator.is_main_process:
        with suppress(BrokenPipeError):
            print(visible(text), file=sys.stderr, flush=True)
