"""A run that is told to end: by a signal, by its clock, on several processes, with workers; and what may have changed when it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

import hf_transfer as ht
from hf_transfer.errors import ConfigError, Interrupted, RunFolderError, TransferError
from hf_transfer.evidence import resume
from hf_transfer.training import loop
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.stopping import Stopping
from tests.conftest import Run, make_rows, save_tiny_bert, write_csv
from tests.evidence.conftest import finished, stamps, untimed, wait_for

GO_ON = "; --resume goes on from what was finished and saved"
ASKED: dict[str, Any] = {"arms": ["scratch"], "budgets": [30], "seeds": [0]}
FLAGS = ["--arms", "scratch", "--budgets", "30", "--seeds", "0"]


@pytest.fixture(scope="module")
def long_recipe(topics_recipe: ht.Recipe) -> ht.Recipe:
    """Give a recipe whose training takes seconds."""
    return topics_recipe.override({"arms.scratch.num_epochs": 150, "arms.full.num_epochs": 150, "training.save_every": 40})


@pytest.fixture(scope="module")
def unbroken(long_recipe: ht.Recipe, tmp_path_factory: pytest.TempPathFactory) -> ht.Comparison:
    return ht.run(long_recipe, output_dir=tmp_path_factory.mktemp("unbroken") / "run", **ASKED)


@pytest.fixture
def asked(long_recipe: ht.Recipe, tmp_path: Path) -> Path:
    """Give the file that asks for that run."""
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(long_recipe.to_dict() | {"run": ASKED}))
    return path


@pytest.fixture
def begin(asked: Path, background: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Give a function that starts that run as a process of its own."""
    return lambda folder, *flags: background(folder, "--config", asked, *flags)


def has_state(run: Path) -> list[Path]:
    return list(run.glob("*/*/*/state/update-*.safetensors"))


