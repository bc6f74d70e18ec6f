"""Kills a run again and again, at random instants, and goes on with it each time: `python -m tests.evidence.killing ...`.

Every attempt is forked from a process that has imported all it needs, and is as fresh as one that was started. Kills come in three kinds,
in turn: behind a random time; behind a random number of changes to the disk; and while a state is being written.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.listdir", "shutil.rmtree")
"""Audit events of a write that is about to be done, or half done."""
SECONDS = 300.0
"""After which a run that should end is lost."""


def main() -> None:
    """Kill as often as asked, let the run end, and print what was done as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, required=True, help="that the run takes where nothing kills it")
    asked = parser.parse_args()

    import hf_transfer.api
    import hf_transfer.evidence.grid
    import hf_transfer.evidence.hygiene
    import hf_transfer.publish.card  # noqa: F401

    rng = random.Random(asked.seed)
    kills = {"time": 0, "change": 0, "writing": 0}
    attempts = 0
    while sum(kills.values()) < asked.kills:
        attempts += 1
        kind = rng.choice(list(kills)) if attempts > len(kills) else list(kills)[attempts - 1]
        after = rng.randint(1, 60) if kind == "change" else None
        pids = start(asked.config, asked.folder, asked.processes, after)
        limit = rng.uniform(0.1, asked.seconds) if kind == "time" else SECONDS
        if kind == "writing":
            # Some states are let pass.
            wait_for_writing(asked.folder, pids, rng.randint(0, 3))
        else:
            wait_until(pids, limit)
        was_killed = end(pids)
        kills[kind] += was_killed
        if not was_killed and (asked.folder / "comparison.json").is_file():
            break
    pids = start(asked.config, asked.folder, asked.processes)
    wait_until(pids, SECONDS)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps({"kills": kills, "attempts": attempts, "codes": codes}))


def start(config: str, folder: Path, num_processes: int, changes: int | None = None) -> list[int]:
    """Fork a run, that kills itself behind a number of changes to the disk if one is given; give its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(num_processes):
        if pid := os.fork():
            pids.append(pid)
            continue
        if num_processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if changes is not None and rank == 0:
            kill_after(changes)
        train(config, folder)
    return pids


def train(config: str, folder: Path) -> None:
    """Go on with the run, and end this process."""
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from hf_transfer.cli import run_cli

    code = 1
    try:
        run_cli(["run", "--config", config, "--output-dir", str(folder), "--resume"])
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill_after(changes: int) -> None:
    """Kill this process at a change to the disk, counted from now."""
    left = changes

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        is_write = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in CHANGES or is_write:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def wait_until(pids: list[int], seconds: float) -> None:
    """Wait for processes to end, or a time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and not any(has_ended(pid) for pid in pids):
        time.sleep(0.003)


def wait_for_writing(folder: Path, pids: list[int], let_pass: int) -> None:
    """Wait until a state is being written, after others; or for the processes to end."""
    was_writing = False
    while not any(has_ended(pid) for pid in pids):
        is_writing = any(folder.glob("*/*/*/state/.update-*"))
        if is_writing and not was_writing:
            if let_pass == 0:
                return
            let_pass -= 1
        was_writing = is_writing
        time.sleep(0.0005)


def has_ended(pid: int) -> bool:
    """Say whether a process has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(pids: list[int]) -> bool:
    """Kill processes; say whether one was killed, now or by itself."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return any(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL for pid in pids)


if __name__ == "__main__":
    main()
