"""Every tuning on every kind of text encoder: what trains, what moves, and the same logits after saving and loading."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from hf_transfer.errors import ConfigError
from hf_transfer.evidence.study import build_arm, check_arm, check_max_length
from hf_transfer.models.build import inspect, quiet_loading
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.saved import Sidecar, load_saved, save_model
from hf_transfer.models.tuning import set_training_mode
from hf_transfer.recipe import Arm, TextClassification
from tests.conftest import save_tiny_bert

SHAPE = {"vocab_size": 71, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "pad_token_id": 0}
CONFIGS: dict[str, PretrainedConfig] = {
    "roberta": RobertaConfig(**SHAPE, max_position_embeddings=64),
    "distilbert": DistilBertConfig(vocab_size=71, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64, pad_token_id=0),
    "deberta": DebertaV2Config(**SHAPE, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": ModernBertConfig(**SHAPE, max_position_embeddings=64, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
    "bart": BartConfig(
        vocab_size=71,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    ),
    "electra": ElectraConfig(**SHAPE, embedding_size=32, max_position_embeddings=64),
}
TUNINGS = {"full": {}, "head": {}, "top": {"num_blocks": 1}, "lora": {}}
INPUTS = {
    "input_ids": torch.tensor([[2, 9, 10, 11, 3], [2, 12, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a checkpoint of the encoder alone, as pretraining leaves it."""
    folder = save_tiny_bert(tmp_path_factory.mktemp("architectures") / request.param)
    torch.manual_seed(5)
    with quiet_loading():
        model = AutoModelForSequenceClassification.from_config(CONFIGS[request.param])
        model.base_model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tuning", list(TUNINGS))
def test_a_tuning_trains_what_it_should_and_comes_back(folder: Path, tuning: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    architecture = inspect(checkpoint, AutoModelForSequenceClassification, ["a", "b", "c"])
    assert architecture.output_layer
    assert architecture.output_layer <= architecture.head
    arm = Arm(tuning=tuning, learning_rate=1e-3, num_epochs=1, **TUNINGS[tuning])
    check_arm(architecture, arm, "SEQ_CLS")
    model = build_arm(architecture, arm, 0, "SEQ_CLS")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    plain_names = {
        name.replace("base_model.model.", "").replace("modules_to_save.default.", "") for name in trainable if ".lora_" not in name
    }
    if tuning in ("head", "lora"):
        assert plain_names == architecture.head
    elif tuning == "top":
        assert plain_names > architecture.head
    assert len(trainable) < len(list(model.parameters())) or tuning == "full"

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_training_mode(model)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    for _ in range(2):
        torch.nn.functional.cross_entropy(model(**INPUTS).logits, torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trainable
    assert {name for name in trainable if "classifier" in name} <= moved

    sidecar = Sidecar(TextClassification().__dict__, ["a", "b", "c"], checkpoint.base_id, checkpoint.revision, checkpoint.sha256)
    save_model(model, checkpoint.tokenizer, sidecar, tmp_path / "model")
    loaded = load_saved(str(tmp_path / "model"), base=str(folder) if tuning == "lora" else None).model
    with torch.no_grad():
        assert torch.allclose(loaded(**INPUTS).logits, model.eval()(**INPUTS).logits, atol=1e-6)


def test_a_length_the_model_cannot_read_is_found_by_trying(folder: Path) -> None:
    architecture = inspect(open_checkpoint(str(folder)), AutoModelForSequenceClassification, ["a", "b"])
    assert architecture.checkpoint.max_length == 64
    check_max_length(architecture, TextClassification(max_length=62))
    if folder.name == "roberta":
        # Its positions start at 2, which neither its config nor its tokenizer says.
        with pytest.raises(ConfigError, match="cannot read max_length 64 tokens .*lower --max-length"):
            check_max_length(architecture, TextClassification(max_length=64))
    else:
        check_max_length(architecture, TextClassification(max_length=64))
