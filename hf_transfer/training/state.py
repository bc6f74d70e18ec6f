"""The state of a training on disk: what it takes to go on after an update as if nothing had happened.

One safetensors file a state, `update-120.SHA256.safetensors`: parameters that train, batch-norm statistics, the optimizer's tensors and the
best state as tensors, and all else as JSON in its header. Its name holds the hash of its bytes, so a file that was cut off or changed is
noticed, and it is renamed into place, so it is whole or absent. Frozen weights are not in it, nor any random state: order, augmentation and
dropout follow from seed and update.
"""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_transfer.disk import disk_faults, make_folder, move_into_place, read_json, sha256_of_files, temporary_file, write_json
from hf_transfer.errors import RunFolderError
from hf_transfer.models.sharding import gather, local, shard, shard_of
from hf_transfer.training.processes import on_main_process

Tensors = Mapping[str, torch.Tensor]
NUM_KEPT = 2
RESUMED_FILE = "resumed.json"
SLOW_SECONDS = 30.0
"""A training is saved at its end where that much was not saved before: its test rows may take long."""


@dataclass(frozen=True)
class State:
    """A training behind an update."""

    values: dict[str, Any]
    """Plain values: of the loop, and `origin`, what the training is of."""
    tensors: dict[str, torch.Tensor]
    """By dotted and slashed names: `trained/NAME`, `best/NAME`, `exp_avg/NAME`."""


@dataclass
class Saving:
    """Where the states of one training are saved, and how often."""

    folder: Path
    origin: Mapping[str, Any]
    """What the training is of; stored beside its state."""
    every: int | None = None
    """Updates from one state to the next; None = not by updates."""
    minutes: float | None = None
    """Minutes from one state to the next; None = not by the clock."""
    earlier_seconds: float = field(default=0.0, init=False)
    """Wall time of the runs before, up to the state that was gone on with."""
    _started: float = field(default_factory=time.monotonic, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def is_due(self, num_updates: int, is_last: bool) -> bool:
        """Say whether to save now.

        Args:
            num_updates: Done.
            is_last: No more will follow.
        """
        seconds = time.monotonic() - self._saved_at
        by_clock = self.minutes is not None and seconds >= 60 * self.minutes
        by_updates = self.every is not None and num_updates % self.every == 0
        return by_clock or by_updates or (is_last and seconds >= SLOW_SECONDS)

    def save(self, state: State) -> None:
        """Write a state, and remove those before the last one.

        Raises:
            DiskError: It cannot be written; what was there stays.
        """
        self._saved_at = time.monotonic()
        seconds = self.earlier_seconds + self._saved_at - self._started
        write_state(self.folder, State(state.values | {"origin": dict(self.origin), "wall_seconds": seconds}, state.tensors))

    def load(self, accelerator: Accelerator) -> State | None:
        """Read the newest whole state and note that the training goes on from it; None where there is none.

        The main process reads, and tells the others: they may be on machines with other disks.
        """
        read: list[State] = []

        def find() -> tuple[dict[str, Any], dict[str, tuple[torch.Size, torch.dtype]]] | None:
            state = read_state(self.folder)
            if state is None:
                return None
            write_json(self.folder / RESUMED_FILE, [*resumed_from(self.folder), state.values["updates"]])
            read.append(state)
            return state.values, {name: (tensor.shape, tensor.dtype) for name, tensor in state.tensors.items()}

        found = on_main_process(accelerator, find)
        if found is None:
            return None
        values, shapes = found
        self.earlier_seconds = values["wall_seconds"]
        if accelerator.num_processes == 1:
            return read[0]
        tensors = {}
        for name, (shape, dtype) in shapes.items():
            tensor = read[0].tensors.pop(name) if read else torch.empty(shape, dtype=dtype)
            tensor = tensor.to(accelerator.device)
            torch.distributed.broadcast(tensor, 0)
            tensors[name] = tensor.cpu()
        return State(values, tensors)


def write_state(folder: Path, state: State) -> None:
    """Write a state into a folder of states, and remove all but it and the one before.

    Raises:
        DiskError: It cannot be written; what was there stays.
    """
    updates = state.values["updates"]
    header = {"values": json.dumps(state.values, allow_nan=False)}
    make_folder(folder)
    before = state_files(folder)
    with temporary_file(folder / f"update-{updates}") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, temporary, metadata=header)
        # safetensors creates its files with mode 0600; a run folder is readable like any other.
        temporary.chmod(0o644)
        written = folder / f"update-{updates}.{sha256_of_files([temporary])}.safetensors"
        move_into_place(temporary, written)
        for path in [path for path in before if path != written][: 1 - NUM_KEPT]:
            path.unlink()


