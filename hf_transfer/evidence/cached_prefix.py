"""An arm's frozen prefix, computed once for all epochs, seeds, budgets and runs, and kept on disk."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hf_transfer.data.array_store import KEY_BYTES, ArrayStore, make_room
from hf_transfer.data.batches import deal
from hf_transfer.evaluation.prediction import run_windows
from hf_transfer.evidence.arms import augments
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.files import arrays_folder, cache_folder, cache_limit_bytes
from hf_transfer.models.prefix import PREFIX, FrozenPrefix, find_prefix, stub_arguments
from hf_transfer.recipe import Arm
from hf_transfer.tasks.items import Window

CACHE_NAME = "frozen"
LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type", "_name_or_path", "transformers_version", "architectures")
"""What a config holds that no hidden state depends on."""
GIB = 2**30


@dataclass(frozen=True)
class CachedWindow:
    """A window whose hidden states are in the store."""

    window: Any
    key: bytes
    cost: int
    """Tokens that are replayed."""

    def __getattr__(self, name: str) -> Any:
        """Give everything else as the window has it."""
        return getattr(self.window, name)


@contextmanager
def reading_cached(study: Study, model: nn.Module, arm: Arm, rows: Sequence[Rows], title: str) -> Iterator[tuple[Study, list[Rows], float]]:
    """Where an arm has a frozen prefix, compute it for all rows that are not in the cache, and let the block read from there.

    Args:
        study: What the cells share.
        model: What trains is marked; on its device. Takes cached input until the block ends.
        arm: Its settings.
        rows: Several sets of rows.
        title: Of the training, to say on standard error why an arm with frozen blocks cannot use the cache.

    Yields:
        The study and the rows to train and evaluate with, and the seconds that filling the cache took.
    """
    if arm.tuning not in ("head", "top") or augments(arm):
        yield study, list(rows), 0.0
        return
    started = time.perf_counter()
    reader = _fill(study, model, rows)
    if isinstance(reader, str):
        if study.accelerator.is_main_process:
            print(f"{title}: the frozen blocks are computed in every epoch, because {reader}", file=sys.stderr)
        yield study, list(rows), 0.0
        return
    with reader.prefix.replayed():
        # Reading ahead would send through a pipe what is mapped into memory already.
        cached_study = replace(study, collate=reader.collate, num_workers=0)
        yield cached_study, [reader.wrap(part) for part in rows], time.perf_counter() - started


@dataclass(frozen=True)
class _Reader:
    """Makes forward arguments of windows whose hidden states are in a store."""

    study: Study
    prefix: FrozenPrefix
    store: ArrayStore
    keys: dict[bytes, bytes]
    stubs: dict[str, torch.Tensor]

    def wrap(self, rows: Rows) -> Rows:
        return Rows(rows.examples, [tuple(self._wrapped(window) for window in row) for row in rows.encoded])

    def _wrapped(self, window: Window) -> CachedWindow:
        return CachedWindow(window, self.keys[window.content], 1 if self.prefix.first_only else window.num_tokens)

    def collate(self, windows: Sequence[Any]) -> dict[str, torch.Tensor]:
        given = [self.store[window.key] for window in windows]
        if self.study.task.READS_FILES:
            stub = {name: tensor.expand(len(windows), *tensor.shape[1:]) for name, tensor in self.stubs.items()}
            return {**stub, PREFIX: torch.stack(given)}
        stub = stub_arguments(self.study.collate([window.window for window in windows]), self.prefix.first_only)
        return {**stub, PREFIX: pad_sequence(given, batch_first=True)}


def _fill(study: Study, model: nn.Module, rows: Sequence[Rows]) -> _Reader | str:
    """Give what reads rows from the cache, filled; or why there is none, in words that follow "because"."""
    accelerator = study.accelerator
    if not cache_limit_bytes():
        return "HF_TRANSFER_CACHE_GIB is 0"
    unique = {window.content: window for part in rows for window in part.layout.windows}
    ordered = sorted(unique.values(), key=lambda window: window.num_tokens)
    # The longest and the shortest: a prefix has to bear padding.
    arguments = {name: tensor.to(accelerator.device) for name, tensor in study.collate([ordered[-1], ordered[0]]).items()}
    prefix = find_prefix(model, arguments)
    if isinstance(prefix, str):
        return prefix
    with torch.inference_mode(), accelerator.autocast():
        hidden = prefix.compute(arguments)
    by_token = not study.task.READS_FILES and not prefix.first_only
    store = ArrayStore(arrays_folder() / CACHE_NAME / _fingerprint(study, prefix))
    keys = {content: _key(content) for content in unique}
    missing = [window for content, window in unique.items() if keys[content] not in store]
    wanted = sum(window.num_tokens if by_token else 1 for window in missing) * (hidden[0, 0] if by_token else hidden[0]).nbytes
    if not broadcast_object_list([make_room(arrays_folder(), wanted, cache_limit_bytes()) if accelerator.is_main_process else None])[0]:
        return (
            f"its hidden states take {wanted / GIB:.1f} GiB, and {cache_folder()} has no room for them (HF_TRANSFER_CACHE_GIB="
            f"{cache_limit_bytes() / GIB:g})"
        )
    problem = ""
    try:
        store.write(_computed(study, prefix, list(unique.values()), keys, store, by_token))
    except OSError as error:
        problem = f"{cache_folder()} cannot be written to ({error.strerror})"
    accelerator.wait_for_everyone()
    store.refresh()
    if not problem and not all(key in store for key in keys.values()):
        problem = f"{cache_folder()} is not shared by all processes, or was emptied meanwhile"
    problems = [found for found in gather_object([problem]) if found]
    stubs = {name: tensor[:1].cpu() for name, tensor in stub_arguments(arguments, prefix.first_only).items()}
    return problems[0] if problems else _Reader(study, prefix, store, keys, stubs)


def _computed(
    study: Study, prefix: FrozenPrefix, windows: Sequence[Window], keys: dict[bytes, bytes], store: ArrayStore, by_token: bool
) -> Iterator[tuple[bytes, torch.Tensor]]:
    """Compute this process's share of what the store lacks."""
    accelerator = study.accelerator
    share = deal(np.array([window.num_tokens for window in windows]), accelerator.num_processes)[accelerator.process_index]
    mine = [windows[position] for position in share if keys[windows[position].content] not in store]
    ran = run_windows(prefix.compute, mine, study.collate, study.max_tokens, accelerator.device, accelerator.autocast(), study.num_workers)
    for positions, hidden in ran:
        kept = hidden.cpu()
        for position, values in zip(positions, kept, strict=True):
            window = mine[position]
            yield keys[window.content], values[: window.num_tokens] if by_token else values


def _fingerprint(study: Study, prefix: FrozenPrefix) -> str:
    """Give a digest of all that decides what hidden states a window gets."""
    architecture, accelerator = study.architecture, study.accelerator
    config = {name: value for name, value in architecture.config.to_dict().items() if name not in LABEL_KEYS}
    settings = {
        "cut": [prefix.name, prefix.first_only],
        "model": type(prefix.model).__name__,
        "config": config,
        # A text's window holds what its tokenizer made of it; an image's is its file.
        "processor": architecture.checkpoint.processor.settings if study.task.READS_FILES else None,
        "precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "versions": [torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in prefix.tensors():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _key(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()
