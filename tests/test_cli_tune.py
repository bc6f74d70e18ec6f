"""`hf-transfer tune`, and the flags that change how an update is computed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import hf_transfer as ht
from hf_transfer import flags as flags_module
from hf_transfer.evidence import micro_batch_search
from tests.conftest import Run, refused, save_tiny_resnet


@pytest.fixture
def words(tiny_bert: Path, topics_folder: Path) -> list[object]:
    """Give the flags of a small run."""
    flags = ["--dataset", topics_folder, "--checkpoint", tiny_bert, "--max-length", 32, "--epochs", 1, "--budgets", 30]
    return [*flags, "--precision", "fp32", "--arms", "full"]


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make 256 tokens fastest, without a clock."""
    clock = SimpleNamespace(now=0.0)

    def accumulate(model: Any, reads: Any, plan: Any, *others: Any) -> float:
        clock.now += 1.0 if plan.max_tokens == 256 else 2.0
        return 0.0

    monkeypatch.setattr(micro_batch_search, "accumulate", accumulate)
    monkeypatch.setattr(micro_batch_search, "time", SimpleNamespace(perf_counter=lambda: clock.now))


@pytest.mark.usefixtures("fastest")
def test_what_is_written_reaches_a_run(run: Run, words: list[object]) -> None:
    code, out, err = run("tune", "text", *words)
    assert code == 0, err
    assert "256 tokens a micro-batch" in next(line for line in out.splitlines() if "<- best" in line)
    assert out.splitlines()[-1] == "written to tuned.yaml: run with --config tuned.yaml"
    assert [path.name for path in Path.cwd().iterdir()] == ["tuned.yaml"], "nothing else is written"
    assert yaml.safe_load(Path("tuned.yaml").read_text()) == {"training": {"micro_batch_tokens": 256}}
    code, _, err = run("run", "text", *words, "--config", "tuned.yaml", "--output-dir", "out")
    assert code == 0, err
    assert yaml.safe_load(Path("out/recipe.yaml").read_text())["training"]["micro_batch_tokens"] == 256
    code, _, err = run("run", "text", *words, "--output-dir", "plain")
    assert code == 0, err
    assert yaml.safe_load(Path("plain/recipe.yaml").read_text())["training"]["micro_batch_tokens"] == 1024


@pytest.mark.usefixtures("fastest")
def test_the_output_is_named_and_never_overwritten(run: Run, words: list[object], tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert run("tune", "text", *words, "--output", target)[0] == 0
    written = target.read_text()
    message = refused(run("tune", "text", *words, "--output", target))
    assert message == f"error: {target} is there already: name another with --output, or remove it"
    assert target.read_text() == written
    assert f"{tmp_path / 'gone'} is no folder" in refused(run("tune", "text", *words, "--output", tmp_path / "gone" / "x.yaml"))


def test_what_cannot_be_tuned_is_one_sentence(
    run: Run, words: list[object], photos_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resnet = save_tiny_resnet(tmp_path / "resnet")
    message = refused(run("tune", "image", "--dataset", photos_folder, "--checkpoint", resnet, "--arms", "full"))
    assert "arm full trains batch norms and takes each update at once: there is nothing to tune" in message
    assert "name a recipe" in refused(run("tune"))
    assert "unknown flag '--output-dir'" in refused(run("tune", "text", "--output-dir", "x"))
    assert "no arm 'ful'" in refused(run("tune", "text", *words[:-1], "ful"))
    monkeypatch.setattr(micro_batch_search, "make_accelerator", lambda precision: SimpleNamespace(num_processes=2))
    assert "tune measures one process, found 2: start it without accelerate launch" in refused(run("tune", "text", *words))


def test_flags_set_what_they_name_and_nothing_else() -> None:
    recipe = ht.load_recipe("newsgroups")
    parser = flags_module.Parser()
    flags_module.add_run_flags(parser, recipe)

    def training_with(*words: str) -> ht.TrainingConfig:
        return flags_module.apply_flags(recipe, parser.parse(list(words)), None).training

    assert training_with() == recipe.training
    assert (recipe.training.activation_checkpointing, recipe.training.compile) == (False, False)
    checkpointed = recipe.override({"training.activation_checkpointing": True})
    assert training_with("--activation-checkpointing") == checkpointed.training
    assert training_with("--compile") == recipe.override({"training.compile": True}).training
    kept = flags_module.apply_flags(checkpointed, parser.parse([]), None).training
    assert kept.activation_checkpointing, "a flag that is not given leaves the recipe's"


def test_a_flag_is_written_down_with_the_run(run: Run, words: list[object]) -> None:
    code, _, err = run("run", "text", *words, "--activation-checkpointing", "--output-dir", "out")
    assert code == 0, err
    training = yaml.safe_load(Path("out/recipe.yaml").read_text())["training"]
    assert (training["activation_checkpointing"], training["compile"]) == (True, False)
