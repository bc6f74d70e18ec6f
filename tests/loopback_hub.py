"""A Hub on this machine: serves folders over its protocol, and can be told to fail as a Hub does."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Fault = Callable[["Request"], bool]
"""Answers a request in the Hub's place; False leaves it to the Hub."""


class Request(BaseHTTPRequestHandler):
    """One request: the protocol, as far as `huggingface_hub` 2.4 and `datasets` 5.2 ask for it."""

    protocol_version = "HTTP/1.1"
    hub: "LoopbackHub"

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer()

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    do_POST = do_GET

    def give(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer; of a HEAD its headers."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def give_half(self) -> None:
        """Send the half of a file under the headers of the whole, and hang up."""
        body = self.hub.file(self.path)
        self.send_response(200)
        for name, value in (("Content-Length", str(len(body))), ("ETag", etag(body)), ("X-Repo-Commit", COMMIT)):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = self.rfile.read(length)
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.fault(self):
            return
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?", path):
            kind, name, what, _ = found.groups()
            folder = self.hub.repos.get(f"{kind}/{name}")
            if folder is None:
                self.give(404, b'{"error":"Repository not found"}', X_Error_Code="RepoNotFound")
                return
            files = [describe(file, folder) for file in sorted(folder.rglob("*")) if file.is_file()]
            if what == "paths-info":
                wanted = parse_qs(asked.decode()).get("paths", []) or json.loads(asked or b"{}").get("paths", [])
                files = [entry for entry in files if entry["path"] in wanted]
            body = files if what in ("tree", "paths-info") else {"id": name, "sha": COMMIT, "siblings": []}
            self.give(200, json.dumps(body).encode(), Content_Type="application/json")
        elif path == "/":
            self.give(200)
        else:
            self._give_file()

    def _give_file(self) -> None:
        try:
            body = self.hub.file(self.path)
        except FileNotFoundError:
            self.give(404, b"Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        headers = {"ETag": etag(body), "X-Repo-Commit": COMMIT}
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if start is None:
            self.give(200, body, **headers)
            return
        first, last = int(start[1]), min(int(start[2] or len(body) - 1), len(body) - 1)
        self.give(206, body[first : last + 1], **headers, Content_Range=f"bytes {first}-{last}/{len(body)}")


class LoopbackHub:
    """Repositories by `models/OWNER/NAME` or `datasets/OWNER/NAME`, and what is wrong just now."""

    def __init__(self, address: str, repos: dict[str, Path]) -> None:
        self.address, self.repos = address, repos
        self.requests: list[str] = []
        self.fault: Fault = healthy

    def file(self, path: str) -> bytes:
        """Give the bytes that `/ID/resolve/REVISION/FILE` names."""
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", unquote(urlsplit(path).path))
        folder = self.repos.get(f"{'datasets' if found[1] else 'models'}/{found[2]}") if found else None
        if not found or folder is None or not (folder / found[3]).is_file():
            raise FileNotFoundError(path)
        return (folder / found[3]).read_bytes()


def healthy(request: Request) -> bool:
    """Let the Hub answer."""
    return False


def etag(body: bytes) -> str:
    """Give what names a file's content."""
    return f'"{hashlib.sha1(body).hexdigest()}"'


def describe(file: Path, folder: Path) -> dict[str, object]:
    """Give a file's entry in a listing."""
    body = file.read_bytes()
    return {"type": "file", "path": file.relative_to(folder).as_posix(), "size": len(body), "oid": etag(body).strip('"')}


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[LoopbackHub]:
    """Serve repositories until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    server.daemon_threads = True
    hub = LoopbackHub(f"http://127.0.0.1:{server.server_port}", repos)
    server.RequestHandlerClass = type("RequestOfThisHub", (Request,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answering(status: int, only: str = "/.+", times: int = 10**9, **headers: str) -> Fault:
    """Answer with a status what is asked of addresses that begin so; only the first so many times."""
    left = [times]

    def fault(request: Request) -> bool:
        if not re.match(only, request.path) or left[0] == 0:
            return False
        left[0] -= 1
        request.give(status, b"{}", **headers)
        return True

    return fault


def stalling(seconds: float, only: str = "/.+") -> Fault:
    """Accept requests and say nothing."""

    def fault(request: Request) -> bool:
        if not re.match(only, request.path):
            return False
        time.sleep(seconds)
        request.close_connection = True
        return True

    return fault


def breaking_off(only: str) -> Fault:
    """Hang up in the middle of files whose address ends so."""

    def fault(request: Request) -> bool:
        if request.command != "GET" or not re.search(f"{only}$", request.path):
            return False
        request.give_half()
        return True

    return fault
