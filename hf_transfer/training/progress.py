"""Progress of a training: a bar on a terminal, a line an epoch elsewhere (a pipe, CI)."""

import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """Counts updates, rows and tokens of one training, and shows rows/s, tokens/s and the time left."""

    def __init__(self, title: str, num_updates: int, shown: bool, unit: str = "tokens", updates: int = 0) -> None:
        """Begin to count.

        Args:
            title: Of the bar and the lines.
            num_updates: Of the whole training.
            shown: Whether a person is to see it.
            unit: Of tokens.
            updates: Done before.
        """
        self._bar = tqdm(
            total=num_updates,
            initial=updates,
            desc=title,
            unit="update",
            disable=not (shown and sys.stderr.isatty()),
            leave=False,
            dynamic_ncols=True,
        )
        self._title, self._shown, self._unit = title, shown, unit
        self._updates = self._rows = self._tokens = 0
        self._seconds = 0.0
        self._wait_seconds: float | None = None
        self._num_updates = num_updates

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()

    def advance(self, updates: int, rows: int, tokens: int, seconds: float, wait_seconds: float | None) -> None:
        """Count one update more; all counts are those of the training so far.

        Args:
            updates: Done.
            rows: Seen.
            tokens: Seen.
            seconds: That took.
            wait_seconds: Of these, how long the model waited for input; None = nothing is read ahead.
        """
        self._updates, self._rows, self._tokens = updates, rows, tokens
        self._seconds, self._wait_seconds = seconds, wait_seconds
        self._bar.set_postfix_str(self._rates(), refresh=False)
        self._bar.update()

    def epoch(self, epoch: int, num_epochs: int, train_loss: float, validation_loss: float | None) -> None:
        """Tell how an epoch ended."""
        if self._shown:
            validation = "" if validation_loss is None else f"  validation loss {validation_loss:.3f}"
            left = self._seconds / self._updates * (self._num_updates - self._updates)
            losses = f"train loss {train_loss:.3f}{validation}"
            # The reader of a pipe may be gone; the training is worth more.
            with suppress(BrokenPipeError):
                tqdm.write(f"{self._title}  epoch {epoch}/{num_epochs}  {losses}  {self._rates()}  {left:.0f} s left", file=sys.stderr)

    def _rates(self) -> str:
        seconds = max(self._seconds, 1e-9)
        wait = "" if self._wait_seconds is None else f"  {self._wait_seconds / seconds:.0%} waiting for input"
        return f"{self._rows / seconds:.0f} rows/s  {self._tokens / seconds:,.0f} {self._unit}/s{wait}"
