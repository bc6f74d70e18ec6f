"""What needs the Hub, and whether the Hub answers at all: found out once and in seconds, before any Hugging Face library is imported."""

import functools
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

EMBEDDED = "embedded:"
"""Prefix of data and checkpoints that come with the package."""
CONLL_SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".txt")
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", *CONLL_SUFFIXES)
PROBE_SECONDS = 4.0


def is_local_dataset(source: str) -> bool:
    """Say whether a data source is read without the network: an embedded name, or anything that can only be a path."""
    return is_local_checkpoint(source) or os.path.exists(source) or source.lower().endswith((*DATA_SUFFIXES, "/"))


def is_local_checkpoint(name: str) -> bool:
    """Say whether a checkpoint is loaded without the network: an embedded name, a folder, or anything that can only be a path."""
    return name.startswith((EMBEDDED, ".", "/", "~")) or name.count("/") > 1 or os.path.isdir(name)


def is_offline() -> bool:
    """Say whether the user (or the command line) switched the Hub off by `HF_HUB_OFFLINE`."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@functools.cache
def hub_answers() -> bool:
    """Ask the Hub's front page once, for at most `PROBE_SECONDS`; any HTTP answer counts, an error page too.

    Without this, the libraries spend half a minute to minutes on retries for each file when the network is away.
    """
    if is_offline():
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.set()

    # A thread, because looking up a name knows no time limit of its own.
    probe = threading.Thread(target=ask, daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()


@contextmanager
def cache_only(active: bool) -> Iterator[None]:
    """While the block runs, let `datasets` read its cache without asking the Hub.

    `DownloadConfig(local_files_only=True)` still retries for 23 s (datasets 5.2), and `HF_HUB_OFFLINE` is read at import, which is
    over in a user's own process; so the two constants it became are set, and put back.
    """
    if not active:
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
