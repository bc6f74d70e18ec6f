"""Heads are found structurally, and a head of other labels is never reused."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_transfer.errors import CheckpointError
from hf_transfer.models.build import build_model, count_parameters, inspect
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.tasks.tokenizers import load_tokenizer
from tests.conftest import save_tiny_bert

CLASSIFIER = {"classifier.weight", "classifier.bias"}


@pytest.fixture
def labelled_checkpoint(tiny_bert: Path, tmp_path: Path) -> Path:
    """Give a classifier with labels a, b, c, as a run's `model/` folder would be."""
    checkpoint = open_checkpoint(str(tiny_bert), load_tokenizer)
    model = build_model(inspect(checkpoint, AutoModelForSequenceClassification, ["a", "b", "c"]), "pretrained", seed=5)
    model.save_pretrained(tmp_path / "source")
    checkpoint.processor.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def built(folder: Path, labels: list[str], seed: int = 0, init: str = "pretrained", keep_head: bool = False) -> torch.nn.Module:
    architecture = inspect(open_checkpoint(str(folder), load_tokenizer), AutoModelForSequenceClassification, labels)
    assert architecture.head == CLASSIFIER
    assert architecture.output_layer == CLASSIFIER
    return build_model(architecture, init, seed, keep_head)


def test_scratch_and_pretrained_are_the_same_architecture(tiny_bert: Path) -> None:
    scratch, pretrained = built(tiny_bert, ["a", "b"], init="scratch"), built(tiny_bert, ["a", "b"])
    shapes = [{name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()} for model in (scratch, pretrained)]
    assert shapes[0] == shapes[1]
    assert count_parameters(scratch) == count_parameters(pretrained)
    assert not torch.equal(scratch.bert.embeddings.word_embeddings.weight, pretrained.bert.embeddings.word_embeddings.weight)
    reference = BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    assert torch.equal(pretrained.bert.encoder.layer[1].output.dense.weight, reference.bert.encoder.layer[1].output.dense.weight)


def test_an_fp16_checkpoint_trains_in_fp32(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "half", dtype="float16")
    BertForSequenceClassification.from_pretrained(folder, dtype=torch.float16).bert.save_pretrained(folder)
    for init in ("scratch", "pretrained"):
        assert {parameter.dtype for parameter in built(folder, ["a", "b"], init=init).parameters()} == {torch.float32}


def test_seeds_draw_new_parameters(tiny_bert: Path) -> None:
    for init in ("scratch", "pretrained"):
        same, again, other = (built(tiny_bert, ["a", "b"], seed, init).classifier.weight for seed in (1, 1, 2))
        assert torch.equal(same, again)
        assert not torch.equal(same, other)


def test_a_chain_with_as_many_but_other_classes_gets_a_new_head(labelled_checkpoint: Path) -> None:
    source = AutoModelForSequenceClassification.from_pretrained(labelled_checkpoint)
    same_names = built(labelled_checkpoint, ["a", "b", "c"], seed=9)
    assert torch.equal(same_names.classifier.weight, source.classifier.weight)
    for labels in (["x", "y", "z"], ["c", "b", "a"], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        chained = built(labelled_checkpoint, labels, seed=9)
        assert not torch.equal(chained.classifier.weight, source.classifier.weight)
        assert torch.equal(chained.bert.pooler.dense.weight, source.bert.pooler.dense.weight), "the backbone is kept"
    kept = built(labelled_checkpoint, ["x", "y", "z"], seed=9, keep_head=True)
    assert torch.equal(kept.classifier.weight, source.classifier.weight)
    with pytest.raises(CheckpointError, match="keep_head.*no output layer for 4 labels"):
        built(labelled_checkpoint, ["w", "x", "y", "z"], keep_head=True)


def test_models_built_one_after_another_are_those_built_alone(labelled_checkpoint: Path) -> None:
    """What building shares between the arms and seeds of a run, no training of them moves."""
    architecture = inspect(open_checkpoint(str(labelled_checkpoint), load_tokenizer), AutoModelForSequenceClassification, ["x", "y", "z"])
    for seed in (3, 3, 4, 3):
        model = build_model(architecture, "pretrained", seed)
        expected = built(labelled_checkpoint, ["x", "y", "z"], seed).state_dict()
        scratch = build_model(architecture, "scratch", seed).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        assert all(torch.equal(expected[name], scratch[name]) for name in CLASSIFIER)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)


def test_generic_source_names_are_no_labels(labelled_checkpoint: Path) -> None:
    source = AutoModelForSequenceClassification.from_pretrained(labelled_checkpoint)
    source.config.id2label = {index: f"LABEL_{index}" for index in range(3)}
    source.save_pretrained(labelled_checkpoint)
    generic = built(labelled_checkpoint, ["LABEL_0", "LABEL_1", "LABEL_2"], seed=9)
    assert not torch.equal(generic.classifier.weight, source.classifier.weight)


def test_dropout_reaches_every_dropout(tiny_bert: Path) -> None:
    architecture = inspect(open_checkpoint(str(tiny_bert), load_tokenizer), AutoModelForSequenceClassification, ["a", "b"], dropout=0.0)
    for init in ("scratch", "pretrained"):
        dropouts = [module.p for module in build_model(architecture, init, 0).modules() if isinstance(module, torch.nn.Dropout)]
        assert len(dropouts) > 3
        assert set(dropouts) == {0.0}


def test_bad_checkpoints(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; did you mean 'tiny-bert'"):
        open_checkpoint(str(tiny_bert.parent / "tiny-brt"), load_tokenizer)
    with pytest.raises(CheckpointError, match=r"cannot find checkpoint 'no/where'.*--embedded"):
        open_checkpoint("no/where", load_tokenizer, local_files_only=True)
    with pytest.raises(CheckpointError, match="neither a local folder nor a Hub id"):
        open_checkpoint("not an id", load_tokenizer, local_files_only=True)
    with pytest.raises(CheckpointError, match="no embedded checkpoint 'MiniLM'"):
        open_checkpoint("embedded:MiniLM", load_tokenizer)
    folder = save_tiny_bert(tmp_path / "broken")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        open_checkpoint(str(folder), load_tokenizer)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no \*.safetensors file \(pickled weights are not read\)"):
        open_checkpoint(str(folder), load_tokenizer)
    (folder / "model.safetensors").write_bytes(b"half a file")
    tiny_tokenizer = open_checkpoint(str(tiny_bert), load_tokenizer).processor
    tiny_tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        inspect(open_checkpoint(str(folder), load_tokenizer), AutoModelForSequenceClassification, ["a", "b"])
    for config in ('{"model_type": "no-such-model"}', '{"model_type": ["bert"]}', '{"model_type": "bert", "id2label": [1]}', "[" * 100_000):
        (folder / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match="no config this transformers can read"):
            open_checkpoint(str(folder), load_tokenizer)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint("./" + "a" * 300, load_tokenizer)
    with pytest.raises(CheckpointError, match="neither a local folder nor a Hub id"):
        open_checkpoint("a" * 300, load_tokenizer, local_files_only=True)
