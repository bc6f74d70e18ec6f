from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_transfer.evaluation.prediction import predict_logits
from hf_transfer.models.build import build_model, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.task_configs import TextClassification
from hf_transfer.tasks import text_classification as task
from hf_transfer.tasks.items import Window, lay_out
from hf_transfer.tasks.tokenizers import load_tokenizer
from hf_transfer.training.device import autocast
from tests.conftest import make_rows


def test_order_is_kept_whatever_the_micro_batches(tiny_bert: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_bert), load_tokenizer)
    model = build_model(inspect(checkpoint, AutoModelForSequenceClassification, ["a", "b"]), "scratch", 0)
    texts = [row["text"] for row in make_rows(40)] + ["", "bread " * 200]
    layout = lay_out(task.encode(checkpoint.processor, texts, TextClassification(max_length=64)))
    assert layout.lengths[40:].tolist() == [2, 64], "an empty text has its special tokens, a long one is cut"

    def collate(picked: Sequence[Window]) -> dict[str, torch.Tensor]:
        return task.collate(picked, checkpoint.processor)

    with torch.no_grad():
        alone = np.concatenate([model.eval()(**collate([row])).logits.numpy() for row in layout.windows])
    for max_tokens in (1, 100, 10_000):
        found = predict_logits(model, layout, collate, task.item_logits, max_tokens)
        assert found.dtype == np.float32
        assert np.abs(found - alone).max() < 1e-5


def test_an_empty_text_is_a_row_even_without_special_tokens(tiny_bert: Path) -> None:
    tokenizer = open_checkpoint(str(tiny_bert), load_tokenizer).processor
    tokenizer.backend_tokenizer.post_processor = None
    rows = task.encode(tokenizer, ["", "sail"], TextClassification(max_length=64))
    assert [row[0].ids.tolist() for row in rows] == [[0], [tokenizer.convert_tokens_to_ids("sail")]]


def test_precision_is_that_of_the_context_and_the_shares_told_add_up(tiny_bert: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_bert), load_tokenizer)
    model = build_model(inspect(checkpoint, AutoModelForSequenceClassification, ["a", "b"]), "scratch", 0)
    layout = lay_out(task.encode(checkpoint.processor, [row["text"] for row in make_rows(40)], TextClassification(max_length=64)))
    kinds, shares = set(), []

    def item_logits(logits: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
        kinds.add(logits.dtype)
        return logits

    def predict(precision: str) -> np.ndarray:
        context = autocast(precision, torch.device("cpu"))
        return predict_logits(
            model, layout, partial(task.collate, processor=checkpoint.processor), item_logits, 100, autocast=context, advance=shares.append
        )

    exact, rough = predict("fp32"), predict("bf16")
    assert kinds == {torch.float32, torch.bfloat16}
    assert 0 < np.abs(exact - rough).max() < 0.02
    assert len(shares) > 4
    assert sum(shares) == pytest.approx(2)
