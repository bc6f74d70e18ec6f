"""Who asks a run to end before it is done: a signal, or the clock."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Self

from hf_transfer.errors import Interrupted

DOUBLED_SECONDS = 3.0
"""Under a launcher of several processes a Ctrl-C comes from the terminal and, within this time, once more from the launcher."""


class Stopping:
    """Whether a run is asked to end, while its block runs.

    Ctrl-C (SIGINT), SIGTERM and the end of its minutes ask for it. A training then ends behind the update it is in, with its state saved.
    Elsewhere there is nothing to save, and the run ends at once; so it does anywhere at a second Ctrl-C.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        """Start the clock.

        Args:
            max_minutes: After which the run is asked to end; None = never.
        """
        self.reason: str | None = None
        """Why the run is asked to end; None where it is not."""
        self._max_minutes = max_minutes
        self._ends = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._is_deferred = False
        self._asked_at = 0.0
        self._before: dict[int, object] = {}
        self._alarm = (0.0, 0.0)
        """When an alarm of the caller's own was to ring (`time.monotonic`, 0 = never), and every how many seconds from then on."""

    def __enter__(self) -> Self:
        # Python hands signals to the main thread alone; a run in another one is ended by its clock only, at its next update.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
            if self._ends is not None:
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_signal)
                seconds, interval = signal.setitimer(signal.ITIMER_REAL, max(1e-3, self._ends - time.monotonic()))
                self._alarm = (time.monotonic() + seconds if seconds else 0.0, interval)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            # None is one that Python did not install, and cannot.
            if handler is not None:
                signal.signal(number, handler)  # type: ignore[arg-type]
        rings, interval = self._alarm
        if rings:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, rings - time.monotonic()), interval)

    @property
    def is_asked(self) -> bool:
        """Whether the run is asked to end."""
        if self.reason is None and self._ends is not None and time.monotonic() >= self._ends:
            self.reason = self._out_of_time()
        return self.reason is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, only note that the run is asked to end: the block looks, and ends in order."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def end(self, what: str) -> None:
        """End the run.

        Args:
            what: Became of its trainings.

        Raises:
            Interrupted: Always.
        """
        raise Interrupted(f"{self.reason or 'interrupted'}: {what}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_second = number == signal.SIGINT and self._is_second(now)
        if number == signal.SIGALRM:
            self.reason = self.reason or self._out_of_time()
        self.reason = self.reason or f"interrupted ({signal.Signals(number).name})"
        if is_second or not self._is_deferred:
            self.end("ended at once; what was finished or saved before stays")
        if not self._asked_at:
            self._asked_at = now
            if os.environ.get("RANK", "0") == "0":
                # Not by print, which may be what was interrupted. Of `... | tee log` a Ctrl-C has ended the reader, too.
                with suppress(OSError):
                    os.write(2, f"\n{self.reason}: ending behind this update; Ctrl-C ends at once\n".encode())

    def _out_of_time(self) -> str:
        return f"out of its {self._max_minutes:g} minutes"

    def _is_second(self, now: float) -> bool:
        """Say whether a Ctrl-C is one more, and not the first one told twice."""
        is_launched = "TORCHELASTIC_RUN_ID" in os.environ
        return self._asked_at > 0 and (not is_launched or now - self._asked_at > DOUBLED_SECONDS)
