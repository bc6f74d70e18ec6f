"""Tokens and passwords of the environment and of the command line stand in no file we write, and in nothing we print."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_transfer.data.images import num_cores
from hf_transfer.escaping import without_secrets
from tests.conftest import Run

SECRET = "S3cr3tOfMine"
VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACEHUB_API_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "PGPASSWORD",
    "MY_PASSWORD",
)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plant a secret of its own in each variable, and in the file where the Hub's token lies."""
    for index, name in enumerate(VARIABLES):
        monkeypatch.setenv(name, f"hf_{SECRET}{index}")
    (tmp_path / "hf_home").mkdir()
    (tmp_path / "hf_home" / "token").write_text(f"hf_{SECRET}file")
    (tmp_path / "hf_home" / "stored_tokens").write_text(f"[mine]\nhf_token = hf_{SECRET}stored\n")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf_home" / "token"))


def holding(*folders: Path) -> list[str]:
    """Give the files below folders that hold a secret, in their bytes or in their names."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and "hf_home" not in path.parts]
    assert len(files) > 10
    return [str(path) for path in files if SECRET in str(path) or SECRET.encode() in path.read_bytes()]


@pytest.fixture
def tells(run: Run) -> Callable[..., tuple[int, str]]:
    """Give a function that runs a command, checks that it prints no secret -> exit code, what it printed."""

    def call(*words: object) -> tuple[int, str]:
        code, out, err = run(*words)
        assert SECRET not in out + err, (words, out + err)
        return code, out + err

    return call


@pytest.mark.usefixtures("planted")
def test_a_whole_run_writes_and_prints_no_secret(
    tells: Callable[..., tuple[int, str]], tiny_bert: Path, topics_folder: Path, tmp_path: Path, cache: Path
) -> None:
    words = ["text", "--dataset", topics_folder, "--checkpoint", tiny_bert, "--max-length", 32, "--epochs", 1]
    storage = f"sqlite:///file:{tmp_path}/trials.db?uri=true&password={SECRET}url"
    more = ["--arms", "scratch", "lora", "--tracker", "tensorboard", "--search", 2, "--search-storage", storage, "--output-dir", "out"]
    code, said = tells("run", *words, *more)
    assert code == 0, said
    assert (tmp_path / "trials.db").is_file(), "the database of the URL was used"
    for format in ("html", "md", "csv", "json"):
        assert tells("report", "out", "--format", format, "--output", f"report.{format}")[0] == 0
        assert tells("report", "out", "--format", format)[0] == 0
    assert tells("run", *words, *more, "--resume", "--json")[0] == 0
    assert tells("validate", *words)[0] == 0
    assert tells("tune", *words, "--arms", "full")[0] in (0, 2)
    assert tells("predict", "out", "--input", topics_folder / "test.csv", "--output", "answers.csv")[0] == 0
    assert tells("new", "mine.py", "--from", "ner")[0] == 0
    code, said = tells(
        "run", *words, "--arms", "full", "--learning-rate", 1e30, "--set", "training.max_grad_norm=null", "--output-dir", "bad"
    )
    assert code == 2 and "error: " in said, said
    assert holding(tmp_path, cache) == []


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "words",
    [
        ["--dataset", f"https://me:{SECRET}@host.invalid/x.csv"],
        ["--dataset", f"https://host.invalid/x.csv?token={SECRET}"],
        ["--dataset", f"hf://datasets/me:{SECRET}@x/y.parquet"],
        ["--dataset", f"s3://key:{SECRET}@bucket/x"],
        ["--dataset", f"https://me:p@ss/{SECRET}@host.invalid/x.csv"],
        ["--checkpoint", f"https://me:{SECRET}@host.invalid/model"],
        ["--checkpoint", f"https://host.invalid/model?token={SECRET}"],
        ["--set", f"data.source=https://me:{SECRET}@host.invalid/x.csv"],
        ["--config", f"https://me:{SECRET}@host.invalid/x.yaml"],
        ["--search", 2, "--search-storage", f"postgresql://me:{SECRET}@127.0.0.1:1/x"],
        ["--search", 2, "--search-storage", f"mysql://me:{SECRET}@127.0.0.1:1/x?password={SECRET}"],
        ["--search", 2, "--search-storage", f"nosuch://me:{SECRET}@127.0.0.1:1/x"],
        ["--search", 2, "--search-storage", f"sqlite:///file:/nowhere/x.db?uri=true&password={SECRET}"],
        ["--search", 2, "--search-storage", f"postgresql://me:{SECRET}@127.0.0.1:port/x"],
    ],
    ids=lambda words: str(words[-1]).replace(SECRET, "SECRET"),
)
def test_a_mistake_with_a_secret_in_it_is_told_without_it(
    tells: Callable[..., tuple[int, str]], tiny_bert: Path, topics_folder: Path, tmp_path: Path, words: list[object]
) -> None:
    whole = ["run", "text", "--max-length", 32, "--output-dir", "out"]
    whole += [] if "--dataset" in words else ["--dataset", topics_folder]
    whole += [] if "--checkpoint" in words else ["--checkpoint", tiny_bert]
    code, said = tells(*whole, *words)
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert not Path("out").exists()


CRASH = """
import sys
import torch
from hf_transfer.cli import run_cli

