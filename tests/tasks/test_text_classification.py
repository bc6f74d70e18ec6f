import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, PreTrainedTokenizerBase

from hf_transfer.data.sources import Source
from hf_transfer.errors import ConfigError, DataError
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.task_configs import TextClassification
from hf_transfer.tasks import text_classification as task
from hf_transfer.tasks.items import TextWindow, item_losses, to_probabilities
from hf_transfer.tasks.tokenizers import load_tokenizer

COLUMNS = {"text": "body", "label": "topic"}


def test_read_gives_stripped_texts_ids_and_positions() -> None:
    splits = {
        "train": Dataset.from_dict({"body": [" a ", "", "c"], "topic": ["x", "y", "x"], "other": [1, 2, 3]}),
        "validation": Dataset.from_dict({"body": ["d"]}),
        "test": Dataset.from_dict({"body": ["\n"], "topic": ["y"]}),
    }
    names, examples = task.read(Source(splits), COLUMNS, None, TextClassification())
    assert names == ["x", "y"]
    assert examples["validation"] is None, "a split without labels"
    assert (examples["train"].inputs, examples["test"].inputs) == (["a", "", "c"], [""])
    assert [labels.tolist() for labels in examples["train"].labels] == [[0], [1], [0]]
    assert examples["train"].strata.tolist() == [0, 1, 0]
    assert examples["train"].row_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None, None], r"2 of 3 test rows have no text \(row 1, 2: None\)"),
        ([1, 2, 3], r"the text column of the test data holds int \(1\), expected text"),
        ([["a"], ["b"], ["c"]], r"holds list \(\['a'\]\), expected text"),
    ],
)
def test_a_text_that_is_none(texts: list[object], message: str) -> None:
    splits = {
        "train": Dataset.from_dict({"body": ["a", "b", "c"], "topic": ["x", "y", "x"]}),
        "test": Dataset.from_dict({"body": texts, "topic": ["x", "y", "x"]}),
    }
    with pytest.raises(DataError, match=message):
        task.read(Source(splits), COLUMNS, None, TextClassification())


def test_collate_pads_and_masks(tiny_bert: Path) -> None:
    windows = [TextWindow(np.array(ids, dtype=np.int32), np.zeros(1, dtype=np.int64)) for ids in ([2, 9, 3], [2, 3])]
    arguments = task.collate(windows, open_checkpoint(str(tiny_bert), load_tokenizer).processor)
    assert arguments["input_ids"].tolist() == [[2, 9, 3], [2, 3, 0]]
    assert arguments["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_a_smoothed_loss_is_the_textbook_one() -> None:
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    logs = torch.log_softmax(logits, dim=-1)
    plain = -logs[torch.arange(5), labels]
    assert torch.allclose(item_losses(logits, labels), plain)
    # Szegedy et al. 2016, section 7: the target is mixed with the uniform distribution.
    assert torch.allclose(item_losses(logits, labels, 0.1), 0.9 * plain - 0.1 * logs.mean(dim=-1))
    assert np.allclose(to_probabilities(logits.numpy()), logs.exp().numpy())


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tokenizer_folder, "x", BertConfig(type_vocab_size=2 if tokenizer_folder.name == "bert" else 1))


@pytest.mark.parametrize("max_length", [8, 21, 64])
@pytest.mark.parametrize(
    "texts", [("sail mast keel " * 30,), ("sail mast " * 3, "rope deck keel " * 30), ("crew tide " * 30, "rope " * 30)]
)
def test_what_is_kept_of_a_long_text(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], max_length: int) -> None:
    whole = tokenizer(*texts)
    ids, sides = np.array(whole["input_ids"]), np.array([-1 if side is None else side for side in whole.sequence_ids(0)])
    kept = {}
    for keep in ("head", "tail", "both"):
        config = TextClassification(max_length=max_length, keep=keep)
        kept[keep] = task.encode(tokenizer, [texts[0] if len(texts) == 1 else texts], config)[0][0]
        assert len(kept[keep].ids) == min(max_length, len(ids))
    special = ids[sides == -1].tolist()
    rival = tokenizer(*texts, truncation="longest_first", max_length=max_length)
    for keep, window in kept.items():
        assert [token for token in window.ids.tolist() if token in special] == special
        runs = [list(run) for is_special, run in itertools.groupby(window.ids.tolist(), special.__contains__) if not is_special]
        for side, run in enumerate(runs):
            text = ids[sides == side].tolist()
            size = len(run)
            # Of a pair, the longer text gives way first, as transformers has it (but for one token).
            assert abs(size - sum(other == side for other in rival.sequence_ids(0))) <= 1
            head = {"head": size, "tail": 0, "both": size // 4 if size < len(text) else size}[keep]
            assert run == text[:head] + text[len(text) - (size - head) :]
    if len(texts) == 1:
        assert kept["both"].types is None
        return
    if "token_type_ids" in tokenizer.model_input_names:
        assert kept["tail"].types is not None
        assert len(kept["tail"].types) == len(kept["tail"].ids)
        assert task.collate([kept["tail"]], tokenizer)["token_type_ids"].sum() > 0
    else:
        assert kept["tail"].types is None


PAIR = {"text": "a", "text_pair": "b", "label": "y"}


def test_a_pair_is_read_and_its_column_found_by_name() -> None:
    rows = {"text": ["x ", "<br/>y"], "text_pair": ["u", " v"], "label": ["p", "q"]}
    config = TextClassification()
    columns = task.choose_columns(config.columns, list(rows), config)
    assert columns == {"text": "text", "label": "label", "text_pair": "text_pair"}
    assert task.choose_columns(PAIR, list(rows), config) == PAIR
    assert "text_pair" not in task.choose_columns(config.columns, ["text", "label", "pair"], config)
    alone = TextClassification(text_pair="")
    assert task.choose_columns(alone.columns, list(rows), alone) == {"text": "text", "label": "label"}, "declined"
    other = {"text": "text_pair", "label": "label"}
    assert task.choose_columns(other, list(rows), config) == other, "it plays another role"
    _, examples = task.read(Source({"train": Dataset.from_dict(rows)}), columns, None, TextClassification(replace={"<br/>": "z "}))
    assert examples["train"] is not None
    assert examples["train"].inputs == [("x", "u"), ("z y", "v")]


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (["u", ""], r"1 of 2 train rows are pairs with one side empty \(row 1; row 1 lacks its second text\)"),
        ([None, "u"], r"1 of 2 train rows have no text_pair \(row 0: None\)"),
    ],
)
def test_a_pair_with_one_side_missing_names_the_row(seconds: list[str | None], message: str) -> None:
    rows = {"a": ["x", "y"], "b": seconds, "y": ["p", "q"]}
    with pytest.raises(DataError, match=message):
        task.read(Source({"train": Dataset.from_dict(rows)}), PAIR, None, TextClassification())


def test_predicting_takes_what_was_trained_on() -> None:
    assert task.to_inputs([" a<br />"], TextClassification(replace={"<br />": ""})) == ["a"]
    assert task.to_inputs([["a ", "b"], ("c", "d")], TextClassification(text_pair="text_pair")) == [("a", "b"), ("c", "d")]
    for values, pair, message in (
        ("a", None, r"list of texts, found str: predict\(\[text\]\)"),
        ([("a", "b")], None, "found tuple at position 0"),
        (["a"], "text_pair", r"list of pairs \(text, second text\), found str at position 0"),
        ([("a", "b"), ("a", 1)], "text_pair", "found str, int at position 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            task.to_inputs(values, TextClassification(text_pair=pair))
