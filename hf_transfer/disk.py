"""Files and folders that are written whole or not at all, and what a disk refuses, told in a sentence.

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

from hf_transfer.errors import DiskError, RunFolderError, first_line

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


def expanded(path: str | Path) -> Path:
    """Give a path with `~` as a user's home; of a user there is not, as it is (where pathlib would raise)."""
    return Path(os.path.expanduser(path))


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
        f"{path} is damaged and cannot be read ({first_line(error)}): bring it back; of a training, remove its folder and go on with "
        "--resume"
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
