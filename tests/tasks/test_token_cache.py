"""Texts tokenised once: what comes from the cache is what `encode` gives, whatever became of the file."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

import hf_transfer as ht
from hf_transfer.data import array_store
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.tasks import functions_of, token_cache
from hf_transfer.tasks.items import EncodedRow
from tests.conftest import make_rows, make_sentences, save_byte_level_tokenizer

TEXTS = ht.TextClassification(max_length=24)
PAIRS = ht.TextClassification(max_length=32, text_pair="text_pair")
WORDS = ht.TokenClassification(max_length=12)
SENTENCES = [tuple(row["tokens"]) for row in make_sentences(20)]
INPUTS: dict[str, tuple[Any, list[Any]]] = {
    "texts": (TEXTS, [row["text"] for row in make_rows(20)] + [""]),
    "pairs": (PAIRS, [(one["text"], two["text"]) for one, two in zip(make_rows(20), make_rows(20, seed=5), strict=True)]),
    # A row of many windows, and rows without any: in the middle, at the end, and alone.
    "words": (WORDS, [*SENTENCES[:9], (), *SENTENCES[9:], ("anchor", "sail") * 30, ()]),
    "no words": (WORDS, [(), (), ()]),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of the cache, which takes few rows, too."""
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "LEAST_ROWS", 3)
    return tmp_path / "cache" / "arrays" / token_cache.CACHE_NAME


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    return processor_of(TEXTS, tiny_bert)


def processor_of(task: Any, checkpoint: Path) -> Any:
    return open_checkpoint(str(checkpoint), functions_of(task).load_processor).processor


def spied(task: Any) -> tuple[ModuleType, list[int]]:
    """Give a task's functions, and a list that grows with every `encode`."""
    functions, calls = functions_of(task), []
    made = ModuleType("spied")
    made.__dict__.update(vars(functions))

    def encode(processor: Any, inputs: Any, config: Any) -> list[EncodedRow]:
        calls.append(len(inputs))
        return functions.encode(processor, inputs, config)

    made.encode = encode  # type: ignore[attr-defined]
    return made, calls


def plain(rows: list[EncodedRow]) -> list[Any]:
    """Give all that rows hold, comparable, dtypes included."""

    def value(array: np.ndarray | None) -> Any:
        return None if array is None else (str(array.dtype), array.tolist())

    return [tuple(tuple(value(getattr(window, name)) for name in ("ids", "items", "tokens", "types")) for window in row) for row in rows]


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.parametrize("name", list(INPUTS))
def test_rows_are_those_of_encode(name: str, tiny_bert: Path, folder: Path) -> None:
    task, inputs = INPUTS[name]
    processor = processor_of(task, tiny_bert)
    functions, calls = spied(task)
    expected = plain(functions_of(task).encode(processor, inputs, task))
    if name == "pairs":
        assert {row[0][3] is None for row in expected} == {False}, "token types"
    if name == "words":
        assert {0, 1} < {len(row) for row in expected}, "rows without windows, with one and with many"
    for _ in range(2):
        assert plain(token_cache.encode_cached(functions, processor, inputs, task)) == expected
    assert calls == [len(inputs)], "encoded once"
    assert len(entries(folder)) == 1
    # What another process would find.
    assert plain(token_cache.encode_cached(functions, processor_of(task, tiny_bert), list(inputs), task)) == expected
    assert calls == [len(inputs)]


def test_few_rows_are_not_kept(tokenizer: Any, folder: Path) -> None:
    functions, calls = spied(TEXTS)
    for _ in range(2):
        token_cache.encode_cached(functions, tokenizer, ["a", "b"], TEXTS)
    assert calls == [2, 2]
    assert entries(folder) == set()


def test_whatever_changes_the_tokens_is_another_entry(tiny_bert: Path, tmp_path: Path, tokenizer: Any, folder: Path) -> None:
    texts = INPUTS["texts"][1][:20]
    save_byte_level_tokenizer(tmp_path / "roberta", "roberta")
    (tmp_path / "roberta/config.json").write_text((tiny_bert / "config.json").read_text())
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tmp_path / "roberta")
    taught = processor_of(TEXTS, tiny_bert)
    taught.add_tokens(["anch"])
    cases: list[tuple[Any, list[str], Any]] = [
        (tokenizer, texts, TEXTS),
        (tokenizer, texts, replace(TEXTS, max_length=23)),
        (tokenizer, texts, replace(TEXTS, keep="tail")),
        (tokenizer, texts[:-1], TEXTS),
        (tokenizer, [*texts[:-1], texts[-1] + " sail"], TEXTS),
        (tokenizer, texts[::-1], TEXTS),
        (other, texts, TEXTS),
        (taught, texts, TEXTS),
    ]
    for count, (processor, inputs, task) in enumerate(cases, 1):
        functions, calls = spied(task)
        expected = plain(functions_of(task).encode(processor, inputs, task))
        for _ in range(2):
            assert plain(token_cache.encode_cached(functions, processor, inputs, task)) == expected
        assert calls == [len(inputs)], "its own entry, used the second time"
        assert len(entries(folder)) == count


