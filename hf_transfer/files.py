"""Where things lie in a run folder and in the cache, and writes that are whole or absent.

A write goes to a temporary name beside its target, is flushed to the disk and then renamed, so a reader (or a run that is killed)
never meets half a file.
"""

import atexit
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_transfer.errors import ConfigError, DiskError, RunFolderError, first_line

RECIPE_FILE = "recipe.yaml"
COMPARISON_FILE = "comparison.json"
HYGIENE_FILE = "hygiene.json"
EXAMPLES_FILE = "examples.json"
REPORT_FILE = "report.html"
RESULT_FILE = "result.json"
FAILURE_FILE = "failure.json"
PREDICTIONS_FILE = "predictions.parquet"
MODEL_FOLDER = "model"
SIDECAR_FILE = "hf_transfer.json"
CARD_FILE = "README.md"
SEARCH_FILE = "search.json"
SEARCH_DATABASE = "search.db"
LOGS_FOLDER = "logs"
STATE_FOLDER = "state"


DISK_REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "make that folder writable",
    errno.EPERM: "make that folder writable",
    errno.EIO: "look after that disk",
}
"""What a user can do where the system refuses a write."""
TEMPORARY_PREFIX = "hf_transfer-tmp-"
SETTLING_SECONDS = 60
"""Age from which a temporary folder that nobody holds was left behind."""
LEFTOVERS = ".*.tmp-*"
"""Names of files and folders that are not whole yet."""
CACHE_GIB = 20.0
"""What the cache may take where the user says nothing."""


