"""Every tuning of both text tasks on every kind of encoder: what trains, what moves, and the same model in a fresh process."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

import hf_transfer as ht
from hf_transfer.errors import ConfigError
from hf_transfer.evidence.arms import build_arm, check_arm
from hf_transfer.evidence.study import check_reading
from hf_transfer.models.build import inspect, quiet_loading
from hf_transfer.models.checkpoint import open_checkpoint
from hf_transfer.models.saved import Sidecar, save_model
from hf_transfer.models.tuning import freeze_unused, set_training_mode
from hf_transfer.tasks import functions_of
from hf_transfer.tasks.items import Layout, item_losses, lay_out
from hf_transfer.tasks.tokenizers import load_tokenizer, most_tokens
from tests.conftest import make_rows, make_sentences, save_byte_level_tokenizer, save_tiny_bert

SHAPE: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SHAPE, max_position_embeddings=64),
    "roberta": RobertaConfig(**SHAPE, max_position_embeddings=64, type_vocab_size=1),
    "distilbert": DistilBertConfig(vocab_size=300, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64),
    "deberta": DebertaV2Config(
        **SHAPE, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0, pooler_hidden_size=32
    ),
    "modernbert": ModernBertConfig(
        **SHAPE, max_position_embeddings=64, cls_token_id=0, sep_token_id=2, bos_token_id=0, eos_token_id=2, pad_token_id=1
    ),
    "electra": ElectraConfig(**SHAPE, embedding_size=32, max_position_embeddings=64),
    "bart": BartConfig(
        vocab_size=300,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    ),
}
BYTE_LEVEL = {"roberta": "roberta", "bart": "roberta", "modernbert": "modernbert"}
TUNINGS: dict[str, dict[str, Any]] = {"full": {}, "head": {}, "top": {"num_blocks": 1}, "lora": {}}
TEXTS, TAGS = ht.TextClassification(max_length=48), ht.TokenClassification(max_length=24)
LABELS = {TEXTS.kind: ["boats", "bread", "chess"], TAGS.kind: ["O", "B-boats", "I-boats", "B-chess", "I-chess"]}
CASES = [(task, name, tuning) for task in (TEXTS, TAGS) for name in CONFIGS for tuning in TUNINGS if (task, name) != (TAGS, "bart")]

# What the fresh process runs: every saved model's logits and labels, from its folder alone.
RELOAD = """
import json, sys
import hf_transfer as ht
from tests.models.test_architectures import encoded, logits_of
found = {}
for folder, base in json.loads(sys.argv[1]):
    model = ht.load(folder, base=base)
    layout = encoded(model.saved.task, model.saved.processor)
    found[folder] = {"logits": logits_of(model.saved.model, model.saved.task, layout, model.saved.processor).tolist(),
                     "labels": model.labels, "config": list(model.saved.model.config.id2label.values())}
print(json.dumps(found))
"""


def encoded(task: Any, tokenizer: Any) -> Layout:
    """Encode a few rows; of sentences, a long one has several windows."""
    texts = [row["text"] for row in make_rows(6)]
    words = [tuple(row["tokens"]) for row in make_sentences(5)] + [("sail", "keel", "anchor") * 10]
    return lay_out(functions_of(task).encode(tokenizer, texts if task.kind == TEXTS.kind else words, task))


def logits_of(model: torch.nn.Module, task: Any, layout: Layout, tokenizer: Any) -> np.ndarray:
    functions = functions_of(task)
    with torch.no_grad():
        arguments = functions.collate(layout.windows, tokenizer)
        return functions.item_logits(model.eval()(**arguments).logits, layout.windows).numpy()


@dataclass(frozen=True)
class Trained:
    """What training one case found."""

    head: frozenset[str]
    output_layer: frozenset[str]
    trainable: set[str]
    unused: list[str]
    moved: set[str]
    every: set[str]
    logits: np.ndarray
    folder: Path
    base: str


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give a checkpoint of each encoder alone, as pretraining leaves it, with a tokenizer of its kind."""
    folders = {}
    for name, config in CONFIGS.items():
        folders[name] = save_tiny_bert(tmp_path_factory.mktemp("architectures") / name)
        if name in BYTE_LEVEL:
            for old in folders[name].iterdir():
                old.unlink()
            save_byte_level_tokenizer(folders[name], BYTE_LEVEL[name])
        torch.manual_seed(5)
        with quiet_loading():
            AutoModel.from_config(config).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def trained(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Trained]:
    """Train every case for two updates and save it."""
    root = tmp_path_factory.mktemp("trained")
    return {
        (task.kind, name, tuning): train_case(task, checkpoints[name], tuning, root / f"{task.kind}-{name}-{tuning}")
        for task, name, tuning in CASES
    }


