"""A tracker is told numbers under their updates; one that fails costs no training."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from hf_transfer.errors import ConfigError, InstallationError
from hf_transfer.training import tracking
from hf_transfer.training.tracking import check_tracker, named, tracked


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read a TensorBoard run back -> name -> (update, value) pairs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.fixture(autouse=True)
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_no_tracker_lends_nothing(tmp_path: Path) -> None:
    with tracked(None, "topics", "lora/budget-all/seed-0", {}, tmp_path) as log:
        assert log is None
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_what_it_was_told(tmp_path: Path) -> None:
    settings = {"arm": {"learning_rate": 1e-3, "num_blocks": None, "lora": {"target_modules": ["q", "v"]}}}
    with tracked("tensorboard", "topics", "lora/budget-all/seed-0", settings, tmp_path) as log:
        assert log is not None
        log(10, {"train/update_loss": 0.5})
        log(12, named("validation", {"loss": 0.25, "loss_standard_error": None, "accuracy": 1}))
    run = tmp_path / "lora" / "budget-all" / "seed-0"
    assert scalars(run) == {"train/update_loss": [(10, 0.5)], "validation/loss": [(12, 0.25)], "validation/accuracy": [(12, 1.0)]}
    (written,) = run.glob("*/hparams.yml")
    assert written.read_text().splitlines() == [
        "arm.learning_rate: 0.001",
        "arm.lora.target_modules: '[''q'', ''v'']'",
        "arm.num_blocks: None",
    ]


def test_a_training_done_again_is_not_drawn_over_the_one_before(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with tracked("tensorboard", "topics", "lora/budget-all/seed-0", {}, tmp_path) as log:
            assert log is not None
            log(10, {"train/update_loss": value})
    assert scalars(tmp_path / "lora" / "budget-all" / "seed-0") == {"train/update_loss": [(10, 2.0)]}


class Failing(tracking.GeneralTracker):
    """Fails in one of its methods, and counts what it is asked."""

    name = "failing"
    requires_logging_directory = False
    tracker = None

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.asked: list[str] = []

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        print("something for a person")
        if what == self.where:
            raise ConnectionError("https://me:hush@server\nis gone")

    def start(self) -> None:
        self._ask("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._ask("settings")

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self._ask("log")

    def finish(self) -> None:
        self._ask("finish")


@pytest.mark.parametrize(
    ("where", "asked"),
    [
        ("start", ["start"]),
        ("settings", ["start", "settings", "finish"]),
        ("log", ["start", "settings", "log", "finish"]),
        ("finish", ["start", "settings", "log", "log", "finish"]),
    ],
)
def test_a_tracker_that_fails_is_told_of_once_and_left(
    where: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing(where)
    monkeypatch.setattr(tracking, "_open", lambda *arguments: failing)
    with tracked("wandb", "topics", "lora/budget-all/seed-0", {}, tmp_path) as log:
        assert log is not None
        log(1, {"train/update_loss": math.pi})
        log(2, {"train/update_loss": math.pi})
    assert failing.asked == asked
    printed = capsys.readouterr()
    assert (
        printed.err.count(
            "note: lora/budget-all/seed-0 is not tracked any more, wandb failed: ConnectionError: https://me:***@server is gone\n"
        )
        == 1
    )
    assert printed.out == "", "standard output holds the comparison"


def test_a_tracker_is_closed_after_a_training_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Failing("nowhere")
    monkeypatch.setattr(tracking, "_open", lambda *arguments: whole)
    with pytest.raises(KeyboardInterrupt):
        with tracked("mlflow", "topics", "lora/budget-all/seed-0", {}, tmp_path):
            raise KeyboardInterrupt
    assert whole.asked == ["start", "settings", "finish"]


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("tensorboard")
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="^tracker trackio is not installed: pip install trackio$"):
        check_tracker("trackio")


@pytest.mark.parametrize(("mode", "known", "refused"), [("online", False, True), ("online", True, False), ("offline", False, False)])
def test_wandb_is_asked_who_is_there_before_any_training(
    mode: str, known: bool, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text(
        "from types import SimpleNamespace\n"
        f"def setup(): return SimpleNamespace(settings=SimpleNamespace(mode={mode!r}))\n"
        f"def login(prompt): assert not prompt; return {known}\n"
        "class Error(Exception): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if refused:
        with pytest.raises(ConfigError, match="wandb does not know you: run `wandb login`, or set WANDB_MODE=offline"):
            check_tracker("wandb")
    else:
        check_tracker("wandb")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