def broken(*_, **__):
    raise ZeroDivisionError("a bug of ours")

torch.Tensor.backward = broken
run_cli(sys.argv[1:])
"""
RUN = "import sys; from hf_transfer.cli import run_cli; run_cli(sys.argv[1:])"


@pytest.mark.usefixtures("planted")
def test_a_crash_and_workers_tell_no_secret(tiny_bert: Path, topics_folder: Path, tmp_path: Path, cache: Path) -> None:
    words = ["run", "text", "--dataset", str(topics_folder), "--checkpoint", str(tiny_bert), "--max-length", "32", "--epochs", "1"]
    storage = ["--search", "1", "--search-storage", f"sqlite:///file:{tmp_path}/trials.db?uri=true&password={SECRET}url"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def printed(code: str, *more: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *words, *more], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
        )
        assert SECRET not in done.stdout + done.stderr, done.stdout + done.stderr
        return done.returncode, done.stderr

    code, said = printed(CRASH, "--arms", "head", "--output-dir", "crashed", *storage)
    assert code == 1 and "Traceback" in said and "a bug of ours" in said, said
    if num_cores() > 1:
        code, said = printed(RUN, "--arms", "head", "full", "--output-dir", "out", "--parallel", "2", *storage)
        assert code == 0, said
    assert holding(tmp_path, cache) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no file https://me:pw@host/x.csv", "no file https://me:***@host/x.csv"),
        ("at https://host/x?token=a&b=c gone", "at https://host/x?*** gone"),
        ("postgresql://u:p@ss/w@host:5/db?password=x", "postgresql://u:***@host:5/db?***"),
        ("git clone https://token@host/x", "git clone https://***@host/x"),
        ("as postgresql://USER:PASSWORD@HOST/NAME", "as postgresql://USER:PASSWORD@HOST/NAME"),
        ("mail me@host, or see https://host/x", "mail me@host, or see https://host/x"),
        ("no file hf://datasets/org/rows@0a1b/x.csv", "no file hf://datasets/org/rows@0a1b/x.csv"),
        ("at xhf://token@host", "at xhf://***@host"),
        ("did you mean 'x'? is it a/b?", "did you mean 'x'? is it a/b?"),
    ],
)
def test_urls_lose_what_may_be_secret(text: str, expected: str) -> None:
    assert without_secrets(text) == expected
    assert without_secrets(expected) == expected


@pytest.mark.parametrize("part", ["ab:/", "ab:/?'", "@ab:/", "?"])
def test_a_long_word_is_looked_through_once(part: str) -> None:
    text = part * 300_000
    started = time.perf_counter()
    without_secrets(text)
    assert time.perf_counter() - started < 20
