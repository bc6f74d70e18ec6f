"""Sentence encoders: their mean pooling as a block that plain transformers reads, and their untrained pooler as head."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

import hf_transfer as ht
from hf_transfer.errors import CheckpointError
from hf_transfer.evidence.arms import build_arm, check_arm
from hf_transfer.models.build import Architecture, build_model, inspect, quiet_loading
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.pooling import pools_the_mean, read_pooling
from hf_transfer.models.saved import Sidecar, load_saved, save_model
from hf_transfer.models.tuning import find_blocks, set_training_mode
from hf_transfer.tasks.tokenizers import load_tokenizer
from tests.conftest import make_rows, make_sentences, save_tiny_bert, write_csv, write_jsonl

INPUTS = {
    "input_ids": torch.tensor([[2, 9, 10, 11, 3], [2, 12, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def sentence_encoder(folder: Path, **pooling: object) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return folder


def inspected(folder: Path) -> Architecture:
    checkpoint = open_checkpoint(str(folder), load_tokenizer)
    return inspect(checkpoint, AutoModelForSequenceClassification, ["a", "b", "c"], reads_texts_whole=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_encoder(save_tiny_bert(tmp_path_factory.mktemp("pooling") / "mean"), pooling_mode_mean_tokens=True)


def test_the_head_reads_the_mean_of_the_last_hidden_states(folder: Path) -> None:
    architecture = inspected(folder)
    assert (architecture.pooling, architecture.config.num_hidden_layers) == ("mean", 3)
    assert architecture.untrained == POOLER
    assert architecture.head == POOLER | {"classifier.weight", "classifier.bias"}
    assert architecture.fixed
    assert all(name.startswith("bert.encoder.layer.2.") for name in architecture.fixed)
    model = build_model(architecture, "pretrained", 0).eval()
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**INPUTS).last_hidden_state
        mask = INPUTS["attention_mask"][..., None]
        mean = torch.nn.functional.layer_norm((states * mask).sum(1) / mask.sum(1), (32,))
        expected = model.classifier(torch.tanh(model.bert.pooler.dense(mean)))
        assert torch.allclose(model(**INPUTS).logits, expected, atol=1e-3)


@pytest.mark.parametrize("init", ["pretrained", "scratch"])
def test_every_model_of_the_architecture_pools(folder: Path, init: str) -> None:
    model = build_model(inspected(folder), init, 0).eval()
    assert pools_the_mean(model, INPUTS["input_ids"][:1])
    set_training_mode(model)
    block = find_blocks(model)[1][-1]
    assert all(module.p == 0 for module in block.modules() if isinstance(module, torch.nn.Dropout)), "a fixed operation drops nothing"


def test_the_pooler_starts_anew_from_the_seed(folder: Path) -> None:
    architecture = inspected(folder)
    first, again, other = (build_model(architecture, "pretrained", seed).bert.pooler.dense.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, AutoModel.from_pretrained(folder).pooler.dense.weight)


@pytest.mark.parametrize("tuning", ["full", "head", "top", "lora"])
def test_the_block_never_trains_and_a_saved_model_is_a_plain_one(folder: Path, tuning: str, tmp_path: Path) -> None:
    architecture = inspected(folder)
    arm = ht.Arm(tuning=tuning, learning_rate=1e-3, num_epochs=1, num_blocks=2 if tuning == "top" else None)
    check_arm(architecture, arm, ht.TrainingConfig(), "SEQ_CLS")
    model = build_arm(architecture, arm, 0, "SEQ_CLS")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in trainable if ".layer.2." in name]
    if tuning == "top":
        assert any(".layer.0." in name for name in trainable), "blocks are counted from the last of the checkpoint's own"
    set_training_mode(model)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    model(**INPUTS).logits.logsumexp(1).sum().backward()
    optimizer.step()
    checkpoint = architecture.checkpoint
    task = dataclasses.asdict(ht.TextClassification())
    sidecar = Sidecar(task, ["a", "b", "c"], checkpoint.base_id, checkpoint.revision, checkpoint.sha256, architecture.pooling)
    save_model(model, checkpoint.processor, sidecar, tmp_path / "model")
    with torch.no_grad():
        expected = model.eval()(**INPUTS).logits
        loaded = load_saved(str(tmp_path / "model"), base=str(folder) if tuning == "lora" else None).model
        assert torch.allclose(loaded(**INPUTS).logits, expected, atol=1e-6)
        if tuning != "lora":
            with quiet_loading():
                plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
            assert torch.allclose(plain(**INPUTS).logits, expected, atol=1e-6)


def test_a_chain_keeps_the_block_it_was_given(folder: Path, tmp_path: Path) -> None:
    """A saved arm is the next run's checkpoint: no second block, and the first stays fixed; LoRA on it reloads too."""
    first = inspected(folder)
    model = build_model(first, "pretrained", 0)
    checkpoint = first.checkpoint
    task = dataclasses.asdict(ht.TextClassification())
    sidecar = Sidecar(task, ["a", "b", "c"], checkpoint.base_id, checkpoint.revision, checkpoint.sha256, first.pooling)
    save_model(model, checkpoint.processor, sidecar, tmp_path / "first")
    source = open_checkpoint(str(tmp_path / "first"), load_tokenizer)
    second = inspect(source, AutoModelForSequenceClassification, ["x", "y"], reads_texts_whole=True)
    assert (second.pooling, second.config.num_hidden_layers, second.fixed) == ("mean", 3, first.fixed)
    assert second.head == {"classifier.weight", "classifier.bias"}, "its pooler was trained"
    adapted = build_arm(second, ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=1), 0, "SEQ_CLS")
    assert not [name for name, parameter in adapted.named_parameters() if parameter.requires_grad and ".layer.2." in name]
    base = second.checkpoint
    sidecar = Sidecar(task, ["x", "y"], base.base_id, base.revision, base.sha256, second.pooling)
    save_model(adapted, base.processor, sidecar, tmp_path / "second")
    with torch.no_grad():
        loaded = load_saved(str(tmp_path / "second"), base=str(tmp_path / "first")).model
        assert torch.allclose(loaded(**INPUTS).logits, adapted.eval()(**INPUTS).logits, atol=1e-6)


