"""Saved states: whole or noticed, the last two, only what moves; a training that goes on from one finds the same bits."""

import errno
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hf_transfer.errors import Interrupted, RunFolderError
from hf_transfer.training import state as states
from hf_transfer.training.optimization import build_optimizer
from hf_transfer.training.state import (
    Saving,
    State,
    gather_state,
    origin_of,
    read_state,
    restore_state,
    resumed_from,
    state_files,
    write_state,
)
from hf_transfer.training.stopping import Stopping
from tests.training.test_loop import RATE, build, data, fit, weights_of  # noqa: F401


def made(updates: int) -> State:
    """Give a small state that another number of updates makes another one."""
    return State({"updates": updates, "third": 1 / 3, "origin": {"data": "abc"}}, {"trained/weight": torch.full((3, 2), float(updates))})


def test_a_state_comes_back_bit_by_bit_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for updates in (9, 10, 120):
        write_state(tmp_path / "state", made(updates))
    assert [path.name.split(".")[0] for path in state_files(tmp_path / "state")] == ["update-10", "update-120"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == sorted(path.name for path in state_files(tmp_path / "state"))
    found = read_state(tmp_path / "state")
    assert found is not None
    assert found.values == made(120).values, "1/3 to its last bit, too"
    assert torch.equal(found.tensors["trained/weight"], made(120).tensors["trained/weight"])
    assert origin_of(tmp_path / "state") == {"data": "abc"}
    assert read_state(tmp_path / "nothing") is None and origin_of(tmp_path / "nothing") is None


@pytest.mark.parametrize("place", ["first", "header", "tensors", "last", "cut", "empty"])
def test_a_damaged_state_is_told_of_and_the_one_before_is_read(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    for updates in (10, 20):
        write_state(tmp_path, made(updates))
    newest = state_files(tmp_path)[-1]
    whole = bytearray(newest.read_bytes())
    position = {"first": 0, "header": whole.index(b"third") + 9, "tensors": len(whole) - 5, "last": len(whole) - 1}.get(place)
    if position is not None:
        whole[position] ^= 1
    newest.write_bytes(whole[:-7] if place == "cut" else b"" if place == "empty" else whole)
    found = read_state(tmp_path)
    assert found is not None and found.values["updates"] == 10
    assert f"note: {newest} is damaged" in capsys.readouterr().err
    # The next one finds two whole ones to keep.
    write_state(tmp_path, made(30))
    assert [path.name.split(".")[0] for path in state_files(tmp_path)] == ["update-10", "update-30"]
    for path in state_files(tmp_path):
        path.write_bytes(b"")
    assert read_state(tmp_path) is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, made(10))

    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_file", "move_into_place"):
        with monkeypatch.context() as patch:
            patch.setattr(states, name, full)
            with pytest.raises(RunFolderError, match="No space left on device"):
                write_state(tmp_path, made(20))
        assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["update-10"]


class Ending(Stopping):
    """Asks a training to end behind some updates."""

    def __init__(self, behind: set[int]) -> None:
        super().__init__()
        self._looks, self._behind = 0, behind

    @property
    def is_asked(self) -> bool:
        self._looks += 1
        return self._looks in self._behind


def improving(losses: list[float]) -> Any:
    """Give a validation whose losses are these, in order, from wherever a training goes on."""
    left = iter(losses)
    return lambda model: {"loss": next(left)}


@pytest.mark.parametrize("arm", [{}, {"tuning": "lora"}, {"tuning": "head"}])
@pytest.mark.parametrize("stop", [1, 7, 10, 13, 19, 20])
def test_a_training_that_ends_anywhere_goes_on_to_the_same_bits(
    tiny_bert: Path,
    data: Any,  # noqa: F811
    tmp_path: Path,
    arm: dict[str, Any],
    stop: int,
) -> None:
    """20 updates in two epochs, dropout on, several micro-batches an update; the best state is that of the first epoch."""
    losses = [0.5, 0.7]
    whole = build(tiny_bert, dropout=0.1, **arm)
    expected = fit(whole, data, validate=improving(losses))
    assert expected.best_epoch == 1

    first = build(tiny_bert, dropout=0.1, **arm)
    saving = Saving(tmp_path, {"data": "abc"})
    with pytest.raises(Interrupted, match=rf"training ended behind update {stop} of 20, its state saved"):
        fit(first, data, validate=improving(losses), saving=saving, stopping=Ending({stop}))
    second = build(tiny_bert, dropout=0.1, seed=1, **arm) if not arm else build(tiny_bert, dropout=0.1, **arm)
    done = fit(second, data, validate=improving(losses[stop // 10 :]), saving=Saving(tmp_path, {"data": "abc"}))
    for name, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(second)[name]), name
    assert (done.history, done.best_epoch) == (expected.history, expected.best_epoch)
    assert (done.updates, done.rows_seen, done.tokens_seen) == (expected.updates, expected.rows_seen, expected.tokens_seen)
    assert resumed_from(tmp_path) == [stop]


def test_early_stopping_counts_across_a_resume(tiny_bert: Path, data: Any, tmp_path: Path) -> None:  # noqa: F811
    losses = [0.5, 0.7, 0.6, 0.65, 0.9]
    expected = fit(build(tiny_bert), data, epochs=5, validate=improving(losses), patience=3)
    assert (expected.stopped, expected.updates, expected.best_epoch) == ("early", 40, 1)
    for stop, left in ((25, losses[2:]), (39, losses[3:]), (40, [])):
        folder = tmp_path / str(stop)
        with pytest.raises(Interrupted):
            fit(
                build(tiny_bert),
                data,
                epochs=5,
                validate=improving(losses),
                patience=3,
                saving=Saving(folder, {}),
                stopping=Ending({stop}),
            )
        done = fit(build(tiny_bert), data, epochs=5, validate=improving(left), patience=3, saving=Saving(folder, {}))
        assert (done.stopped, done.updates, done.best_epoch, done.history) == ("early", 40, 1, expected.history)


def test_a_state_holds_what_moves_and_no_more(tiny_bert: Path, data: Any, tmp_path: Path) -> None:  # noqa: F811
    for name, arm in {"full": {}, "lora": {"tuning": "lora"}, "head": {"tuning": "head"}}.items():
        model = build(tiny_bert, **arm)
        fit(model, data, validate=improving([0.5, 0.4]), saving=Saving(tmp_path / name, {}, every=7))
        assert [path.name.split(".")[0] for path in state_files(tmp_path / name)] == ["update-7", "update-14"]
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        with safe_open(state_files(tmp_path / name)[-1], "pt") as file:
            held = {key.partition("/")[0]: set() for key in file.keys()}  # noqa: SIM118
            for key in file.keys():  # noqa: SIM118
                held[key.partition("/")[0]].add(key.partition("/")[2])
        assert held == dict.fromkeys(["trained", "best", "exp_avg", "exp_avg_sq", "step"], trainable)


def test_a_clock_and_the_end_of_a_long_training_save_too(
    tiny_bert: Path,
    data: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock on which an update takes 20 seconds."""
    clock = itertools.count(time.monotonic(), 20.0)
    monkeypatch.setattr(states.time, "monotonic", lambda: next(clock))
    written, write = [], states.write_state

    def note(folder: Path, state: State) -> None:
        written.append(state.values["updates"])
        write(folder, state)

    monkeypatch.setattr(states, "write_state", note)
    fit(build(tiny_bert), data, saving=Saving(tmp_path / "minutes", {}, minutes=2.5))
    assert written == [9, 17, 20], "every 150 seconds, and at the end of a training of more than half a minute since"
    monkeypatch.undo()
    fit(build(tiny_bert), data, saving=Saving(tmp_path / "short", {}, minutes=2))
    assert state_files(tmp_path / "short") == [], "a training of a second is trained again sooner than it is saved"


def test_a_disk_that_is_full_does_not_stop_a_training_but_its_end(
    tiny_bert: Path,
    data: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states, "save_file", full)
    assert fit(build(tiny_bert), data, saving=Saving(tmp_path, {}, every=10)).updates == 20
    assert capsys.readouterr().err.count("is not saved: ") == 2
    with pytest.raises(RunFolderError, match="No space left on device"):
        fit(build(tiny_bert), data, saving=Saving(tmp_path, {}), stopping=Ending({3}))


def test_a_state_of_another_model_is_refused(tiny_bert: Path, data: Any, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(Interrupted):
        fit(build(tiny_bert), data, saving=Saving(tmp_path, {}), stopping=Ending({3}))
    with pytest.raises(RunFolderError, match="is of another model than this arm trains here"):
        fit(build(tiny_bert, tuning="head"), data, saving=Saving(tmp_path, {}))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_and_batch_norms_go_on_where_they_were(name: str) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        return model, build_optimizer(model, name, RATE, 0.01)

    def moved(model: nn.Module) -> dict[str, torch.Tensor]:
        return dict(model.named_parameters()) | dict(model.named_buffers())

    model, optimizer = begin()
    for seed in range(3):
        step(model, optimizer, seed)
    kept = gather_state({}, moved(model), {}, optimizer)
    kept = State(kept.values, {key: tensor.clone() for key, tensor in kept.tensors.items()})
    for seed in range(3, 6):
        step(model, optimizer, seed)
    other, other_optimizer = begin()
    assert restore_state(kept, moved(other), other_optimizer) == {}
    for seed in range(3, 6):
        step(other, other_optimizer, seed)
    for key, tensor in moved(model).items():
        assert torch.equal(tensor, moved(other)[key]), key


def test_halved_micro_batches_stay_halved(tiny_bert: Path, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from hf_transfer.training import loop

    accumulate, calls = loop.accumulate, []

    def out_of_memory_once(*arguments: Any) -> float | None:
        calls.append(arguments[2].max_tokens)
        return None if len(calls) == 3 else accumulate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", out_of_memory_once)
        with pytest.raises(Interrupted):
            fit(build(tiny_bert), data, saving=Saving(tmp_path, {}), stopping=Ending({5}))
    halved = calls[3]
    assert calls[:4] == [128, 128, 128, halved] and halved < 128
    calls.clear()
    monkeypatch.setattr(loop, "accumulate", lambda *arguments: calls.append(arguments[2].max_tokens) or accumulate(*arguments))
    done = fit(build(tiny_bert), data, saving=Saving(tmp_path, {}))
    assert set(calls) == {halved} and done.out_of_memory == [{"update": 3, "micro_batch_tokens": halved}]
