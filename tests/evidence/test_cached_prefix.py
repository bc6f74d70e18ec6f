"""Arms that read their frozen prefix from the cache: the same weights and answers, computed once, and never from what does not fit."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import hf_transfer as ht
from hf_transfer.data import array_store
from hf_transfer.errors import ConfigError
from hf_transfer.evaluation.prediction import predict_logits
from hf_transfer.evidence import cached_prefix
from hf_transfer.evidence.arms import build_arm
from hf_transfer.evidence.cached_prefix import reading_cached
from hf_transfer.evidence.study import Rows, Study, prepare_study
from hf_transfer.files import cache_folder, cache_limit_bytes
from hf_transfer.models.prefix import PREFIX
from hf_transfer.tasks.items import TextWindow
from hf_transfer.training.device import make_accelerator
from tests.conftest import save_tiny_bert, save_tiny_resnet, write_jsonl

ARMS = {
    "head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=2),
    "top": ht.Arm(tuning="top", num_blocks=1, learning_rate=2e-3, num_epochs=2),
}
KINDS = ["text", "names", "vit", "resnet", "sentences"]


@pytest.fixture(scope="module")
def recipes(
    tiny_bert: Path,
    tiny_vit: Path,
    topics_folder: Path,
    names_folder: Path,
    photos_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, ht.Recipe]:
    """Give a recipe of each task; long sentences are read in windows, one image backbone is a CNN, one text's takes the mean."""
    resnet = save_tiny_resnet(tmp_path_factory.mktemp("checkpoints") / "resnet")
    encoder = save_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "sentences")
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}')
    cases: dict[str, tuple[Any, Path, Path]] = {
        "text": (ht.TextClassification(max_length=48), topics_folder, tiny_bert),
        "sentences": (ht.TextClassification(max_length=48), topics_folder, encoder),
        "names": (ht.TokenClassification(max_length=12), names_folder, tiny_bert),
        "vit": (ht.ImageClassification(), photos_folder, tiny_vit),
        "resnet": (ht.ImageClassification(), photos_folder, resnet),
    }
    return {
        kind: ht.Recipe(
            name=kind,
            task=task,
            data=ht.DataConfig(str(data)),
            checkpoint=str(checkpoint),
            arms=ARMS,
            training=ht.TrainingConfig(batch_size=8, precision="fp32", dropout=0.0, num_workers=0),
        )
        for kind, (task, data, checkpoint) in cases.items()
    }


@pytest.fixture
def studies(recipes: dict[str, ht.Recipe]) -> Iterator[Any]:
    """Give a function that prepares a study of a kind, its recipe changed."""

    def prepare(kind: str = "text", **changes: Any) -> Study:
        recipe = recipes[kind].override({name.replace("__", "."): value for name, value in changes.items()})
        return prepare_study(recipe, list(ARMS), ["all"], [0], make_accelerator(recipe.training.precision))

    yield prepare
    make_accelerator("fp32")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def logits_of(study: Study, model: torch.nn.Module, rows: Rows, accelerator: Accelerator) -> np.ndarray:
    return predict_logits(model, rows.layout, study.collate, study.task.item_logits, study.max_tokens, accelerator)


