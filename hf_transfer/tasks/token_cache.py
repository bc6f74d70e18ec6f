"""Texts tokenised once: what a tokenizer made of a split is kept by content, and mapped into memory the next time."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

import hf_transfer
from hf_transfer.data.array_store import SUFFIX, make_room, write_arrays
from hf_transfer.files import arrays_folder, cache_limit_bytes
from hf_transfer.tasks.items import EncodedRow, TextWindow

CACHE_NAME = "tokens"
LAYOUT = 1
"""To be raised when `encode` makes other windows of the same rows."""
LEAST_ROWS = 1000
"""Rows below which tokenising takes less than a second."""


def encode_cached(functions: ModuleType, processor: Any, inputs: Sequence[Any], task: Any) -> list[EncodedRow]:
    """Encode rows as the task does, or give what an earlier run made of the same rows.

    Args:
        functions: Of the task.
        processor: Tokenizer or image processor.
        inputs: (B,).
        task: The task's config.
    """
    if functions.READS_FILES or len(inputs) < LEAST_ROWS:
        return functions.encode(processor, inputs, task)
    path = arrays_folder() / CACHE_NAME / f"{_fingerprint(processor, inputs, task)}{SUFFIX}"
    # A damaged file is as good as none, and so is one that another process removes.
    with suppress(Exception):
        rows = _read(path)
        with suppress(OSError):
            os.utime(path)
        return rows
    rows = functions.encode(processor, inputs, task)
    with suppress(OSError):
        _write(path, rows)
    return rows


def _fingerprint(tokenizer: Any, inputs: Sequence[Any], task: Any) -> str:
    """Give a digest of all that decides what tokens the rows become."""
    # What `encode` asks besides: DistilBERT has BERT's tokenizer, but for the names; a dropped word becomes one of the tokens.
    asked = [tokenizer.model_input_names, *(getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "unk", "mask"))]
    made_by = [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), asked]
    versions = [LAYOUT, hf_transfer.__version__, transformers.__version__, tokenizers.__version__]
    digest = hashlib.blake2b(json.dumps([made_by, versions, asdict(task)], sort_keys=True, default=str).encode(), digest_size=16)
    digest.update(json.dumps(inputs, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _write(path: Path, rows: Sequence[EncodedRow]) -> None:
    windows: list[Any] = [window for row in rows for window in row]
    parts = {name: [getattr(window, name) for window in windows] for name in ("ids", "items", "tokens", "types")}
    tensors = {"windows": _counts(rows)}
    for name, arrays in parts.items():
        if windows and all(array is not None for array in arrays):
            tensors |= {name: torch.from_numpy(np.concatenate(arrays)), f"{name}_counts": _counts(arrays)}
    if make_room(arrays_folder(), sum(tensor.nbytes for tensor in tensors.values()), cache_limit_bytes()):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_arrays(path, tensors | {"digest": _digest(tensors)})


def _read(path: Path) -> list[EncodedRow]:
    read = load_file(path)
    if not torch.equal(read.pop("digest"), _digest(read)):
        raise ValueError("damaged")
    tensors = {name: tensor.numpy() for name, tensor in read.items()}

    def pieces(name: str, count: int) -> Sequence[Any]:
        return np.split(tensors[name], np.cumsum(tensors[f"{name}_counts"])[:-1]) if name in tensors else [None] * count

    count = int(tensors["windows"].sum())
    made = zip(*(pieces(name, count) for name in ("ids", "items", "tokens", "types")), strict=True)
    windows = iter([TextWindow(ids, items=items, tokens=tokens, types=types) for ids, items, tokens, types in made])
    return [tuple(next(windows) for _ in range(num_windows)) for num_windows in tensors["windows"]]


def _digest(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Give a hash of all arrays, which safetensors does not check itself."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _counts(values: Sequence[Any]) -> torch.Tensor:
    return torch.tensor([len(value) for value in values], dtype=torch.int64)
