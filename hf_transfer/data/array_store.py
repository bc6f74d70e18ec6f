"""Arrays kept on disk by what they were computed from: written in whole files, mapped into memory, shared by runs and processes.

A store is a folder of files of many arrays each. A file is complete from the moment it has its name and is never changed, so any number
of processes may read, write and remove at once: what two of them compute at the same time lies there twice, and what is removed stays
readable for those who have it mapped.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_transfer.disk import atomic_file, disk_fault

SUFFIX = ".safetensors"
FILE_BYTES = 2**27
"""Size from which a file is written, and the next begun."""
LONGEST_WRITE_SECONDS = 3600
KEY_BYTES = 16
"""Length of a key."""


class ArrayStore:
    """Arrays by key."""

    def __init__(self, folder: Path) -> None:
        """Map what a folder holds; it need not exist yet."""
        self.folder = folder
        self._files: set[str] = set()
        self._places: dict[bytes, tuple[torch.Tensor, int, int, list[int]]] = {}
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __getitem__(self, key: bytes) -> torch.Tensor:
        """Give an array, not to be written to."""
        values, start, end, shape = self._places[key]
        return values[start:end].view(shape)

    def refresh(self) -> None:
        """Map the files that have come since; one that cannot be read is as good as none."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            if path.name in self._files:
                continue
            # Another process may have removed it in between.
            with suppress(Exception):
                file = load_file(path)
                keys, starts = bytes(file["keys"].numpy()), file["starts"].tolist()
                pieces = zip(starts, starts[1:], file["shapes"].tolist(), strict=False)
                self._places |= {
                    keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]: (file["values"], start, end, shape)
                    for place, (start, end, shape) in enumerate(pieces)
                }
                self._files.add(path.name)
                # Its age counts from here on.
                os.utime(path)

    def write(self, arrays: Iterable[tuple[bytes, torch.Tensor]]) -> None:
        """Write arrays of one dtype and number of dimensions as they come, a file at a time.

        Raises:
            OSError: The disk is full, or may not be written to.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in _in_parts(arrays):
            values = [array.reshape(-1) for _, array in part]
            tensors = {
                "keys": torch.frombuffer(bytearray(b"".join(key for key, _ in part)), dtype=torch.uint8),
                "starts": torch.tensor([0, *(len(value) for value in values)]).cumsum(0),
                "shapes": torch.tensor([array.shape for _, array in part]),
                "values": torch.cat(values),
            }
            write_arrays(self.folder / f"{uuid.uuid4().hex}{SUFFIX}", tensors)
        self.refresh()


def write_arrays(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    """Write a file of arrays, whole or not at all.

    Raises:
        OSError: The disk is full, or may not be written to.
    """
    with atomic_file(path) as temporary:
        try:
            save_file(dict(arrays), temporary)
        except SafetensorError as error:
            # Not an OSError itself, whatever the system said.
            raise OSError(disk_fault(error) or errno.EIO, str(error)) from error


def make_room(root: Path, wanted: int, max_bytes: int) -> bool:
    """Remove the files used longest ago from all stores below a folder, so that as many bytes more stay within a limit.

    Args:
        root: Folder that holds the stores.
        wanted: Bytes to come.
        max_bytes: All stores may take together.

    Returns:
        Whether there is room now, on the disk too.

    Raises:
        OSError: The folder may not be looked into.
    """
    if wanted > max_bytes:
        return False
    for path in root.rglob(f".*{SUFFIX}.tmp-*"):
        # Of a process that was killed: none writes for so long.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LONGEST_WRITE_SECONDS:
                path.unlink()
    found = []
    for path in root.rglob(f"*{SUFFIX}"):
        with suppress(OSError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total + wanted <= max_bytes:
            break
        with suppress(OSError):
            path.unlink()
            total -= size
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    return shutil.disk_usage(existing).free > 2 * wanted


def _in_parts(arrays: Iterable[tuple[bytes, torch.Tensor]]) -> Iterator[Sequence[tuple[bytes, torch.Tensor]]]:
    part: list[tuple[bytes, torch.Tensor]] = []
    size = 0
    for key, array in arrays:
        part.append((key, array))
        size += array.nbytes
        if size >= FILE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