def read_state(folder: Path) -> State | None:
    """Read the newest whole state of a folder; one that is damaged is told of and removed, and the one before it is read.

    Returns:
        The state, or None where there is none that is whole.

    Raises:
        DiskError: A damaged one cannot be removed.
    """
    for number, path in reversed(list(enumerate(state_files(folder)))):
        if path.name.split(".")[1] == sha256_of_files([path]):
            with safe_open(path, "pt") as file:
                # Cloned, because what is read lies in the file, which will be removed.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return State(json.loads(file.metadata()["values"]), tensors)
        instead = "going on from the one before it" if number else "the training begins anew"
        print(f"note: {path} is damaged (its bytes are not those that were saved): {instead}", file=sys.stderr)
        with disk_faults(path):
            path.unlink()
    return None


def state_files(folder: Path) -> list[Path]:
    """Give the states that a folder holds, whole or damaged, the oldest first."""
    return sorted(folder.glob("update-*.safetensors"), key=_update_of)


def newest_update(folder: Path) -> int:
    """Give the update behind which the newest state of a folder was saved, whole or damaged; 0 where there is none."""
    return max(map(_update_of, state_files(folder)), default=0)


def _update_of(path: Path) -> int:
    return int(path.name.split(".")[0].removeprefix("update-"))


def origin_of(folder: Path) -> dict[str, Any] | None:
    """Give what the training is of whose newest readable state lies in a folder, without reading its tensors; None where there is none."""
    for path in reversed(state_files(folder)):
        # What is damaged is found out when it is read whole.
        with suppress(SafetensorError, OSError, ValueError, KeyError, TypeError), safe_open(path, "pt") as file:
            origin: dict[str, Any] = json.loads(file.metadata()["values"])["origin"]
            return origin
    return None


def resumed_from(folder: Path) -> list[int]:
    """Give the updates that a training went on behind, an entry each time it did."""
    path = folder / RESUMED_FILE
    updates: list[int] = read_json(path) if path.is_file() else []
    return updates


def gather_state(values: dict[str, Any], trained: Tensors, best: Tensors, optimizer: torch.optim.Optimizer) -> State:
    """Gather what a state holds, by all processes together; what is sharded is whole on the main process only.

    Args:
        values: Plain values.
        trained: What a training moves, by name: parameters and batch-norm statistics.
        best: The same, as it was when it was best; empty where it is not known.
        optimizer: Over the parameters of `trained`.
    """
    names = {id(tensor): name for name, tensor in trained.items()}
    tensors = {f"trained/{name}": gather(local(tensor), tensor) for name, tensor in trained.items()}
    tensors |= {f"best/{name}": gather(tensor, trained[name]) for name, tensor in best.items()}
    for parameter, held in optimizer.state.items():
        tensors |= {f"{key}/{names[id(parameter)]}": gather(local(tensor), tensor) for key, tensor in held.items() if tensor is not None}
    return State(values, tensors)


def restore_state(state: State, trained: Tensors, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Put a state's tensors back where they were.

    Args:
        state: From `gather_state`.
        trained: Changed in place.
        optimizer: Over its parameters; its state is replaced.

    Returns:
        The best state, by name, on the CPU; of what is sharded, this process's shard.

    Raises:
        RunFolderError: The state is of another model.
    """
    held: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.tensors.items():
        kind, _, parameter = name.partition("/")
        held.setdefault(kind, {})[parameter] = tensor
    best = held.pop("best", {})
    found = held.pop("trained", {})
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in trained.items()}:
        raise RunFolderError(
            "the saved state is of another model than this arm trains here (another version of a library may have saved it): remove the "
            "cell's folder to train it from its beginning"
        )
    with torch.no_grad():
        for name, tensor in found.items():
            local(trained[name]).copy_(shard_of(tensor, trained[name]))
    optimizer.state.clear()
    for key, tensors in held.items():
        for name, tensor in tensors.items():
            # The number of steps is no tensor of the parameter's shape.
            like = trained[name] if tensor.shape == trained[name].shape else local(trained[name])
            optimizer.state[trained[name]][key] = shard(tensor, like)
    return {name: shard_of(tensor, trained[name]).cpu() for name, tensor in best.items()}