def assert_same(run: Path, unbroken: ht.Comparison) -> list[int]:
    """Check that a run found what the unbroken one did, to the bit -> the updates it went on behind."""
    assert untimed(json.loads((run / "comparison.json").read_text())) == untimed(unbroken.values)
    (cell,) = finished(run)
    for name in ("model/model.safetensors", "predictions.parquet"):
        assert (cell / name).read_bytes() == (finished(unbroken.folder)[0] / name).read_bytes()
    return json.loads((cell / "result.json").read_text())["resumed_from"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(
    begin: Callable[..., subprocess.Popen[str]], unbroken: ht.Comparison, run: Run, tmp_path: Path, how: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = begin(folder)
    wait_for(lambda: has_state(folder), process)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"\ninterrupted ({how.name}): ending behind this update; Ctrl-C ends at once\n" in err
    last = err.splitlines()[-1]
    assert last.startswith(f"interrupted ({how.name}): scratch  budget 30  seed 0 ended behind update ") and last.endswith(
        f" of 450, its state saved{GO_ON}"
    )
    assert "Traceback" not in err and not (folder / "comparison.json").exists() and not finished(folder)
    stopped = int(last.split("ended behind update ")[1].split()[0])

    code, _, err = run("run", "--output-dir", folder, "--resume")
    assert code == 0
    assert f"scratch  budget 30  seed 0: going on behind update {stopped} of 450" in err
    assert assert_same(folder, unbroken) == [stopped]
    assert not list(folder.rglob("state"))


def test_a_ctrl_c_that_ends_who_reads_its_messages_saves_too(begin: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """As of `hf-transfer run ... 2>&1 | tee log` in a terminal."""
    folder = tmp_path / "run"
    process = begin(folder)
    wait_for(lambda: has_state(folder), process)
    assert process.stderr is not None
    process.stderr.close()
    process.stderr = None
    # Long enough that an epoch ends, which nobody is told of.
    before = has_state(folder)
    wait_for(lambda: set(has_state(folder)) - set(before), process)
    states = has_state(folder)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert set(has_state(folder)) - set(states), "the state behind the update that was ended"


def test_an_alarm_of_the_callers_own_rings() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with Stopping(max_minutes=1):
            time.sleep(0.1)
        assert not rung
        time.sleep(0.4)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_second_ctrl_c_stops_at_once(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a training whose updates never end."""
    stuck = tmp_path / "stuck"
    stuck.mkdir()
    (stuck / "sitecustomize.py").write_text(
        "import time\nfrom hf_transfer.training import loop\n"
        "def never(*arguments):\n    print('stuck', file=__import__('sys').stderr, flush=True)\n    time.sleep(1000)\n"
        "loop.accumulate = never\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(stuck))
    process = begin(tmp_path / "run")
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    while "stuck" not in lines[-1]:
        assert lines[-1], lines
        lines.append(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    while "Ctrl-C ends at once" not in lines[-1]:
        lines.append(process.stderr.readline())
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 15
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted (SIGINT): ended at once; what was finished or saved before stays{GO_ON}"


def test_a_signal_before_any_training_ends_the_run_at_once(long_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_transfer.evidence import study

    load = study.load_source

    def terminated(*arguments: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*arguments, **settings)

    monkeypatch.setattr(study, "load_source", terminated)
    with pytest.raises(Interrupted, match=r"interrupted \(SIGTERM\): ended at once"):
        ht.run(long_recipe, output_dir=tmp_path / "run", **ASKED)
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers of before are back"
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_the_clock_saves_and_stops_and_several_legs_are_one_run(
    long_recipe: ht.Recipe, unbroken: ht.Comparison, run: Run, asked: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    legs = 0
    while True:
        legs += 1
        assert legs < 60
        code, _, err = run("run", "--config", asked, "--output-dir", folder, "--resume", "--max-minutes", 2.2 / 60)
        if code == 0:
            break
        assert code == 130
        assert "out of its 0.0366667 minutes: " in err.splitlines()[-1]
        assert err.splitlines()[-1].endswith(GO_ON)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert legs > 1 and len(assert_same(folder, unbroken)) <= legs - 1


def test_readers_serve_the_update_that_is_being_ended(
    tiny_vit: Path, photos_folder: Path, background: Callable[..., subprocess.Popen[str]], run: Run, tmp_path: Path
) -> None:
    """A batch system tells all processes of a job at once, those that read ahead, too."""
    recipe = ht.Recipe(
        name="photos",
        task=ht.ImageClassification(augmentation=ht.Augmentation(crop_scale=0.6)),
        data=ht.DataConfig(str(photos_folder)),
        checkpoint=str(tiny_vit),
        arms={"full": ht.Arm(learning_rate=1e-3, num_epochs=200)},
        training=ht.TrainingConfig(batch_size=8, num_workers=2, save_every=5),
    )
    config, folder = tmp_path / "photos.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(recipe.to_dict() | {"run": ASKED | {"arms": ["full"], "budgets": ["all"]}}))
    process = background(folder, "--config", config)
    wait_for(lambda: has_state(folder), process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.count("ending behind this update") == 1 and "its state saved" in err and "Traceback" not in err, err
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.killpg(process.pid, 0)  # None of them is left.
            time.sleep(0.1)


def test_a_damaged_state_is_told_of_and_the_one_before_it_ends_the_same(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ht.load_recipe(str(begun / "asked.yaml"))
    found = []
    for damage in (False, True):
        folder = shutil.copytree(begun / "run", tmp_path / str(damage))
        if damage:
            newest = max(has_state(folder), key=lambda path: int(path.name.split(".")[0].removeprefix("update-")))
            newest.write_bytes(newest.read_bytes()[:-100])
        ht.run(recipe, output_dir=folder, resume=True)
        (cell,) = finished(folder)
        found.append(((cell / "model/model.safetensors").read_bytes(), json.loads((cell / "result.json").read_text())["resumed_from"]))
    assert [resumed for _, resumed in found] == [[50], [40]]
    assert found[0][0] == found[1][0]
    assert f"note: {newest} is damaged" in capsys.readouterr().err


def test_a_run_in_another_thread_is_ended_by_its_clock(long_recipe: ht.Recipe, tmp_path: Path) -> None:
    """Where no signal is handed to."""
    import threading

    found: list[BaseException] = []

    def work() -> None:
        try:
            ht.run(long_recipe, output_dir=tmp_path / "run", max_minutes=1e-3, **ASKED)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert isinstance(found[0], Interrupted) and "out of its 0.001 minutes: " in str(found[0])


def test_workers_save_and_stop_with_the_run(
    begin: Callable[..., subprocess.Popen[str]], unbroken: ht.Comparison, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = begin(folder, "--parallel", 2, "--arms", "scratch", "full")
    wait_for(lambda: len({path.parts[-5] for path in has_state(folder)}) == 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == f"interrupted (SIGTERM): the trainings that were begun are saved{GO_ON}"
    assert not list(folder.rglob("failure.json"))
    assert len(has_state(folder)) >= 2
    code, _, err = run("run", "--output-dir", folder, "--resume", "--parallel", 2)
    assert code == 0, err
    for cell in finished(folder):
        assert len(json.loads((cell / "result.json").read_text())["resumed_from"]) == 1
    (same,) = finished(unbroken.folder)
    weights = folder / "scratch/budget-30/seed-0/model/model.safetensors"
    assert weights.read_bytes() == (same / "model/model.safetensors").read_bytes()


def test_a_worker_that_is_told_to_end_alone_fails_its_cell_and_keeps_its_state(
    begin: Callable[..., subprocess.Popen[str]], unbroken: ht.Comparison, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = begin(folder, "--parallel", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("the system does not list a process's children")
    wait_for(lambda: has_state(folder), process)
    for child in children.read_text().split():
        if b"hf_transfer.evidence.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 2, err
    failure = json.loads((folder / "scratch/budget-30/seed-0/failure.json").read_text())
    assert failure["error"].startswith(
        "the process that trained it was interrupted (SIGTERM): scratch  budget 30  seed 0 ended behind update"
    )
    assert run("run", "--output-dir", folder, "--resume")[0] == 0
    assert len(assert_same(folder, unbroken)) == 1


def launched(config: Path, folder: Path, tmp_path: Path, *flags: str, processes: int = 2) -> subprocess.Popen[str]:
    """Start the run under a launcher."""
    script = tmp_path / "train.py"
    script.write_text(f"import hf_transfer as ht\n\nht.main(ht.load_recipe({str(config)!r}))\n")
    launch = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", str(processes)]
    launch += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, str(script), "--output-dir", str(folder), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_two_processes_save_and_stop_together(asked: Path, run: Run, tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = launched(asked, folder, tmp_path, *FLAGS)
    wait_for(lambda: has_state(folder), process)
    if how == signal.SIGINT:
        # A terminal tells all of them, and the launcher tells its processes once more.
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, err = process.communicate(timeout=90)
    assert process.returncode != 0
    assert f"interrupted ({how.name}): scratch  budget 30  seed 0 ended behind update " in err
    assert err.count(f", its state saved{GO_ON}") == 1
    assert not finished(folder) and len(has_state(folder)) in (1, 2)
    assert run("run", "--output-dir", folder, "--resume")[0] == 0
    (cell,) = finished(folder)
    assert len(json.loads((cell / "result.json").read_text())["resumed_from"]) == 1


@pytest.mark.parametrize(("first", "second"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_another_number_of_processes_goes_on_to_rounding(
    long_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    """21 updates, the last of each epoch of 24 rows full; without dropout, whose masks follow the micro-batches."""
    recipe = long_recipe.override({"arms.scratch.num_epochs": 7, "training.dropout": 0})
    config = tmp_path / "asked.yaml"
    config.write_text(yaml.safe_dump(recipe.to_dict() | {"run": ASKED}))
    whole = ht.run(recipe, output_dir=tmp_path / "whole", **ASKED)
    early = tmp_path / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text(
        "from hf_transfer.training.stopping import Stopping\nlooks = []\n"
        "Stopping.is_asked = property(lambda self: looks.append(1) or len(looks) > 10)\n"
    )
    folder = tmp_path / "run"
    for processes, path in ((first, str(early)), (second, "")):
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", path)
            process = launched(config, folder, tmp_path, *FLAGS, "--resume", processes=processes)
            _, err = process.communicate(timeout=120)
        assert ("ended behind update 10 of 21, its state saved" in err) == (path != ""), err
    (cell,), (expected,) = finished(folder), finished(whole.folder)
    result = json.loads((cell / "result.json").read_text())
    assert (result["resumed_from"], result["environment"]["num_processes"]) == ([10], second)
    found, wanted = (load_file(path / "model/model.safetensors") for path in (cell, expected))
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    found_rows, wanted_rows = (pq.read_table(path / "predictions.parquet").to_pydict() for path in (cell, expected))
    assert found_rows["row_id"] == wanted_rows["row_id"]
    assert np.abs(np.array(found_rows["probabilities"]) - np.array(wanted_rows["probabilities"])).max() < 1e-5


@pytest.fixture(scope="module")
def begun(long_recipe: ht.Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the data, the checkpoint and a run that was told to end in its training."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(long_recipe.data.source or "", folder / "topics")
    save_tiny_bert(folder / "bert")
    recipe = long_recipe.override({"data.source": str(folder / "topics"), "checkpoint": str(folder / "bert")})
    (folder / "asked.yaml").write_text(yaml.safe_dump(recipe.to_dict() | {"run": ASKED | {"arms": ["full"]}}))
    with pytest.MonkeyPatch.context() as patch:
        looks: list[int] = []
        patch.setattr(Stopping, "is_asked", property(lambda self: looks.append(1) or len(looks) > 50))
        with pytest.raises(Interrupted):
            ht.run(recipe, arms=["full"], budgets=[30], output_dir=folder / "run")
    assert has_state(folder / "run")
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.batch_size": 4}, "training.batch_size: the run has 8, asked for 4"),
        ({"arms.full.learning_rate": 0.5}, "arms.full.learning_rate: the run has 0.002, asked for 0.5"),
        ({"task.max_length": 32}, "task.max_length: the run has 48, asked for 32"),
        ("data", "the data changed since full/budget-30/seed-0 was begun"),
        ("checkpoint", "changed since full/budget-30/seed-0 was begun: bring it back, or name another folder"),
        ("config.json", "the config, tokenizer or image processor of checkpoint "),
        ("tokenizer.json", "the config, tokenizer or image processor of checkpoint "),
    ],
)
def test_what_changed_since_a_training_was_begun_is_named(begun: Path, changes: Any, message: str, tmp_path: Path) -> None:
    recipe = ht.load_recipe(str(begun / "asked.yaml"))
    moved = shutil.copytree(begun, tmp_path / "begun")
    if changes == "data":
        rows = (begun / "topics/train.csv").read_text().splitlines()
        (begun / "topics/train.csv").write_text("\n".join([rows[0], *rows[2:], rows[1].replace("a", "o", 1)]))
    elif changes == "checkpoint":
        shutil.rmtree(begun / "bert")
        save_tiny_bert(begun / "bert", initializer_range=0.5)
    elif changes == "config.json":
        path = begun / "bert" / changes
        path.write_text(path.read_text().replace('"gelu"', '"relu"'))
    elif changes == "tokenizer.json":
        path = begun / "bert" / changes
        vocabulary = json.loads(path.read_text())
        words = vocabulary["model"]["vocab"]
        first, second = list(words)[-2:]
        words[first], words[second] = words[second], words[first]
        path.write_text(json.dumps(vocabulary))
    else:
        recipe = recipe.override(changes)
    before = stamps(begun / "run")
    try:
        with pytest.raises((ConfigError, RunFolderError)) as refusal:
            ht.run(recipe, output_dir=begun / "run", resume=True)
        assert message in str(refusal.value)
        assert stamps(begun / "run") == before
    finally:
        shutil.rmtree(begun)
        shutil.copytree(moved, begun)


def test_how_updates_are_computed_and_saved_may_change(begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun / "run", tmp_path / "run")
    changes = {"training.micro_batch_tokens": 64, "training.save_every": None, "training.save_minutes": 1, "training.num_workers": 0}
    ht.run(ht.load_recipe(str(begun / "asked.yaml")).override(changes), output_dir=folder, resume=True)
    (cell,) = finished(folder)
    assert json.loads((cell / "result.json").read_text())["resumed_from"] == [50]


def test_a_training_that_goes_on_elsewhere_is_told_of(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precision "auto" may come to another on another machine, too."""
    folder = shutil.copytree(begun / "run", tmp_path / "run")
    describe = resume.describe_environment
    before = describe(make_accelerator("fp32"))["torch"]
    monkeypatch.setattr(resume, "describe_environment", lambda accelerator: describe(accelerator) | {"torch": "0.4"})
    ht.run(ht.load_recipe(str(begun / "asked.yaml")), output_dir=folder, resume=True)
    assert f"note: trainings begun before with torch {before} go on with 0.4: each is a mixture" in capsys.readouterr().err


def test_a_failed_training_is_tried_anew_with_other_settings(begun: Path, tmp_path: Path) -> None:
    """Its state belongs to the settings that failed; with the same ones it goes on from there."""
    for rate, resumed in ((0.002, [50]), (0.001, [])):
        folder = shutil.copytree(begun / "run", tmp_path / str(rate))
        (folder / "full/budget-30/seed-0/failure.json").write_text(json.dumps({"error": "memory does not suffice"}))
        recipe = ht.load_recipe(str(begun / "asked.yaml")).override({"arms.full.learning_rate": rate})
        ht.run(recipe, output_dir=folder, resume=True)
        (cell,) = finished(folder)
        assert json.loads((cell / "result.json").read_text())["resumed_from"] == resumed
        assert not (cell / "failure.json").exists()


def test_a_training_that_diverges_keeps_its_best_state_as_a_model(
    topics_recipe: ht.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    write_csv(tmp_path / "rows.csv", make_rows(420))
    recipe = topics_recipe.override({"data.source": str(tmp_path / "rows.csv")})
    accumulate = loop.accumulate
    monkeypatch.setattr(loop, "accumulate", lambda *given: float("nan") if given[3] == 50 else accumulate(*given))
    with pytest.raises(TransferError, match=r"no training of the run could be finished"):
        ht.run(recipe, arms=["full"], budgets=[300], output_dir=tmp_path / "run")
    cell = tmp_path / "run/full/budget-300/seed-0"
    assert sorted(path.name for path in cell.iterdir()) == ["failure.json", "model"]
    error = json.loads((cell / "failure.json").read_text())["error"]
    assert error.startswith("the loss of update 51 of 60 (epoch 2) is no finite number, over its rows (")
    assert "its best state (epoch 1, validation loss " in error
    monkeypatch.undo()
    predicted = ht.load(cell).predict([row["text"] for row in make_rows(5, seed=3)])
    assert all(0 <= answer["score"] <= 1 for answer in predicted)


def test_the_flags_are_checked(run: Run, topics_recipe: ht.Recipe, tmp_path: Path) -> None:
    for words, message in (
        (["--max-minutes", "0"], "max_minutes must be a number above 0, found 0.0"),
        (["--max-minutes", "nan"], "max_minutes must be a number above 0, found nan"),
        (["--save-every", "0"], "training.save_every"),
        (["--save-minutes", "-1"], "training.save_minutes"),
    ):
        code, _, err = run("run", "newsgroups", "--embedded", "--output-dir", tmp_path / "run", *words)
        assert code == 2 and message in err
    for wrong in ("5", True, float("inf")):
        with pytest.raises(ConfigError, match="max_minutes must be a number above 0"):
            ht.run(topics_recipe, max_minutes=wrong, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
