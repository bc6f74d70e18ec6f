"""A Hub that fails: asked a few times, then one sentence that says what was asked, what it answered and what to do; nothing is written."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.conftest import make_rows, write_csv
from tests.loopback_hub import Fault, LoopbackHub, answering, breaking_off, healthy, serving, stalling

Command = Callable[..., tuple[int, str, float]]
WEIGHTS = "model.safetensors"
RUN = ["--arms", "head", "--budgets", "30", "--epochs", "1", "--max-length", "32", "--precision", "fp32"]


@pytest.fixture(scope="module")
def repos(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give a checkpoint and two datasets as the Hub would hold them."""
    folder = tmp_path_factory.mktemp("repos")
    shutil.copytree(tiny_bert, folder / "tiny")
    for name in ("rows", "parquet"):
        (folder / name).mkdir()
        for split, seed in (("train", 1), ("test", 2)):
            write_csv(folder / name / f"{split}.csv", make_rows(60 if split == "train" else 21, seed))
    for path in (folder / "parquet").glob("*.csv"):
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(path), path.with_suffix(".parquet"))
        path.unlink()
    return {"models/org/tiny": folder / "tiny", "datasets/org/rows": folder / "rows", "datasets/org/parquet": folder / "parquet"}


@pytest.fixture
def hub(repos: dict[str, Path]) -> Iterator[LoopbackHub]:
    with serving(repos) as served:
        yield served


@pytest.fixture
def local_rows(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "rows.csv", make_rows(60, 1))