def test_a_model_without_token_types_is_given_none(tiny_bert: Path, folder: Path) -> None:
    """BERT's tokenizer serves models without them, too: DistilBERT has its very vocabulary and class."""
    task, pairs = INPUTS["pairs"]
    found = []
    for type_vocab_size in (2, 0):
        config = open_checkpoint(str(tiny_bert), functions_of(task).load_processor).config
        config.type_vocab_size = type_vocab_size
        processor = functions_of(task).load_processor(tiny_bert, "tiny", config)
        rows = token_cache.encode_cached(functions_of(task), processor, pairs, task)
        assert plain(rows) == plain(functions_of(task).encode(processor, pairs, task))
        found.append({row[0].types is None for row in rows})
    assert found == [{False}, {True}]


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "header", "ids", "last byte"])
def test_a_damaged_file_is_encoded_anew_and_mended(damage: str, tokenizer: Any, folder: Path) -> None:
    task, inputs = INPUTS["texts"]
    functions, calls = spied(task)
    expected = plain(token_cache.encode_cached(functions, tokenizer, inputs, task))
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:-7],
            "empty": b"",
            "noise": b"\xff" * len(whole),
            "header": whole[:3] + b"\x00" + whole[4:20] + b"?" + whole[21:],
            "ids": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "last byte": whole[:-1] + bytes([whole[-1] ^ 1]),
        }[damage]
    )
    assert plain(token_cache.encode_cached(functions, tokenizer, inputs, task)) == expected
    assert calls == [len(inputs)] * 2
    assert path.read_bytes() == whole, "mended"
    assert plain(token_cache.encode_cached(functions, tokenizer, inputs, task)) == expected
    assert len(calls) == 2, "read again from then on"


@pytest.mark.parametrize("obstacle", ["a file", "no disk", "full"])
def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    obstacle: str, tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, inputs = INPUTS["texts"]
    functions, calls = spied(task)
    if obstacle == "a file":
        folder.parent.parent.write_text("no folder")
    if obstacle == "no disk":
        monkeypatch.setenv("HF_TRANSFER_CACHE", "/proc/no/such/folder")
    if obstacle == "full":

        def full(*_: object) -> None:
            # What safetensors makes of an OSError.
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr(array_store, "save_file", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            array_store.write_arrays(folder.parent.parent / "x", {})
        assert error.value.strerror, "said where an OSError is told"
    expected = plain(functions_of(task).encode(tokenizer, inputs, task))
    for _ in range(2):
        assert plain(token_cache.encode_cached(functions, tokenizer, inputs, task)) == expected
    assert calls == [len(inputs)] * 2
    assert entries(folder) == set()


def test_a_limit_of_nothing_writes_nothing(tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TRANSFER_CACHE_GIB", "0")
    task, inputs = INPUTS["texts"]
    expected = plain(functions_of(task).encode(tokenizer, inputs, task))
    assert plain(token_cache.encode_cached(functions_of(task), tokenizer, inputs, task)) == expected
    assert not folder.parent.exists()


def test_images_are_not_kept(folder: Path) -> None:
    functions = ModuleType("images")
    asked: list[Any] = []
    functions.READS_FILES = True  # type: ignore[attr-defined]
    functions.encode = lambda *arguments: asked.append(arguments) or ["rows"]  # type: ignore[attr-defined]
    inputs, task, processor = [object()] * 9, ht.ImageClassification(), object()
    assert token_cache.encode_cached(functions, processor, inputs, task) == ["rows"]
    assert asked == [(processor, inputs, task)], "untouched"
    assert not folder.parent.exists()
    assert functions_of(task).READS_FILES


def test_a_run_from_the_cache_is_the_same_run(tiny_bert: Path, topics_folder: Path, tmp_path: Path, folder: Path) -> None:
    recipe = ht.Recipe(
        name="topics",
        task=TEXTS,
        data=ht.DataConfig(str(topics_folder)),
        checkpoint=str(tiny_bert),
        arms={"head": ht.Arm(tuning="head", learning_rate=1e-2, num_epochs=1)},
        training=ht.TrainingConfig(precision="fp32"),
    )
    runs = [ht.run(recipe, budgets=[30], output_dir=tmp_path / name) for name in ("first", "second")]
    assert len(entries(folder)) == 2, "train and test"
    one, other = (run.cells()[0] / "predictions.parquet" for run in runs)
    assert one.read_bytes() == other.read_bytes()
