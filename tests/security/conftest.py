"""What an attacker plants: it makes a folder when it is executed, and no test may find that folder."""

import io
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_transfer as ht


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Let a test fail that waits for a pipe or reads without end."""

    def give_up(*_: object) -> None:
        raise TimeoutError("no end after three minutes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Give the path that what is planted would make; it must never be there."""
    path = tmp_path / "EXECUTED"
    yield path
    assert not path.exists(), "something planted was executed"


@pytest.fixture
def pickles(marker: Path) -> dict[str, bytes]:
    """Give the same bomb as plain pickle, as torch and as numpy write it."""
    bomb, by_torch, by_numpy = Bomb(marker), io.BytesIO(), io.BytesIO()
    torch.save({"weight": bomb}, by_torch)
    np.save(by_numpy, np.array([bomb], dtype=object), allow_pickle=True)
    return {"pickle": pickle.dumps(bomb), "torch": by_torch.getvalue(), "numpy": by_numpy.getvalue()}


@pytest.fixture(scope="session")
def lora_run(tiny_bert: Path, topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a run of one LoRA cell; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    arms = {"lora": ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=1)}
    task = ht.TextClassification(max_length=32)
    ht.run(ht.Recipe("topics", task, ht.DataConfig(str(topics_folder)), str(tiny_bert), arms), output_dir=folder)
    return folder


@pytest.fixture
def adapter(lora_run: Path, tmp_path: Path) -> Path:
    """Give a copy of its model, to be changed, in a run folder as it came."""
    shutil.copytree(lora_run, tmp_path / "lora")
    return tmp_path / "lora/lora/budget-all/seed-0/model"
