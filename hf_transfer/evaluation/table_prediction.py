"""A table in a file predicted into another, in one pass of bounded memory: its own columns, then what the model says of each row."""

import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from hf_transfer.data.table_writing import table_writer
from hf_transfer.data.tables import SEPARATORS, Chunk, check_tables, outline, read_chunks
from hf_transfer.errors import ConfigError, DataError, did_you_mean, listed

CHUNK_ROWS = 4096
"""Rows read, sorted by length, predicted and written at once: sixteen micro-batches of a GPU at 32 tokens a row, and some MB of texts."""
SECONDS_A_LINE = 10.0
"""How often a pipe is told how far it is."""


@dataclass(frozen=True)
class TablePrediction:
    """What `predict_table` did."""

    path: Path
    """The file it wrote."""
    num_rows: int
    wall_seconds: float

    def __str__(self) -> str:
        """Give it as a sentence."""
        rate = self.num_rows / max(self.wall_seconds, 1e-9)
        return f"{self.num_rows:,} rows in {self.wall_seconds:.1f} s ({rate:,.0f} rows/s): {self.path}"


def predict_table(
    predict: Callable[..., list[dict[str, Any]]],
    functions: ModuleType,
    task: Any,
    labels: Sequence[str],
    source: Path,
    target: Path,
    columns: Mapping[str, str] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> TablePrediction:
    """Predict every row of a file into another, which has the same rows in the same order.

    The file is read twice: once from end to end, so that a mistake in its last row shows before the first is predicted.

    Args:
        predict: What a user would pass, (B,), and `advance`, which is told the share done -> answers, (B,).
        functions: Of the task.
        task: The task's config.
        labels: Label names, (C,).
        source: CSV, TSV, JSONL or Parquet file.
        target: File of such a kind to write; must not exist.
        columns: Role -> column, for what is called otherwise than in training.
        chunk_rows: Rows in memory at once.

    Raises:
        ConfigError: A role cannot be meant.
        DataError: A file cannot be read or written, a column is missing, or a row holds nothing that can be predicted.
    """
    started = time.perf_counter()
    check_tables(source, target)
    flat = target.suffix.lower() in SEPARATORS
    added = functions.to_table([], labels, flat).schema
    found = next(chunk.columns for chunk in read_chunks(source, chunk_rows))
    roles = _choose_roles(functions, task, source, columns or {}, found)

    def inputs(chunk: Chunk) -> list[Any]:
        values = {role: chunk.values(column) for role, column in roles.items()}
        return list(functions.from_columns(values, chunk.first_row, source.parent))

    def checked() -> Iterator[Chunk]:
        for chunk in read_chunks(source, chunk_rows):
            inputs(chunk)
            yield chunk

    known = outline(checked(), typed=target.suffix.lower() == ".parquet")
    if taken := [name for name in added.names if name in known.columns]:
        raise DataError(f"{source} has a column '{taken[0]}' already, which the predictions need: rename or remove it")
    done = 0
    with table_writer(target, known, added) as write, _Progress(known.num_rows) as progress:
        for chunk in read_chunks(source, chunk_rows):
            done += len(chunk)
            if done > known.num_rows:
                break
            answers = predict(inputs(chunk), advance=functools.partial(progress.advance, len(chunk)))
            write(chunk, functions.to_table(answers, labels, flat))
        if done != known.num_rows:
            raise DataError(f"{source} changed while it was read: it had {known.num_rows:,} rows; start again when it is whole")
    return TablePrediction(target, done, time.perf_counter() - started)


def _choose_roles(functions: ModuleType, task: Any, source: Path, columns: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    """Give the role -> column that is read, as named or as in training.

    Raises:
        ConfigError: There is no such role.
        DataError: A column is missing; lists those found.
    """
    defaults = functions.input_roles(task, columns, found)
    if unknown := [role for role in columns if role not in defaults]:
        raise ConfigError(f"this model reads {listed(defaults)}, found the role '{unknown[0]}'{did_you_mean(unknown[0], defaults)}")
    roles: dict[str, str] = defaults | dict(columns)
    missing = [role for role, column in roles.items() if column not in found]
    if missing:
        wanted = ", ".join(f"'{roles[role]}' (the {role})" for role in missing)
        raise DataError(
            f"{source} has no column {wanted}; it has {listed(found)}: name it with --columns "
            f"{' '.join(f'{role}=COLUMN' for role in missing)}{did_you_mean(roles[missing[0]], found)}"
        )
    return roles


class _Progress:
    """Counts rows: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._rows = num_rows, 0.0
        self._started = self._told = time.perf_counter()
        self._bar = tqdm(total=num_rows, unit="row", disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, num_rows: int, share: float) -> None:
        """Count a share of so many rows."""
        rows = num_rows * share
        self._bar.update(int(self._rows + rows) - int(self._rows))
        self._rows += rows
        now = time.perf_counter()
        if self._bar.disable and now - self._told > SECONDS_A_LINE:
            self._told = now
            rate = self._rows / (now - self._started)
            left = (self._num_rows - self._rows) / max(rate, 1e-9)
            print(f"{self._rows:,.0f} of {self._num_rows:,} rows  {rate:,.0f} rows/s  {left:,.0f} s left", file=sys.stderr, flush=True)
