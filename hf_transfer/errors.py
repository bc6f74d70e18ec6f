"""Every exception this package raises for a user's mistake, and the wording they share.

The command line prints one of these as a single `error: ` sentence and exits with 2; anything else is a bug of ours and keeps its
traceback. Each class is also a `ValueError` or a `RuntimeError`, so callers may catch what they already know.
"""

import difflib
from collections.abc import Iterable
from importlib import metadata

from hf_transfer.escaping import visible_line, without_secrets


class TransferError(Exception):
    """Base of all errors that say: expected, found, what to do, on one line.

    Rows are named by their row id, the position from 0; lines of a file are counted from 1, as editors do.
    """

    is_shared = False
    """Every process of the run has it at the same point."""

    def __str__(self) -> str:
        """Give the sentence, whatever it quotes: it may hold a row of the data, halves of characters, or a URL with a password."""
        return visible_line(without_secrets(" ".join(map(str, self.args))))


class ConfigError(TransferError, ValueError):
    """A recipe, a flag or an argument that cannot be meant."""


class DataError(TransferError, ValueError):
    """Data that cannot be read or learned from."""


class CheckpointError(TransferError, ValueError):
    """A checkpoint that cannot be found, loaded or tuned as asked."""


class RunFolderError(TransferError, RuntimeError):
    """A run folder that cannot be written to or read."""


class DiskError(RunFolderError, OSError):
    """A disk that is full, broken or not to be written to; also an OSError, for who can do without what was to be written."""


class TrainingError(TransferError, RuntimeError):
    """A training that cannot go on."""


class SharedTrainingError(TrainingError):
    """A training that cannot go on, as every process of the run finds at the same point: other trainings of the run can."""

    is_shared = True


class DivergedError(SharedTrainingError):
    """A training whose loss, gradient or predictions are no finite numbers any more."""

    best: "dict[str, float] | None" = None
    """Epoch and validation loss of the best state, which the model was put back into; None where none is known."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to end, by a signal or its clock; says what is kept. No mistake, so no `TransferError`."""


class InstallationError(TransferError, RuntimeError):
    """An installation that lacks something, or holds something that breaks it."""


def did_you_mean(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """Give `"; did you mean 'x'?"` for the nearest known spelling, or an empty string where none is alike enough (0 to 1)."""
    nearest = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=likeness)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def listed(names: Iterable[object], limit: int = 12) -> str:
    """Give names as `a, b, c`, cut after `limit` of them."""
    words = [str(name) for name in names]
    return ", ".join(words[:limit]) + (f", ... ({len(words)} in all)" if len(words) > limit else "")


def first_line(error: BaseException) -> str:
    """Give the first line of a library's message that says something, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def check_no_name_clash() -> None:
    """Refuse to run beside the unrelated PyPI package `hf-transfer`.

    It installs the same import name `hf_transfer`, and whichever came last overwrites files of the other.

    Raises:
        InstallationError: `hf-transfer` is installed.
    """
    try:
        metadata.distribution("hf-transfer")
    except metadata.PackageNotFoundError:
        return
    raise InstallationError(
        "the unrelated package 'hf-transfer' (a downloader) is installed and overwrites files of the import name hf_transfer: "
        "run `pip uninstall -y hf-transfer`, then `pip install --force-reinstall --no-deps hf-transfer-recipes`"
    )
