from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_transfer.errors import DataError
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.recipe import TextClassification
from hf_transfer.tasks import text_classification as task
from hf_transfer.tasks.items import Window, item_losses, to_probabilities

COLUMNS = {"text": "body", "label": "topic"}


def test_read_gives_stripped_texts_ids_and_positions() -> None:
    splits = {
        "train": Dataset.from_dict({"body": [" a ", "", "c"], "topic": ["x", "y", "x"], "other": [1, 2, 3]}),
        "validation": Dataset.from_dict({"body": ["d"]}),
        "test": Dataset.from_dict({"body": ["\n"], "topic": ["y"]}),
    }
    names, examples = task.read(splits, COLUMNS, None, TextClassification())
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
        task.read(splits, COLUMNS, None, TextClassification())


def test_collate_pads_and_masks(tiny_bert: Path) -> None:
    windows = [Window(np.array(ids, dtype=np.int32), np.zeros(1, dtype=np.int64)) for ids in ([2, 9, 3], [2, 3])]
    arguments = task.collate(windows, open_checkpoint(str(tiny_bert)).tokenizer)
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
