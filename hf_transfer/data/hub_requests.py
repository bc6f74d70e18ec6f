"""What is asked of the Hub, with a bound on patience, and what it answered, in words a user can act on."""

import http
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from huggingface_hub import constants, get_session

TRIES = 3
WAIT_SECONDS = 1.0
"""Before the second try; twice as long before the third."""
MAX_WAIT_SECONDS = 10.0
"""Where the Hub asks for more patience than this, it is told to the user at once."""
PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that may be gone soon."""
REFUSING = (401, 403)
ASIDES = ("://datasets-server.", "/datasets.huggingface.co/", "/api/agent-harnesses")
"""In addresses that the libraries ask besides, and do without: exported tables, a counter of downloads, names of agents."""


_one_at_a_time = threading.RLock()


class HubFailure(Exception):
    """The Hub did not answer, or not as it should, as often as it was asked. For `describe_failure`, not for the user."""


@dataclass
class HubLog:
    """What went wrong between us and the Hub while a block ran."""

    failure: str | None = None
    """What the Hub did, where it was asked in vain: it "answers 500 (Internal Server Error)"."""
    status: int | None = None
    """With it, where it had an answer."""

    def note(self, did: str, status: int | None = None) -> None:
        """Keep the first failure; the ones behind it follow from it."""
        if self.failure is None:
            self.failure, self.status = did, status


@contextmanager
def patient_requests() -> Iterator[HubLog]:
    """While the block runs, ask the Hub `TRIES` times for each thing and give up then.

    The libraries would try for minutes: six times for each file, a minute each where the Hub accepts a connection and says nothing
    (huggingface_hub 2.4, `file_download._ETAG_RETRY_TIMEOUT`), and as long as a `Retry-After` says. They share one client, whose
    `send` all requests go through; what Xet downloads has retries of its own.

    The client is the process's: what another thread asks of the Hub meanwhile is bounded alike. One block runs at a time.

    Yields:
        What is kept of failures, also of those that a library hides by taking its cache.
    """
    with _one_at_a_time:
        client, log = get_session(), HubLog()
        before = vars(client).get("send")
        # On the instance, in front of the class's own.
        vars(client)["send"] = _PatientSender(client, log).send
        try:
            yield log
        finally:
            del vars(client)["send"]
            if before is not None:
                vars(client)["send"] = before


def describe_failure(log: HubLog, kind: str, name: str, revision: str | None = None) -> str:
    """Give the sentence for what could not be had from the Hub: what was asked for, what the Hub answered, what to do.

    Args:
        log: Of the block in which it was asked for; holds a failure.
        kind: "checkpoint" or "dataset".
        name: Its id.
        revision: Asked for, None = the newest.
    """
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    remedy = {
        401: f"if it is private or gated, log in with `hf auth login` or set HF_TOKEN (without, the Hub says this of a {kind} that does "
        "not exist, too: check the spelling)",
        403: f"it is gated, or the token may not read it: ask for access on {page}, and log in as who has it (`hf auth login`)",
        404: "check the spelling" + (" and the revision" if revision else "") + "; one that is private shows with a token only "
        "(`hf auth login`)",
        429: "it was asked too often from here: wait some minutes, and log in (`hf auth login`), which allows more",
    }.get(log.status or 0, f"try again later: what has arrived is kept; a {kind} that is in the cache is used without the Hub")
    return f"cannot get {kind} '{name}'{f' (revision {revision})' if revision else ''}: the Hub {log.failure}; {remedy}"


@dataclass
class _PatientSender:
    """Sends requests in the place of a client's `send`."""

    client: httpx2.Client
    log: HubLog
    _broken: Counter[str] = field(default_factory=Counter)
    """How often the body of an answer broke off, by address."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request until it is answered, `TRIES` times at most.

        Raises:
            HubFailure: It never was.
        """
        limit = max(constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.HF_HUB_ETAG_TIMEOUT)
        seconds = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {phase: min(seconds.get(phase) or limit, limit) for phase in ("connect", "read", "write", "pool")}
        if any(aside in str(request.url) for aside in ASIDES):
            return type(self.client).send(self.client, request, **options)
        for attempt in range(1, TRIES + 1):
            wait, status = WAIT_SECONDS * attempt, None
            try:
                response = type(self.client).send(self.client, request, **options)
            except httpx2.TransportError as error:
                did = _described(error, limit)
            else:
                status = response.status_code
                if status in REFUSING or response.headers.get("X-Error-Code") == "RepoNotFound":
                    self.log.note(_answered(status), status)
                if status not in PASSING:
                    response.stream = _Watched(response.stream, self, str(request.url), limit)
                    return response
                did = _answered(status)
                wait = max(wait, _seconds(response.headers.get("Retry-After")))
                response.close()
            if attempt == TRIES or wait > MAX_WAIT_SECONDS:
                break
            time.sleep(wait)
        self.log.note(did, status)
        raise HubFailure(did)

    def broke_off(self, address: str, error: httpx2.TransportError, limit: float) -> None:
        """Count an answer that broke off; the caller tries to go on behind what has arrived.

        Raises:
            HubFailure: It has done so too often.
        """
        with self._lock:
            self._broken[address] += 1
            if self._broken[address] < TRIES:
                return
        did = f"broke off in the middle of a file ({_described(error, limit)})"
        self.log.note(did)
        raise HubFailure(did) from error


class _Watched(httpx2.SyncByteStream):
    """The body of an answer, whose end before its time is counted."""

    def __init__(self, stream: Any, sender: _PatientSender, address: str, limit: float) -> None:
        self._stream, self._sender, self._address, self._limit = stream, sender, address, limit

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except httpx2.TransportError as error:
            self._sender.broke_off(self._address, error, self._limit)
            raise

    def close(self) -> None:
        self._stream.close()


def _answered(status: int) -> str:
    known = {code.value: code.phrase for code in http.HTTPStatus}
    return f"answers {status} ({known.get(status, 'an unknown status')})"


def _described(error: httpx2.TransportError, limit: float) -> str:
    if isinstance(error, httpx2.ConnectError):
        return "cannot be reached"
    return f"did not answer within {limit:g} s" if isinstance(error, httpx2.TimeoutException) else "closed the connection"


def _seconds(retry_after: str | None) -> float:
    """Give the seconds of a `Retry-After`; of a date there, as good as none."""
    return float(retry_after) if retry_after is not None and retry_after.isdigit() else 0.0