@pytest.mark.parametrize("content", ["no json", "[1]"])
def test_a_pooling_file_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    folder = sentence_encoder(save_tiny_bert(tmp_path / "broken"))
    (folder / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="is no JSON object: mend it, or remove the folder 1_Pooling"):
        inspected(folder)


def test_several_poolings_at_once_are_not_the_mean(tmp_path: Path) -> None:
    folder = sentence_encoder(save_tiny_bert(tmp_path / "both"), pooling_mode_mean_tokens=True, pooling_mode_cls_token=True)
    assert read_pooling(folder) == "other"


def test_another_pooling_counts_the_pooler_as_head_and_adds_nothing(tmp_path: Path) -> None:
    architecture = inspected(sentence_encoder(save_tiny_bert(tmp_path / "cls"), pooling_mode_cls_token=True))
    assert (architecture.pooling, architecture.config.num_hidden_layers, architecture.fixed) == (None, 2, frozenset())
    assert architecture.untrained == POOLER


def test_an_ordinary_checkpoint_keeps_its_pooler(tiny_bert: Path) -> None:
    architecture = inspected(tiny_bert)
    assert (architecture.pooling, architecture.untrained) == (None, frozenset())
    assert architecture.head == {"classifier.weight", "classifier.bias"}


SHAPE = {"vocab_size": 71, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (RobertaConfig(**SHAPE, max_position_embeddings=64), "mean"),
        (MPNetConfig(**SHAPE, max_position_embeddings=64), None),
        (ModernBertConfig(**SHAPE, max_position_embeddings=64, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3), None),
        (AlbertConfig(**SHAPE, embedding_size=32, max_position_embeddings=64), None),
        (DistilBertConfig(vocab_size=71, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64), None),
    ],
    ids=["roberta", "mpnet", "modernbert", "albert", "distilbert"],
)
def test_other_encoders_pool_where_their_blocks_are_built_alike(tmp_path: Path, config: object, pooling: str | None) -> None:
    folder = sentence_encoder(save_tiny_bert(tmp_path / "other"), pooling_mode_mean_tokens=True)
    with quiet_loading():
        AutoModel.from_config(config).save_pretrained(folder)
    architecture = inspected(folder)
    assert architecture.pooling == pooling
    assert bool(architecture.fixed) == (pooling is not None)
    assert architecture.config.num_hidden_layers == 2 + (pooling is not None)
    assert not any(".layer." in name for name in architecture.head)
    build_arm(architecture, ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=1), 0, "SEQ_CLS")


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_words_are_read_below_the_block_of_a_chained_text_model(folder: Path, tuning: str, tmp_path: Path) -> None:
    """Behind the block all tokens of a row are alike, so a model of words leaves it out."""
    texts, sentences = (tmp_path / name for name in ("texts.csv", "sentences.jsonl"))
    write_csv(texts, make_rows(60))
    write_jsonl(sentences, make_sentences(40))
    arm = {"arm": ht.Arm(tuning=tuning, learning_rate=1e-3, num_epochs=1)}
    first = ht.Recipe("first", ht.TextClassification(max_length=16), ht.DataConfig(str(texts)), str(folder), arm)
    ht.run(first, output_dir=tmp_path / "first")
    second = ht.Recipe("second", ht.TokenClassification(max_length=16), ht.DataConfig(str(sentences)), str(tmp_path / "first"), arm)
    ht.run(second, output_dir=tmp_path / "second")
    saved = ht.load(tmp_path / "second").saved
    assert saved.model.config.num_hidden_layers == 2
    with torch.no_grad():
        states = saved.model(**INPUTS, output_hidden_states=True).hidden_states[-1][0]
    assert states.std(dim=0).mean() > 0.1, "tokens of a row differ"