@pytest.fixture
def command(hub: LoopbackHub, tmp_path: Path) -> Command:
    """Give a function that runs `hf-transfer WORDS` against the Hub in a folder of its own -> (exit code, standard error, seconds)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") or name == "HF_TRANSFER_CACHE"}
    patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2"}
    (tmp_path / "work").mkdir()

    def call(*words: object) -> tuple[int, str, float]:
        environment = kept | patience | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        program = "from hf_transfer.cli import run_cli; run_cli()"
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, words)],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stderr, time.monotonic() - started

    return call


def refused(result: tuple[int, str, float], work: Path) -> str:
    """Check that a command ended with one sentence, soon and without a trace, and give it."""
    code, err, seconds = result
    assert code == 2, err
    assert "Traceback" not in err
    sentences = [line for line in err.splitlines() if "error: " in line]
    assert len(sentences) == 1 and err.splitlines()[-1] == sentences[0], err
    assert sentences[0].startswith("error: ")
    assert seconds < 60
    assert list(work.iterdir()) == [], "nothing is written"
    return sentences[0]


def cases(kind: str, names: str, only: dict[str, str], in_time: tuple[str, ...]) -> list[object]:
    """Give a case for each fault by its name, but for a few in the long tier: a case takes two processes, and their waiting."""
    listing, files = only["listing"], only["files"]
    faults = {
        "401": (answering(401, listing), r"the Hub answers 401 \(Unauthorized\); .*`hf auth login` or set HF_TOKEN"),
        "403": (answering(403, listing, X_Error_Code="GatedRepo"), rf"the Hub answers 403 .* ask for access on \S+/{names}, and log in"),
        "404": (answering(404, listing, X_Error_Code="RepoNotFound"), r"the Hub answers 404 \(Not Found\); check the spelling"),
        "429": (answering(429, listing), r"the Hub answers 429 \(Too Many Requests\); .*wait some minutes"),
        "429-long": (answering(429, listing, Retry_After="3000"), r"the Hub answers 429 \(Too Many Requests\); .*wait some minutes"),
        "500": (answering(500, listing), r"the Hub answers 500 \(Internal Server Error\); try again later"),
        "500-file": (answering(500, f"/.*{files}"), r"the Hub answers 500 \(Internal Server Error\); try again later"),
        "stall": (stalling(30, listing), r"the Hub did not answer within 2 s; try again later"),
        "stall-file": (stalling(30, f"/.*{files}"), r"the Hub did not answer within 2 s; try again later"),
        "hang-up": (stalling(0, listing), r"the Hub closed the connection; try again later"),
        "cut-file": (breaking_off(files), r"the Hub broke off in the middle of a file \(closed the connection\); try again later"),
    }
    return [
        pytest.param(fault, f"^error: cannot get {kind} '{names.removeprefix('datasets/')}': {message}", id=name)
        if name in in_time
        else pytest.param(
            fault, f"^error: cannot get {kind} '{names.removeprefix('datasets/')}': {message}", id=name, marks=pytest.mark.slow
        )
        for name, (fault, message) in faults.items()
    ]


OF_CHECKPOINTS = {"listing": "/(api/models|org)/", "files": WEIGHTS}
OF_DATASETS = {"listing": "/(api/)?datasets/", "files": r"train\.csv"}


@pytest.mark.parametrize(("fault", "message"), cases("checkpoint", "org/tiny", OF_CHECKPOINTS, ("500", "cut-file")))
def test_a_checkpoint_that_the_hub_does_not_give(
    hub: LoopbackHub, command: Command, local_rows: Path, tmp_path: Path, fault: Fault, message: str
) -> None:
    asked = ["validate", "text", "--checkpoint", "org/tiny", "--dataset", local_rows, "--max-length", "32"]
    hub.fault = fault
    sentence = refused(command(*asked), tmp_path / "work")
    assert re.search(message, sentence), sentence
    times = max(hub.requests.count(line) for line in set(hub.requests))
    assert times <= 3, hub.requests
    hub.fault = healthy
    assert command(*asked)[0] == 0, "what has half arrived is not taken for whole"


def test_what_the_hub_gives_is_what_a_run_trains_on(hub: LoopbackHub, command: Command, tiny_bert: Path, tmp_path: Path) -> None:
    """The healthy case: without it the faults would prove nothing."""
    code, err, _ = command("run", "text", "--checkpoint", "org/tiny", "--dataset", "org/rows", "--output-dir", "run", *RUN)
    assert code == 0, err
    (weights,) = (tmp_path / "home/hub/models--org--tiny").rglob(WEIGHTS)
    assert weights.read_bytes() == (tiny_bert / WEIGHTS).read_bytes()
    assert "from the cache" not in err
    assert (tmp_path / "work/run/report.html").exists()
    code, err, _ = command("validate", "text", "--checkpoint", "org/tiny", "--dataset", "org/parquet", "--max-length", "32")
    assert code == 0, err


@pytest.mark.parametrize(("fault", "message"), cases("dataset", "datasets/org/rows", OF_DATASETS, ("401",)))
def test_a_dataset_that_the_hub_does_not_give(
    hub: LoopbackHub, command: Command, tiny_bert: Path, tmp_path: Path, fault: Fault, message: str
) -> None:
    asked = ["validate", "text", "--checkpoint", tiny_bert, "--dataset", "org/rows", "--max-length", "32"]
    hub.fault = fault
    sentence = refused(command(*asked), tmp_path / "work")
    assert re.search(message, sentence), sentence
    hub.fault = healthy
    code, err, _ = command(*asked)
    assert (code, "from the cache" in err) == (0, False), err


@pytest.mark.slow
def test_a_fault_that_passes_is_not_told(hub: LoopbackHub, command: Command) -> None:
    asked = ["validate", "text", "--checkpoint", "org/tiny", "--dataset", "org/rows", "--max-length", "32"]
    hub.fault = answering(503, "/(api|org|datasets)/", times=2)
    code, err, _ = command(*asked)
    assert (code, "the Hub" in err) == (0, False), err


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(answering(500), id="500"),
        pytest.param(answering(401, "/(api|org|datasets)/"), id="401", marks=pytest.mark.slow),
        pytest.param(stalling(30, "/(api|org|datasets)/"), id="stall", marks=pytest.mark.slow),
        pytest.param(stalling(30), id="away", marks=pytest.mark.slow),
    ],
)
def test_what_is_in_the_cache_is_used_where_the_hub_fails_and_the_run_says_so(hub: LoopbackHub, command: Command, fault: Fault) -> None:
    asked = ["validate", "text", "--checkpoint", "org/tiny", "--dataset", "org/rows", "--max-length", "32"]
    assert command(*asked)[0] == 0
    hub.fault = fault
    code, err, seconds = command(*asked)
    assert code == 0, err
    assert seconds < 60
    told = re.findall(r"^the Hub .*(?:taking|looking for) (.*) (?:from|in) the cache$", err, re.MULTILINE)
    assert told in (["checkpoint org/tiny", "dataset org/rows"], ["org/tiny, org/rows"]), err


@pytest.mark.parametrize(("asked", "what"), [("org/tiny", "checkpoint"), pytest.param("org/rows", "dataset", marks=pytest.mark.slow)])
def test_a_full_disk_under_the_hub_s_cache_is_one_sentence(
    hub: LoopbackHub, command: Command, local_rows: Path, tiny_bert: Path, tmp_path: Path, asked: str, what: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(home)], capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        given = {"checkpoint": tiny_bert, "dataset": local_rows, what: asked}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        sentence = refused(command("validate", "text", *words, "--max-length", "32"), tmp_path / "work")
        assert sentence.startswith(f"error: cannot keep {what} '{asked}' in {home}"), sentence
        assert "(No space left on device): free some space on that disk, or set HF_HOME" in sentence
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
