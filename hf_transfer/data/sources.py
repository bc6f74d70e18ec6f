"""Splits of a dataset, from the Hub, local files or the package itself, as they were written: no row dropped, no column guessed."""

import bisect
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from datasets.config import HF_DATASETS_CACHE
from datasets.exceptions import DatasetNotFoundError

from hf_transfer.data.conll import read_conll
from hf_transfer.data.digits import read_digits
from hf_transfer.data.hub import CONLL_SUFFIXES, DATA_SUFFIXES, EMBEDDED, cache_only, is_local_dataset
from hf_transfer.data.hub_requests import describe_failure, patient_requests
from hf_transfer.data.image_folder import holds_image_folders, read_image_folder
from hf_transfer.data.tables import SEPARATORS, check_utf8, json_lines, parse_json, read_delimited
from hf_transfer.disk import DISK_REMEDIES, disk_fault
from hf_transfer.errors import DataError, did_you_mean, first_line, listed

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
DIGITS = "vit"
"""The embedded dataset of the recipe vit, which scikit-learn holds; its folder has the data card alone."""

SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

SPLIT_FILE = re.compile(r"(?P<split>[a-z]+)(-\d+-of-(?P<total>\d+)(-[0-9a-f]+)?)?")
"""`train`, or a shard as the Hub names it: `train-00000-of-00002`, with a hash behind it or not."""


MISFITS = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError)
"""What Arrow and `datasets` raise on values, or types, that they have no column for."""


@dataclass(frozen=True)
class Source:
    """A dataset as it was written."""

    splits: dict[str, Dataset]
    """Of "train", "validation" and "test", those there are."""
    root: Path | None = None
    """Folder that file names inside the data start from; None where it came from elsewhere."""
    notices: list[str] = field(default_factory=list)
    """Sentences about what was not read."""


def embedded_datasets() -> list[str]:
    """Give the names of the datasets that come with the package."""
    return sorted(folder.name for folder in EMBEDDED_FOLDER.iterdir() if folder.is_dir())


def load_source(source: str, config: str | None = None, revision: str | None = None, local_files_only: bool = False) -> Source:
    """Load the splits a source has, of "train", "validation" and "test".

    Args:
        source: `embedded:NAME`, a file (becomes "train"), a folder with a file a split, an image folder, or a Hub id.
        config: Configuration of a Hub dataset.
        revision: Revision of a Hub dataset.
        local_files_only: Read a Hub dataset from the cache without asking the Hub.

    Raises:
        DataError: Nothing is there, it cannot be read, or it has no training split.
    """
    if is_local_dataset(source) and (config or revision):
        raise DataError(f"a configuration or revision belongs to a Hub dataset, {source} is local: leave it out")
    if source.startswith(EMBEDDED):
        name = source.removeprefix(EMBEDDED)
        if name not in embedded_datasets():
            raise DataError(
                f"no embedded dataset '{name}': there are {listed(embedded_datasets())}{did_you_mean(name, embedded_datasets())} "
                f"(--dataset {EMBEDDED}NAME; --embedded takes the one called like the recipe)"
            )
        return Source(read_digits() if name == DIGITS else _read_folder(EMBEDDED_FOLDER / name))
    # Those of `pathlib` raise on a name that is too long, and on the home of a user there is not.
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        try:
            return _read_image_folder(path) if _is_image_folder(path) else Source(_read_folder(path), path)
        except OSError as error:
            raise DataError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    if os.path.isfile(path):
        return Source({"train": read_file(path)}, path.parent)
    if os.path.exists(path):
        raise DataError(f"cannot read {source}: expected a regular file or a folder")
    if is_local_dataset(source):
        siblings = [entry.name for entry in path.parent.iterdir()] if os.path.isdir(path.parent) else []
        raise DataError(f"no file or folder {source}{did_you_mean(path.name, siblings, likeness=0.75)}")
    return Source(_load_from_hub(source, config, revision, local_files_only))