def read_both(study: Study, arm: str = "head", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give the test rows' logits, read from the cache and plain."""
    model = build_arm(study.architecture, ARMS[arm], seed, study.task.PEFT_TASK_TYPE)
    plain = logits_of(study, model, study.test, study.accelerator)
    with reading_cached(study, model, ARMS[arm], [study.train, study.test], "title") as reading:
        reader, rows, seconds = reading.study, reading.rows, reading.seconds
        assert reading.frozen_blocks == "cached"
        assert reader is not study, "the cache is read"
        assert seconds > 0
        cached = logits_of(reader, model, rows[1], study.accelerator)
    assert np.array_equal(logits_of(study, model, study.test, study.accelerator), plain)
    return cached, plain


def cell(run: Path, arm: str, seed: int = 0, budget: object = "all") -> Path:
    return run / arm / f"budget-{budget}" / f"seed-{seed}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("kind", ["text", "names", "vit"])
def test_a_run_finds_the_same_with_the_cache_and_without(
    recipes: dict[str, ht.Recipe],
    kind: str,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipes[kind]
    ht.run(recipe, list(ARMS), seeds=[0], output_dir=tmp_path / "first")
    assert "because" not in capsys.readouterr().err
    filled = files(cache)
    assert len(filled) == 2, "a cut each"
    ht.run(recipe, list(ARMS), output_dir=tmp_path / "again")
    ht.run(recipe, list(ARMS), seeds=[1], budgets=[30], output_dir=tmp_path / "other")
    assert files(cache) == filled, "neither a second run nor another seed or a smaller budget computes a prefix"
    capsys.readouterr()
    monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", "0")
    ht.run(recipe, list(ARMS), output_dir=tmp_path / "plain")
    told = capsys.readouterr().err
    for arm in ARMS:
        sentence = f"{arm}  budget all  seed 0: the frozen blocks are computed in every epoch, because HF_TRANSFER_CACHE_GIB is 0\n"
        assert told.count(sentence) == 1
    assert files(cache) == filled
    base = load_file(Path(recipe.checkpoint) / "model.safetensors")
    for arm in ARMS:
        first, again, plain = (cell(tmp_path / run, arm) for run in ("first", "again", "plain"))
        assert (first / "predictions.parquet").read_bytes() == (again / "predictions.parquet").read_bytes()
        expected = weights(plain)
        moved = set()
        for name, tensor in weights(first).items():
            assert (tensor.double() - expected[name].double()).abs().max() < 1e-4, name
            assert torch.equal(tensor, weights(again)[name])
            source = base.get(name.partition(".")[2])
            if source is not None and not torch.equal(tensor, source):
                moved.add(name)
        assert bool(moved) == (arm == "top")
        assert all(".1." in name or "stages.1" in name for name in moved), "frozen weights are bit-equal"
        tables = [pq.read_table(folder / "predictions.parquet").to_pydict() for folder in (first, plain)]
        assert tables[0]["prediction"] == tables[1]["prediction"]
        found, without = (json.loads((folder / "result.json").read_text()) for folder in (first, plain))
        assert found["metrics"]["test"] == pytest.approx(without["metrics"]["test"], abs=1e-4)
        for key in ("updates", "rows_seen", "tokens_seen", "trainable_parameters", "total_parameters"):
            assert found["cost"][key] == without["cost"][key]
        assert found["cost"]["cache_seconds"] > without["cost"]["cache_seconds"] == 0


@pytest.mark.parametrize("arm", list(ARMS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_gives_the_plain_logits(studies: Any, kind: str, arm: str, cache: Path) -> None:
    # First what fills it, then what finds it filled.
    for seed in (0, 1):
        cached, plain = read_both(studies(kind), arm, seed)
        assert len(files(cache)) == 1
        assert np.abs(cached - plain).max() < 2e-6 * max(1, np.abs(plain).max())


def test_a_cnns_head_trains_the_same(recipes: dict[str, ht.Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ht.run(recipes["resnet"], ["head"], output_dir=tmp_path / "cached")
    monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", "0")
    ht.run(recipes["resnet"], ["head"], output_dir=tmp_path / "plain")
    cached, plain = (weights(cell(tmp_path / run, "head")) for run in ("cached", "plain"))
    moved = {name for name, tensor in cached.items() if not torch.equal(tensor, plain[name])}
    assert all("classifier" in name for name in moved), "batch norms included"
    assert all((cached[name] - plain[name]).abs().max() < 1e-4 for name in moved)


def test_what_would_change_a_hidden_state_is_another_entry(studies: Any, cache: Path, tmp_path: Path) -> None:
    other = save_tiny_bert(tmp_path / "other", initializer_range=0.05)
    seen: set[Path] = set()
    # Changes, the folders that come, and how far bf16 may be off.
    for changes, stores, bound in (
        ({}, 1, 2e-6),
        ({"task__max_length": 9}, 0, 2e-6),
        ({"checkpoint": str(other)}, 1, 2e-6),
        ({"training__precision": "bf16"}, 1, 3e-2),
        ({}, 0, 2e-6),
    ):
        before = {path.parent for path in seen}
        cached, plain = read_both(studies(**changes))
        assert np.abs(cached - plain).max() < bound * max(1, np.abs(plain).max())
        assert len({path.parent for path in files(cache)} - before) == stores
        assert bool(files(cache) - seen) == (changes != {} or not seen), "a shorter row is another row"
        seen = files(cache)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_another_processor_is_another_store(studies: Any, kind: str, cache: Path) -> None:
    one, other = studies(kind), studies(kind)
    read_both(one)
    other.architecture.checkpoint.processor.processor.image_mean = [0.1, 0.2, 0.3]
    cached, plain = read_both(other)
    assert np.abs(cached - plain).max() < 2e-6 * max(1, np.abs(plain).max())
    assert len({path.parent for path in files(cache)}) == 2


def test_the_cut_and_the_task_are_part_of_the_key(studies: Any, cache: Path) -> None:
    study = studies()
    for arm in ARMS:
        read_both(study, arm)
    assert len(list((cache / "arrays" / "frozen").iterdir())) == 2


def test_labels_are_not_part_of_the_key(studies: Any, cache: Path, topics_folder: Path, tmp_path: Path) -> None:
    read_both(studies())
    filled = files(cache)
    for split in ("train", "test"):
        text = (topics_folder / f"{split}.csv").read_text()
        (tmp_path / f"{split}.csv").write_text(text.replace(",boats", ",ships").replace(",chess", ",ships"))
    study = studies(data__source=str(tmp_path))
    assert len(study.labels) == 2
    cached, plain = read_both(study)
    assert files(cache) == filled
    assert np.abs(cached - plain).max() < 2e-6


def test_a_window_that_is_read_twice_is_kept_once(studies: Any, cache: Path) -> None:
    study = studies()
    windows = [window for rows in (study.train, study.test) for window in rows.layout.windows]
    twice = Rows(study.train.examples, [*study.train.encoded, *study.train.encoded])
    model = build_arm(study.architecture, ARMS["head"], 0, None)
    with reading_cached(study, model, ARMS["head"], [twice, study.test, study.test], "title"):
        pass
    stored = sum(len(load_file(path)["starts"]) - 1 for path in files(cache))
    assert stored == len({window.content for window in windows}) <= len(windows)


def test_only_what_is_replayed_counts_as_cost(studies: Any) -> None:
    for kind, arm, replayed in (("text", "head", "first"), ("text", "top", "all"), ("vit", "head", "first"), ("names", "head", "all")):
        study = studies(kind)
        model = build_arm(study.architecture, ARMS[arm], 0, None)
        with reading_cached(study, model, ARMS[arm], [study.train], "title") as reading:
            reader, (rows,) = reading.study, reading.rows
            tokens = [window.num_tokens for window in study.train.layout.windows]
            assert rows.layout.tokens.tolist() == tokens
            assert rows.layout.lengths.tolist() == ([1] * len(tokens) if replayed == "first" else tokens)
            given = reader.collate(rows.layout.windows[:5])
            expected = 1 if replayed == "first" else max(tokens[:5])
            assert given[PREFIX].shape == (5, expected, 32)


def test_content_is_equal_for_equal_tensors_only() -> None:
    def content(ids: list[int], types: list[int] | None = None) -> bytes:
        given = None if types is None else np.array(types, dtype=np.int32)
        return TextWindow(np.array(ids, dtype=np.int32), np.zeros(1, dtype=np.int64), types=given).content

    contents = [content(ids) for ids in ([1, 2], [2, 1], [1], [1, 2, 0], [])]
    contents += [content([1, 2], types) for types in ([0, 1], [1, 0])] + [content([1, 2, 0, 1])]
    assert len(set(contents)) == len(contents)
    assert content([1, 2], [0, 1]) == content([1, 2], [0, 1])


def refused(study: Study, capsys: pytest.CaptureFixture[str], arm: str = "head") -> str:
    """Check that an arm takes the plain path, and give the reason it names."""
    model = build_arm(study.architecture, ARMS[arm], 0, None)
    with reading_cached(study, model, ARMS[arm], [study.train, study.test], "head  seed 0") as reading:
        reader, rows, seconds = reading.study, reading.rows, reading.seconds
        assert reading.frozen_blocks is not None and reading.frozen_blocks.startswith("computed in every epoch, because ")
        assert (reader, seconds) == (study, 0.0)
        assert rows[0] is study.train and rows[1] is study.test
        assert logits_of(study, model, study.test, study.accelerator).shape == (31, 3)
    (line,) = capsys.readouterr().err.splitlines()
    start = "head  seed 0: the frozen blocks are computed in every epoch, because "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_no_room_and_no_folder_are_no_reason_to_stop(
    studies: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = studies()
    capsys.readouterr()
    monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", str(2**-20))
    assert refused(study, capsys) == f"its hidden states take 0.0 GiB, and {cache} has no room for them (HF_TRANSFER_CACHE_GIB=9.53674e-07)"
    assert not files(cache)
    monkeypatch.delenv("HF_TRANSFER_CACHE_GIB")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "file" / "cache"))
    assert refused(study, capsys).startswith(f"{tmp_path / 'file' / 'cache'} cannot be written to (")
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(cache))

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(array_store, "save_file", full)
    assert "No space left on device" in refused(study, capsys)
    assert not files(cache)


def test_a_cache_emptied_meanwhile_is_found_out(
    studies: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = studies()
    capsys.readouterr()
    monkeypatch.setattr(array_store.ArrayStore, "refresh", lambda store: None)
    assert refused(study, capsys) == f"{cache} is not shared by all processes, or was emptied meanwhile"


def test_a_damaged_file_is_computed_again(studies: Any, cache: Path) -> None:
    read_both(studies())
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:-10])
    cached, plain = read_both(studies())
    assert np.abs(cached - plain).max() < 2e-6
    assert len(files(cache)) == 2


def test_nothing_but_hidden_states_is_ever_removed(studies: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may share the folder with other programs, a model hub's cache among them."""
    theirs, ours = cache / "hub" / "model.safetensors", cache / "arrays" / "frozen" / "old" / "a.safetensors"
    for path in (theirs, ours):
        path.parent.mkdir(parents=True)
        save_file({"weight": torch.zeros(10_000)}, path)
        os.utime(path, (1e9, 1e9))
    # Room for what 121 texts' first tokens take, not for what lies there.
    monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", str(30_000 / 2**30))
    read_both(studies())
    assert theirs.exists()
    assert not ours.exists()


@pytest.mark.parametrize("arm", [{"tuning": "head", "augment": True}, {"tuning": "full"}, {"tuning": "lora"}])
def test_what_differs_in_every_epoch_is_not_cached(
    studies: Any, arm: dict[str, Any], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = studies("vit")
    capsys.readouterr()
    chosen = ht.Arm(learning_rate=1e-3, num_epochs=1, **arm)
    model = build_arm(study.architecture, chosen, 0, None)
    with reading_cached(study, model, chosen, [study.train], "title") as reading:
        reader, rows, seconds = reading.study, reading.rows, reading.seconds
        assert reading.frozen_blocks is None
        assert reader is study and rows[0] is study.train and seconds == 0
    assert not files(cache)
    assert capsys.readouterr().err == ""


def test_an_architecture_without_a_prefix_says_why(
    studies: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = studies()
    capsys.readouterr()
    monkeypatch.setattr(cached_prefix, "find_prefix", lambda *_: "of the moon")
    assert refused(study, capsys) == "of the moon"


def test_the_model_is_whole_after_an_error(studies: Any) -> None:
    study = studies()
    model = build_arm(study.architecture, ARMS["head"], 0, None)
    plain = logits_of(study, model, study.test, study.accelerator)
    with pytest.raises(ZeroDivisionError), reading_cached(study, model, ARMS["head"], [study.test], "title"):
        raise ZeroDivisionError
    assert np.array_equal(logits_of(study, model, study.test, study.accelerator), plain)


def test_pairs_are_told_apart_by_their_types(studies: Any, tmp_path: Path) -> None:
    """The same tokens, of one text or of two."""
    cuts = [(f"sail [SEP] {index}", "mast", "a") for index in range(8)] + [("sail", f"{index} [SEP] mast", "b") for index in range(8)]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": one, "text_pair": two, "label": label} for one, two, label in cuts])
    study = studies(data__source=str(tmp_path), task__text_pair="text_pair")
    cached, plain = read_both(study, "top")
    assert np.abs(cached - plain).max() < 2e-6
    windows = study.test.layout.windows
    assert len({window.content for window in windows}) == 16 > len({window.ids.tobytes() for window in windows}) == 8


def test_the_folder_and_the_limit_are_the_users(recipes: dict[str, ht.Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TRANSFER_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("HF_TRANSFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hf_transfer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "hf_transfer"
    assert cache_limit_bytes() == 20 * 2**30
    for given, limit in (("0.5", 2**29), ("0", 0)):
        monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", given)
        assert cache_limit_bytes() == limit
    for given in ("much", "nan", "inf", "-3", ""):
        monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", given)
        with pytest.raises(ConfigError, match="HF_TRANSFER_CACHE_GIB must be a number of GiB, found"):
            ht.run(recipes["text"], output_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists(), "said before any training"