def train_case(task: Any, checkpoint_folder: Path, tuning: str, folder: Path) -> Trained:
    functions = functions_of(task)
    checkpoint = open_checkpoint(str(checkpoint_folder), functions.load_processor)
    tokenizer = checkpoint.processor
    architecture = inspect(checkpoint, functions.AUTO_MODEL, LABELS[task.kind])
    arm = ht.Arm(tuning=tuning, learning_rate=1e-3, num_epochs=1, **TUNINGS[tuning])
    check_arm(architecture, arm, ht.TrainingConfig(), functions.PEFT_TASK_TYPE)
    model = build_arm(architecture, arm, 0, functions.PEFT_TASK_TYPE)
    layout = encoded(task, tokenizer)
    arguments = functions.collate(layout.windows, tokenizer)
    unused = freeze_unused(model, functions.collate(layout.windows[:1], tokenizer))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_training_mode(model)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    labels = torch.arange(layout.num_items) % len(LABELS[task.kind])
    for _ in range(2):
        logits = functions.item_logits(model(**arguments).logits, layout.windows)
        item_losses(logits, labels[np.concatenate(layout.items)]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sidecar = Sidecar(dataclasses.asdict(task), LABELS[task.kind], checkpoint.base_id, checkpoint.revision, checkpoint.sha256)
    save_model(model, tokenizer, sidecar, folder)
    return Trained(
        head=architecture.head,
        output_layer=architecture.output_layer,
        trainable=trainable,
        unused=unused,
        moved={name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])},
        every=set(before),
        logits=logits_of(model, task, layout, tokenizer),
        folder=folder,
        base=str(checkpoint_folder),
    )


@pytest.mark.parametrize(("task", "name", "tuning"), CASES, ids=[f"{task.kind}-{name}-{tuning}" for task, name, tuning in CASES])
def test_only_what_should_train_trains_and_moves(trained: dict[Any, Trained], task: Any, name: str, tuning: str) -> None:
    case = trained[task.kind, name, tuning]
    plain = {key.replace("base_model.model.", "").replace("modules_to_save.default.", "") for key in case.trainable if ".lora_" not in key}
    assert case.output_layer
    assert case.output_layer <= case.head
    if tuning == "full":
        assert case.trainable | set(case.unused) == case.every
    elif tuning == "top":
        assert plain > case.head
        assert len(plain) < len(case.every)
    else:
        assert plain == case.head
        assert any(".lora_" in key for key in case.trainable) == (tuning == "lora")
    assert case.moved <= case.trainable
    # A LoRA update leaves A alone while B is 0, and a dead unit may stay; the head always moves.
    last = {
        key for key in case.trainable if key.replace("base_model.model.", "").replace("modules_to_save.default.", "") in case.output_layer
    }
    assert last
    assert last <= case.moved
    assert len(case.moved) > 0.9 * len(case.trainable - {key for key in case.trainable if ".lora_A" in key})


def test_a_fresh_process_gives_the_same_logits_and_label_names(trained: dict[Any, Trained]) -> None:
    folders = [(str(case.folder), case.base if key[2] == "lora" else None) for key, case in trained.items()]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, json.dumps(folders)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(CASES)
    for (kind, _, _), case in trained.items():
        reloaded = found[str(case.folder)]
        assert np.abs(np.array(reloaded["logits"]) - case.logits).max() < 1e-6, case.folder.name
        assert reloaded["labels"] == reloaded["config"] == LABELS[kind]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_length_the_model_cannot_read_is_found_by_trying(checkpoints: dict[str, Path], name: str) -> None:
    checkpoint = open_checkpoint(str(checkpoints[name]), load_tokenizer)
    architecture = inspect(checkpoint, functions_of(TEXTS).AUTO_MODEL, ["a", "b"])
    assert most_tokens(checkpoint.processor, checkpoint.config) == 64
    check_reading(architecture, ht.TextClassification(max_length=62))
    if name == "roberta":
        # Its positions start behind the padding's, which neither its config nor its tokenizer says.
        with pytest.raises(ConfigError, match="cannot read max_length 64 tokens .*lower --max-length"):
            check_reading(architecture, ht.TextClassification(max_length=64))
    else:
        check_reading(architecture, ht.TextClassification(max_length=64))
