"""An arm's frozen prefix, computed once for all epochs, seeds, budgets and runs, and kept on disk."""

import hashlib
import json
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

import hf_transfer
from hf_transfer.data.array_store import KEY_BYTES, ArrayStore, make_room
from hf_transfer.data.batches import deal
from hf_transfer.evaluation.prediction import run_windows
from hf_transfer.evidence.arms import augments
from hf_transfer.evidence.study import Rows, Study
from hf_transfer.files import arrays_folder, cache_folder, cache_limit_bytes
from hf_transfer.models.prefix import FrozenPrefix, find_prefix, keep_rows, replay_arguments, stub_arguments
from hf_transfer.recipe import Arm
from hf_transfer.tasks.items import Window

CACHE_NAME = "frozen"
LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type", "_name_or_path", "transformers_version", "architectures")
"""What a config holds that no hidden state depends on."""
GIB = 2**30
LAYOUT = 1
"""To be raised when what is kept changes for the same input: how it is read, cut, or computed."""


@dataclass(frozen=True)
class CachedWindow:
    """A window whose hidden states are in the store."""

    window: Any
    key: bytes
    cost: int
    """Tokens that are replayed."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the window."""
        return int(self.window.num_tokens)

    @property
    def items(self) -> np.ndarray:
        """(K,) int64: which of the row's items this window predicts."""
        return self.window.items

    @property
    def tokens(self) -> np.ndarray | None:
        """(K,) int64: where each of them stands."""
        return self.window.tokens

    @property
    def content(self) -> bytes:
        """What its tensors are made from."""
        return self.window.content


@dataclass(frozen=True)
class Reading:
    """What an arm is trained and measured with."""

    study: Study
    rows: list[Rows]
    frozen_blocks: str | None = None
    """"cached", or why they are computed in every epoch; None where an arm has none that stay the same."""
    seconds: float = 0.0
    """That filling the cache took."""


@contextmanager
def reading_cached(study: Study, model: nn.Module, arm: Arm, rows: Sequence[Rows], title: str) -> Iterator[Reading]:
    """Where an arm has a frozen prefix, compute it for all rows that are not in the cache, and let the block read from there.

    Args:
        study: What the cells share.
        model: What trains is marked; on its device. Takes cached input until the block ends.
        arm: Its settings.
        rows: Several sets of rows.
        title: Of the training, to say on standard error why an arm with frozen blocks cannot use the cache.
    """
    if arm.tuning not in ("head", "top") or augments(arm):
        yield Reading(study, list(rows))
        return
    started = time.perf_counter()
    reader = _fill(study, model, rows)
    if isinstance(reader, str):
        told = f"computed in every epoch, because {reader}"
        if study.accelerator.is_main_process:
            print(f"{title}: the frozen blocks are {told}", file=sys.stderr)
        yield Reading(study, list(rows), told)
        return
    with reader.prefix.replayed():
        # Reading ahead would send through a pipe what is mapped into memory already.
        cached_study = replace(study, collate=reader.collate, num_workers=0)
        yield Reading(cached_study, [reader.wrap(part) for part in rows], "cached", time.perf_counter() - started)


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
        if self.study.task.READS_FILES:
            stubs = {name: tensor.expand(len(windows), *tensor.shape[1:]) for name, tensor in self.stubs.items()}
        else:
            stubs = stub_arguments(self.study.collate([window.window for window in windows]), self.prefix.first_only)
        return replay_arguments(stubs, [self.store[window.key] for window in windows])


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
        kept = keep_rows(prefix.compute(arguments), arguments, prefix.first_only)[0]
    store = ArrayStore(arrays_folder() / CACHE_NAME / _fingerprint(study, prefix))
    keys = {content: _key(content) for content in unique}
    missing = [window for content, window in unique.items() if keys[content] not in store]
    # A text's states are as many as its tokens.
    by_token = not study.task.READS_FILES and not prefix.first_only
    wanted = sum(window.num_tokens for window in missing) * kept[0].nbytes if by_token else len(missing) * kept.nbytes
    (problem,) = broadcast_object_list([_make_room(wanted) if accelerator.is_main_process else ""])
    if problem:
        return problem
    try:
        with closing(_computed(study, prefix, list(unique.values()), keys, store)) as computed:
            store.write(computed)
    except OSError as error:
        problem = f"{cache_folder()} cannot be written to ({error.strerror})"
    accelerator.wait_for_everyone()
    store.refresh()
    if not problem and not all(key in store for key in keys.values()):
        problem = f"{cache_folder()} is not shared by all processes, or was emptied meanwhile"
    problems = [found for found in gather_object([problem]) if found]
    stubs = {name: tensor[:1].cpu() for name, tensor in stub_arguments(arguments, prefix.first_only).items()}
    return problems[0] if problems else _Reader(study, prefix, store, keys, stubs)


def _make_room(wanted: int) -> str:
    """Make room for so many bytes in the cache; give why there is none, or nothing."""
    try:
        if make_room(arrays_folder(), wanted, cache_limit_bytes()):
            return ""
    except OSError as error:
        return f"{cache_folder()} cannot be looked into ({error.strerror})"
    limit = cache_limit_bytes() / GIB
    return f"its hidden states take {wanted / GIB:.1f} GiB, and {cache_folder()} has no room for them (HF_TRANSFER_CACHE_GIB={limit:g})"


def _computed(
    study: Study, prefix: FrozenPrefix, windows: Sequence[Window], keys: dict[bytes, bytes], store: ArrayStore
) -> Generator[tuple[bytes, torch.Tensor]]:
    """Compute this process's share of what the store lacks."""
    accelerator = study.accelerator
    # All windows are dealt, not the missing ones: another run may add some between one process's look and the next's.
    share = deal(np.array([window.num_tokens for window in windows]), accelerator.num_processes)[accelerator.process_index]
    mine = [windows[position] for position in share if keys[windows[position].content] not in store]

    def run(arguments: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [row.cpu() for row in keep_rows(prefix.compute(arguments), arguments, prefix.first_only)]

    ran = run_windows(run, mine, study.collate, study.max_tokens, accelerator.device, accelerator.autocast(), study.num_workers)
    with closing(ran):
        for positions, rows in ran:
            yield from zip([keys[mine[position].content] for position in positions], rows, strict=True)


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
        "versions": [LAYOUT, hf_transfer.__version__, torch.__version__, transformers.__version__, PIL.__version__],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in prefix.tensors():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _key(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()