def read_file(path: Path) -> Dataset:
    """Read one CSV, TSV, JSONL, JSON, Parquet or CoNLL file; every CSV value stays the text it is, "NA" and "" included.

    Raises:
        DataError: It is of no such kind, is not UTF-8, is malformed, or has no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in DATA_SUFFIXES:
        raise DataError(f"cannot read {path}: expected one of {listed(DATA_SUFFIXES)}, found '{path.suffix}'")
    if not path.is_file():
        # A pipe that nobody writes to would be waited for.
        raise DataError(f"cannot read {path}: expected a regular file")
    try:
        if suffix == ".parquet":
            dataset = _read_parquet(path)
        else:
            check_utf8(path)
            if suffix in CONLL_SUFFIXES:
                dataset = read_conll(path)
            else:
                dataset = _read_delimited(path, SEPARATORS[suffix]) if suffix in SEPARATORS else _read_json(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if len(dataset) == 0:
        raise DataError(f"{path} holds no rows")
    return dataset


def _is_image_folder(folder: Path) -> bool:
    """Say whether a folder holds folders of images, or images alone, and no table, whose rows may name them."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in DATA_SUFFIXES]
    # A train.txt beside the folder train lists its files, as many image collections do.
    if any(_split_file(path) and path.suffix.lower() != ".txt" for path in files):
        return False
    in_folders = any(holds_image_folders(inner) for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    return in_folders or (not files and holds_image_folders(folder))


def _read_image_folder(folder: Path) -> Source:
    splits, notices = read_image_folder(folder, SPLIT_NAMES)
    return Source(splits, folder, notices)


def _read_folder(folder: Path) -> dict[str, Dataset]:
    """Read a folder of `train.csv`, `validation.jsonl`, `test-00000-of-00002.parquet` and the like; other files are not read."""
    files: dict[str, dict[Path, re.Match[str]]] = {}
    for path in sorted(folder.iterdir()):
        if name := _split_file(path):
            files.setdefault(SPLIT_NAMES[name["split"]], {})[path] = name
    for split, named in files.items():
        found = listed(path.name for path in named)
        # Shards of one file belong together; train.csv beside train.jsonl or validation.csv beside dev.csv would count rows twice.
        kinds = {(name["split"], name["total"], path.suffix) for path, name in named.items()}
        if len(kinds) > 1:
            raise DataError(f"folder {folder} has several files for {split}: {found}; keep one")
        _, total, _ = kinds.pop()
        if total is not None and int(total) != len(named):
            raise DataError(f"folder {folder} has {len(named)} of {int(total)} files for {split}: {found}; add the others")
    if "train" not in files:
        found = listed(path.name for path in sorted(folder.iterdir()))
        raise DataError(
            f"folder {folder} has no train file: expected train, and maybe validation and test, as {listed(DATA_SUFFIXES)}, or images as "
            f"CLASS/image.png; found {found or 'nothing'}"
        )
    return {split: _concatenated(split, list(named)) for split, named in files.items()}


def _split_file(path: Path) -> re.Match[str] | None:
    """Give the parts of the name of a file that holds a split, or None."""
    name = SPLIT_FILE.fullmatch(path.stem.lower())
    return name if name and name["split"] in SPLIT_NAMES and path.suffix.lower() in DATA_SUFFIXES else None


def _concatenated(split: str, paths: list[Path]) -> Dataset:
    try:
        return concatenate_datasets([read_file(path) for path in paths])
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the files of split {split} do not fit together ({listed(path.name for path in paths)}): {error}") from None


def _read_delimited(path: Path, separator: str) -> Dataset:
    (columns,) = read_delimited(path, separator)
    return Dataset.from_dict(columns)


def _read_json(path: Path) -> Dataset:
    rows = list(_json_rows(path))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values: dict[str, list[Any]] = {column: [row.get(column) for row in rows] for column in columns}
    for column in columns:
        first_rows: dict[str, int] = {}
        for row, value in enumerate(values[column]):
            if value is not None:
                first_rows.setdefault("number" if type(value) in (int, float) else type(value).__name__, row)
        if len(first_rows) > 1:
            where = listed(f"row {row} is the first {kind}" for kind, row in first_rows.items())
            raise DataError(f"{path}: column '{column}' mixes {listed(sorted(first_rows))} ({where}); make every row the same type")
    try:
        return Dataset.from_dict(values)
    except MISFITS as error:
        column, row = _first_misfit(values)
        raise DataError(
            f"{path} holds values that make no table: row {row} of column '{column}' does not fit the rows before ({first_line(error)}); "
            "give every row the same form"
        ) from None


def _first_misfit(values: dict[str, list[Any]]) -> tuple[str, int]:
    """Give the column, and the first of its rows, 0-based, that makes Arrow refuse it."""

    def fits(column: str, num_rows: int) -> bool:
        try:
            Dataset.from_dict({column: values[column][:num_rows]})
        except MISFITS:
            return False
        return True

    column = next(column for column in values if not fits(column, len(values[column])))
    return column, bisect.bisect_left(range(len(values[column])), True, key=lambda row: not fits(column, row + 1))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines, or of one JSON array."""
    with path.open(encoding="utf-8-sig") as file:
        first_line_held = next((line for line in file if line.strip()), "")
    if not first_line_held.lstrip().startswith("["):
        yield from json_lines(path)
        return
    for number, row in enumerate(parse_json(path, path.read_text(encoding="utf-8-sig"))):
        if not isinstance(row, dict):
            raise DataError(f"{path} is malformed: row {number} is {type(row).__name__}, expected an object")
        yield row


def _read_parquet(path: Path) -> Dataset:
    try:
        table = pq.read_table(path)
        table.validate(full=True)
    except MISFITS as error:
        raise DataError(f"{path} is no readable Parquet file: {' '.join(str(error).split())}") from None
    for name in table.column_names:
        try:
            Dataset(table.select([name]))
        except MISFITS as error:
            raise DataError(
                f"{path}: column '{name}' cannot be read ({first_line(error)}): leave it out, or write it as another type"
            ) from None
    return Dataset(table)


def _load_from_hub(source: str, config: str | None, revision: str | None, local_files_only: bool) -> dict[str, Dataset]:
    try:
        loaded = _download(source, config, revision, local_files_only)
    except DataError:
        raise
    except Exception as error:
        # datasets raises a dozen types here (its own, huggingface_hub's, fsspec's, plain ValueError for a wrong configuration).
        if fault := disk_fault(error):
            raise DataError(
                f"cannot keep dataset '{source}' in {HF_DATASETS_CACHE} ({os.strerror(fault)}): {DISK_REMEDIES[fault]}, or set HF_HOME "
                "to a folder on another"
            ) from error
        reason = "no such file or folder, the Hub cannot be reached, and it is not in the cache"
        if not (local_files_only and "OfflineMode" in str(error)):
            reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"cannot load dataset '{source}'{f' (configuration {config})' if config else ''}: {reason or type(error).__name__}; "
            "give another id, a local file or folder, or --embedded where the recipe has embedded data"
        ) from error
    if not isinstance(loaded, DatasetDict):
        raise DataError(f"dataset '{source}' has no splits")
    splits = {SPLIT_NAMES[name]: dataset for name, dataset in loaded.items() if name in SPLIT_NAMES}
    if "train" not in splits:
        raise DataError(f"dataset '{source}' has no training split, it has {listed(loaded)}")
    return splits


def _download(source: str, config: str | None, revision: str | None, local_files_only: bool) -> Any:
    """Load a Hub dataset: from the cache, where it is there and the Hub has no newer one, or fails.

    Raises:
        DataError: The Hub failed, and the cache does not have it.
        Exception: What `load_dataset` says of anything else.
    """
    if local_files_only:
        with cache_only(True):
            return load_dataset(source, config, revision=revision)
    with patient_requests() as log:
        try:
            loaded = load_dataset(source, config, revision=revision)
        except Exception as error:
            if isinstance(error, DatasetNotFoundError):
                log.note("answers 404 (Not Found)", 404)
            if log.failure is None:
                raise
            # Of a revision that is not there the cache would give another one.
            if log.status == 404:
                raise DataError(describe_failure(log, "dataset", source, revision)) from error
            try:
                with cache_only(True):
                    loaded = load_dataset(source, config, revision=revision)
            except Exception:
                raise DataError(describe_failure(log, "dataset", source, revision)) from error
    if log.failure is not None:
        print(f"the Hub {log.failure}: taking dataset {source} from the cache", file=sys.stderr)
    return loaded