def cache_folder() -> Path:
    """Give the folder of what may be computed again: `HF_TRANSFER_CACHE`, or `hf_transfer` where the system keeps caches."""
    given = os.environ.get("HF_TRANSFER_CACHE")
    return expanded(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hf_transfer")


def expanded(path: str | Path) -> Path:
    """Give a path with `~` as a user's home; of a user there is not, as it is (where pathlib would raise)."""
    return Path(os.path.expanduser(path))


def arrays_folder() -> Path:
    """Give the folder in it that holds arrays, and nothing of anybody else's: what is old there may be removed."""
    return cache_folder() / "arrays"


def cache_limit_bytes() -> int:
    """Give the bytes its arrays may take: `HF_TRANSFER_CACHE_GIB`, 20 where it is not set.

    Raises:
        ConfigError: It is set to no number.
    """
    given = os.environ.get("HF_TRANSFER_CACHE_GIB", str(CACHE_GIB))
    try:
        limit = int(float(given) * 2**30)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise ConfigError(f"HF_TRANSFER_CACHE_GIB must be a number of GiB, found {given!r}: give 0 or more")
    return limit


def cell_folder(run_folder: Path, arm: str, budget: int | str, seed: int) -> Path:
    """Give the folder of one arm x budget x seed: `scratch/budget-512/seed-0`."""
    return run_folder / arm / f"budget-{budget}" / f"seed-{seed}"


def run_folder_of(model_folder: Path) -> Path | None:
    """Give the run folder that a cell's `model/` folder lies in, or None where it was moved out of one."""
    parents = model_folder.resolve().parents
    return parents[3] if len(parents) > 3 and (parents[3] / RECIPE_FILE).is_file() else None


def model_folder_of(folder: Path) -> Path:
    """Give the folder of a model: of a run the recommended one, of a cell its own; any other folder as it is.

    Raises:
        RunFolderError: The run is unfinished, or its model was removed.
    """
    if (folder / COMPARISON_FILE).is_file():
        run = folder
        try:
            chosen = read_json(run / COMPARISON_FILE)["recommendation"]
            folder = cell_folder(run, chosen["arm"], chosen["budget"], chosen["seed"])
        except (TypeError, LookupError):
            raise RunFolderError(f"{run / COMPARISON_FILE} recommends no arm, budget and seed: --resume writes it anew") from None
        if not Path(os.path.normpath(folder)).is_relative_to(os.path.normpath(run)):
            raise RunFolderError(f"{run / COMPARISON_FILE} recommends a model outside the run's folder: it was changed by hand, run again")
        if not (folder / MODEL_FOLDER).is_dir():
            raise RunFolderError(f"the run's recommended model is gone: expected {folder / MODEL_FOLDER}; give the folder of another cell")
    elif (folder / RECIPE_FILE).is_file():
        raise RunFolderError(f"the run in {folder} is unfinished: it has no {COMPARISON_FILE}; give the folder of a cell that is done")
    if (folder / FAILURE_FILE).is_file() and (folder / MODEL_FOLDER).is_dir():
        # The best state of a training that diverged.
        return folder / MODEL_FOLDER
    if not (folder / RESULT_FILE).is_file():
        return folder
    if not (folder / MODEL_FOLDER).is_dir():
        raise RunFolderError(f"{folder} has a {RESULT_FILE} and no {MODEL_FOLDER} folder: the model was removed")
    return folder / MODEL_FOLDER


@contextmanager
def open_run_folder(folder: Path, resume: bool = False) -> Iterator[None]:
    """Have a run folder, new or resumed, for this process alone until the block ends.

    It is looked into when it is held: of two processes that find it empty the second would else write over what the first one, the quicker,
    has finished by then.

    Raises:
        RunFolderError: Another process has it, it cannot be created or written to, or holds something and is not to be resumed.
    """
    check_writable(folder)
    with held(folder):
        if not resume:
            _check_unclaimed(folder)
        yield


def _check_unclaimed(folder: Path) -> None:
    if holds_something(folder):
        marks = {COMPARISON_FILE: "another run", RECIPE_FILE: "an unfinished run"}
        what = next((what for mark, what in marks.items() if (folder / mark).exists()), None)
        go_on = "" if what is None else "go on with it (--resume), "
        raise RunFolderError(
            f"output folder {folder} already holds {what or 'other files'}: {go_on}name another with --output-dir, or move this one away"
        )


def check_writable(folder: Path) -> None:
    """Create a folder where it is not there yet, and try to write to it.

    Raises:
        RunFolderError: It is a file, or cannot be created or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output folder {folder} is a file: name another with --output-dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunFolderError(f"cannot write to output folder {folder} ({error.strerror}): name another with --output-dir") from None


def holds_something(folder: Path) -> bool:
    """Say whether a folder holds more than what a write that was killed left behind."""
    return folder.is_dir() and any(not path.match(LEFTOVERS) for path in folder.iterdir())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a run folder until the block ends, or this process, however it does.

    Raises:
        RunFolderError: Another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A network disk may know no locks; then nobody is kept out.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise RunFolderError(f"another process is writing to output folder {folder}: wait for it, or end it") from None
    try:
        yield
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder and what it holds; it has another name before the first file goes, so nobody meets it half empty.

    Raises:
        DiskError: The disk is broken or not to be written to.
    """
    with disk_faults(folder):
        doomed = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def empty_folder(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove what a folder holds, but for what is called as said; the folder goes with it where nothing is kept.

    Raises:
        DiskError: The disk is broken or not to be written to.
    """
    with disk_faults(folder):
        for path in [path for path in folder.iterdir() if path.name not in keep]:
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove what writes that were killed left behind in a folder and below it."""
    for path in sorted(folder.rglob(LEFTOVERS)):
        with disk_faults(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                # Its folder may be gone already.
                path.unlink(missing_ok=True)


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Tell of a write to `path` that the disk refuses in a sentence.

    Raises:
        DiskError: Names the file or folder, the reason and the remedy.
    """
    try:
        yield
    except Exception as error:
        number = disk_fault(error)
        if number is None or isinstance(error, DiskError):
            raise
        told = DiskError(
            f"cannot write {path} ({os.strerror(number)}): {DISK_REMEDIES[number]}; what was finished before is whole, and --resume goes "
            "on with a run"
        )
        told.errno, told.strerror = number, os.strerror(number)
        raise told from error


def disk_fault(error: BaseException) -> int | None:
    """Give the system's number of a write that a disk refused, None where an error is something else.

    Errors of libraries written in Rust (safetensors, tokenizers) are no OSError, and say it in their text.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (said := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(said[1])
    return number if number in DISK_REMEDIES else None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Lend a temporary path; what was written there becomes `path` when the block ends without an error.

    Raises:
        DiskError: The disk is full, broken or not to be written to; what was there before stays.
    """
    with temporary_file(path) as temporary:
        yield temporary
        move_into_place(temporary, path)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Lend a temporary path beside `path`; what is there when the block ends is removed.

    Raises:
        DiskError: The disk is full, broken or not to be written to.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_faults(path):
        try:
            yield temporary
        finally:
            # What cannot be removed from a broken disk is swept later.
            with suppress(OSError):
                temporary.unlink()


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a whole file its name, in the place of what may have it; both are on the disk then."""
    _flush_to_disk(temporary)
    os.replace(temporary, path)
    _flush_to_disk(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Lend a temporary folder that becomes `path` (which must not exist) when the block ends without an error.

    Raises:
        DiskError: The disk is full, broken or not to be written to.
    """
    with disk_faults(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for written in temporary.rglob("*"):
                # safetensors creates its files with mode 0600; a run folder is readable like any other.
                written.chmod(0o755 if written.is_dir() else 0o644)
                _flush_to_disk(written)
            os.rename(temporary, path)
            _flush_to_disk(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Create a folder where it is not there yet, and those above it.

    Raises:
        DiskError: The disk is full, broken or not to be written to.
    """
    with disk_faults(path):
        path.mkdir(parents=True, exist_ok=True)


def temporary_folder() -> Path:
    """Give a folder that goes when this process ends; those that killed processes left behind go now.

    A lock tells who is alive: the system takes it back however a process ends, and in whatever container.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        # Others' may not be looked into.
        with suppress(OSError, RunFolderError), held(left):
            if time.time() - left.stat().st_mtime > SETTLING_SECONDS:
                shutil.rmtree(left)
    folder = Path(_until_the_end.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX)))
    _until_the_end.enter_context(held(folder))
    return folder


_until_the_end = ExitStack()
atexit.register(_until_the_end.close)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all. NaN and infinities are refused: they are no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run or a model.

    Raises:
        RunFolderError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> RunFolderError:
    """Give the error that says a file of a run or a model cannot be read, and what to do."""
    return RunFolderError(
        f"{path} is damaged and cannot be read ({first_line(error)}): bring it back; of a training, remove its folder and go on with --resume"
    )


def sha256_of_files(paths: list[Path]) -> str:
    """Give the SHA-256 of the files' bytes, in the order given, as hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
