"""The end of one of several processes that fails: the first to fail says why, and the others hold their peace.

When one ends, the others lose it in whatever they wait for, and the launcher ends them; what they would tell of that hides the reason.
"""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from torch import distributed

from hf_transfer.errors import TransferError, first_line
from hf_transfer.training.launch import wait_limit

HEAD_START = 1.0
"""Seconds that the main process has to fail of the same."""
PATIENCE = 5.0
"""Seconds for the launcher's store to answer, and for the process that failed first to say so."""


def leave(error: Exception) -> NoReturn:
    """End this process, which is one of several, and tell of its failure unless another failed before it.

    The exit code is 2 for a user's mistake, else 1. No exit handlers and destructors run: the threads of a group that has lost a process
    abort in them.

    Args:
        error: What it failed with.
    """
    rank, name = int(os.environ["RANK"]), f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
    reason = _describe_loss(error, name) if lost_another(error) else _in_one_line(error)
    store = _open_store()
    if rank and not lost_another(error):
        _let_main_speak(store, isinstance(error, TransferError) and error.is_shared)
    # Sent by the launcher as soon as another has ended.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    first = _first_failure(store, rank, reason)
    if first is None:
        _tell(error, reason, rank, name)
    elif first["reason"] != reason and not lost_another(error):
        print(f"{name} failed too: {reason}", file=sys.stderr)
    elif first["machine"] != _machine() and os.environ.get("LOCAL_RANK") == "0":
        # It was said in another terminal.
        print(f"error: process {first['process']}, on another machine: {first['reason']}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    _wait_until_told(store, is_teller=first is None)
    os._exit(2 if isinstance(error, TransferError) else 1)


def lost_another(error: BaseException) -> bool:
    """Say whether a process failed only because another ended or stalled; what followed from that is no reason either."""
    root = error
    while (before := root.__cause__ or root.__context__) is not None:
        root = before
    return isinstance(root, distributed.DistError) or (isinstance(root, RuntimeError) and "gloo/transport" in str(root))


def _in_one_line(error: Exception) -> str:
    return first_line(error) if isinstance(error, TransferError) else f"{type(error).__name__}: {first_line(error)}"


def _describe_loss(error: Exception, name: str) -> str:
    if "Timed out" in str(error):
        return (
            f"{name} has waited {wait_limit().total_seconds() / 60:g} minutes for another, which hangs or does alone what takes longer "
            "(HF_TRANSFER_WAIT_MINUTES waits longer): --resume goes on"
        )
    return f"{name} has lost another, which ended without a word: it was killed, maybe for the memory it took; --resume goes on"


def _tell(error: Exception, reason: str, rank: int, name: str) -> None:
    if lost_another(error) and not isinstance(error, distributed.DistError):
        print(f"error: {reason}", file=sys.stderr)
    elif isinstance(error, TransferError):
        print(f"error: {f'{name}: ' if rank else ''}{error}", file=sys.stderr)
    else:
        # A bug, or a fault of the devices' library that only its own words explain.
        print(f"{name} failed:", file=sys.stderr)
        traceback.print_exception(error)


def _open_store() -> distributed.Store | None:
    """Give the store where the processes met; None where it is gone with the main process, or was not there yet."""
    with suppress(KeyError, ValueError, RuntimeError):
        return distributed.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=PATIENCE)
        )
    return None


def _let_main_speak(store: distributed.Store | None, is_shared: bool) -> None:
    """Give the main process time to fail too: what all find wrong, it says.

    With what they share for certain it may have work to finish, and the launcher would end it with this process.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(RuntimeError):
        if store is not None:
            _wait(store, _key(), wait_limit().total_seconds() if is_shared else HEAD_START)


def _first_failure(store: distributed.Store | None, rank: int, reason: str) -> dict[str, Any] | None:
    """Give which process failed before this one, where and why; None where none did, and the others are told of this one."""
    if store is None:
        return None
    mine = {"process": rank, "machine": _machine(), "reason": reason}
    try:
        found: dict[str, Any] = json.loads(store.compare_set(_key(), "", json.dumps(mine)))
    except RuntimeError:
        return None
    return None if found == mine else found


def _wait_until_told(store: distributed.Store | None, is_teller: bool) -> None:
    """Do not end before the reason is said: the launcher ends the others as soon as one has."""
    with suppress(RuntimeError):
        if store is not None and is_teller:
            store.set(f"{_key()}/told", "yes")
        elif store is not None:
            _wait(store, f"{_key()}/told", PATIENCE)


def _wait(store: distributed.Store, key: str, seconds: float) -> None:
    """Wait until a key is there, for so long at most. The store's own waiting warns where it is in vain."""
    end = time.monotonic() + seconds
    while not store.check([key]) and time.monotonic() < end:
        time.sleep(0.02)


def _machine() -> str:
    return os.environ.get("GROUP_RANK", "0")


def _key() -> str:
    # A launcher that starts all anew keeps its store.
    return f"hf_transfer/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
