"""Tiny checkpoints and datasets, made here: the tests need neither network nor GPU nor anything beside the project."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny matrices: a second thread only waits for the first.
os.environ["OMP_NUM_THREADS"] = "1"

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("fast", derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
# What `scripts/test --slow` asks for (--hypothesis-profile): other examples each time; a failure prints its seed.
settings.register_profile("long", settings.get_profile("fast"), derandomize=False, max_examples=2000, print_blob=True)

TOPICS = {
    "boats": "anchor sail harbour mast rudder tide deck rope keel crew",
    "bread": "flour oven yeast crust dough loaf knead rise bake grain",
    "chess": "pawn queen knight rook castle check mate board clock opening",
}
Run = Callable[..., tuple[int, str, str]]

FILLERS = ["the", "a", "and", "of", "with", "my", "is", "was", "not", "very", "we", "you", "they", "this", "that", "for"]


def pytest_configure(config: pytest.Config) -> None:
    """Take the fast profile where no other is asked for; a test module that imports this one again must not."""
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("fast")


def make_rows(num_rows: int, seed: int = 0, topics: tuple[str, ...] = tuple(TOPICS)) -> list[dict[str, str]]:
    """Make labelled texts of 3 to 40 words whose topic words tell the label."""
    rng = random.Random(seed)
    rows = []
    for index in range(num_rows):
        label = topics[index % len(topics)]
        words = [rng.choice(TOPICS[label].split() if rng.random() < 0.4 else FILLERS) for _ in range(rng.randint(3, 40))]
        rows.append({"text": " ".join(words) + f" {index}", "label": label})
    rng.shuffle(rows)
    return rows


def make_sentences(num_rows: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Make sentences of 2 to 25 words in which two kinds of names, of one to three words, stand among fillers; some hold none."""
    rng = random.Random(seed)
    rows = []
    for index in range(num_rows):
        words, tags = [], []
        while len(words) < rng.randint(2, 25):
            if rng.random() < 0.2:
                kind = rng.choice(["boats", "chess"])
                name = [rng.choice(TOPICS[kind].split()) for _ in range(rng.randint(1, 3))]
                words += name
                tags += [f"{'I' if place else 'B'}-{kind}" for place in range(len(name))]
            words.append(rng.choice(FILLERS))
            tags.append("O")
        rows.append({"tokens": [*words, str(index)], "ner_tags": [*tags, "O"]})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write an object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows with their keys as header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_tiny_bert(folder: Path, **settings: object) -> Path:
    """Save a random two-block BERT of width 32 with a word-piece tokenizer, as the Hub would hold it."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    from hf_transfer.models.build import quiet_loading

    words = sorted({word for words in TOPICS.values() for word in words.split()} | set(FILLERS))
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        *"0123456789",
        *[f"##{digit}" for digit in range(10)],
    ]
    folder.mkdir(parents=True)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1234)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    with quiet_loading():
        BertModel(BertConfig(vocab_size=len(vocabulary), **(shape | settings))).save_pretrained(folder)
    return folder


def make_photos(folder: Path, num_photos: int, kinds: tuple[str, ...] = ("disc", "stripes"), seed: int = 0) -> Path:
    """Write JPEGs of 40 x 32 pixels into a folder a kind: one shape each ("disc", "ring", "stripes" or "checks"), anywhere, on noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng([seed, len(kinds)])
    y, x = np.mgrid[:32, :40]
    for index in range(num_photos):
        kind = kinds[index % len(kinds)]
        middle_x, middle_y, size = rng.uniform(12, 28), rng.uniform(12, 20), rng.uniform(7, 11)
        distance = np.hypot(x - middle_x, y - middle_y)
        inside = np.maximum(abs(x - middle_x), abs(y - middle_y)) < size
        shape = {
            "disc": distance < size,
            "ring": (distance < size) & (distance > 0.6 * size),
            "stripes": inside & ((x // 3) % 2 == 0),
            "checks": inside & ((x // 3 + y // 3) % 2 == 0),
        }[kind]
        background, color = rng.uniform(0, 120, 3), rng.uniform(140, 255, 3)
        pixels = np.where(shape[..., None], color, background) + rng.normal(0, 12, (32, 40, 3))
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / kind / f"{index}.jpg", quality=90)
    return folder


def save_image_checkpoint(folder: Path, config: Any, size: int) -> Path:
    """Save a random image encoder of a config, without a classifier, with a processor that resizes to `size` pixels."""
    import torch
    from transformers import AutoModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from hf_transfer.models.build import quiet_loading

    torch.manual_seed(1234)
    with quiet_loading():
        AutoModel.from_config(config).save_pretrained(folder)
        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def save_tiny_vit(folder: Path, **settings: object) -> Path:
    """Save a random two-block ViT of width 32 for images of 16 x 16 pixels."""
    from transformers import ViTConfig

    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 4,
    }
    return save_image_checkpoint(folder, ViTConfig(**(shape | settings)), 16)


def save_tiny_resnet(folder: Path) -> Path:
    """Save a random ResNet of two stages for images of 32 x 32 pixels: a CNN with batch norms."""
    from transformers import ResNetConfig

    shape: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    return save_image_checkpoint(folder, ResNetConfig(**shape), 32)


def save_byte_level_tokenizer(folder: Path, like: str) -> None:
    """Save a byte-level tokenizer that keeps a word's blank with it, as "roberta" or as "modernbert" come."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([" ".join([*FILLERS, *TOPICS.values()])] * 3, trainer)
    if like == "roberta":
        model = json.loads(backend.to_str())["model"]
        tokenizer = RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the fixtures that tests share, and what they start, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TRANSFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("HF_TRANSFER_CACHE_GIB", raising=False)
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test, and the processes it starts, a cache of its own -> its folder."""
    folder = tmp_path_factory.mktemp("cache") / "hf_transfer"
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", params=["bert", "roberta", "modernbert"])
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a tokenizer of each kind: word pieces, and two byte-level ones."""
    folder = tmp_path_factory.mktemp("tokenizers") / request.param
    if request.param == "bert":
        return save_tiny_bert(folder)
    save_byte_level_tokenizer(folder, request.param)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny random BERT encoder without a classifier."""
    return save_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny random ViT without a classifier."""
    return save_tiny_vit(tmp_path_factory.mktemp("checkpoints") / "tiny-vit")


@pytest.fixture(scope="session")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with train (90 photos of discs, stripes and rings) and test (31)."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, (split, num_photos) in enumerate((("train", 90), ("test", 31))):
        make_photos(folder / split, num_photos, ("disc", "stripes", "ring"), seed)
    return folder


@pytest.fixture(scope="session")
def topics_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with train.csv (90 rows, 3 labels) and test.csv (31 rows)."""
    folder = tmp_path_factory.mktemp("topics")
    write_csv(folder / "train.csv", make_rows(90, seed=1))
    write_csv(folder / "test.csv", make_rows(31, seed=2))
    return folder


@pytest.fixture(scope="session")
def names_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with train.jsonl (60 sentences) and test.jsonl (31), of words and tags."""
    folder = tmp_path_factory.mktemp("names")
    write_jsonl(folder / "train.jsonl", make_sentences(60, seed=1))
    write_jsonl(folder / "test.jsonl", make_sentences(31, seed=2))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a function that runs `hf-transfer` in an empty folder -> (exit code, standard output, standard error)."""
    from hf_transfer import cli

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.run_cli([str(word) for word in words])
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


def refused(result: tuple[int, str, str]) -> str:
    """Check that a command ended as a user's mistake does, and give its sentence."""
    code, out, err = result
    assert code == 2, err
    lines = [line for line in err.splitlines() if not line.startswith("the Hub does not answer")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert out == ""
    assert list(Path.cwd().iterdir()) == [], "nothing is written"
    return lines[0]


def save_untrained(kind: str, checkpoint: Path, labels: list[str], folder: Path, **settings: object) -> Path:
    """Save a model of random weights as a cell of a run would: what predicting needs, without a training."""
    import torch

    from hf_transfer.models.build import build_model, inspect
    from hf_transfer.models.checkpoint import open_checkpoint
    from hf_transfer.models.saved import Sidecar, save_model
    from hf_transfer.task_configs import TASKS
    from hf_transfer.tasks import functions_of

    task = TASKS[kind](**settings)
    functions = functions_of(task)
    opened = open_checkpoint(str(checkpoint), functions.load_processor)
    model = build_model(inspect(opened, functions.AUTO_MODEL, labels), "pretrained", seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            # The answers of freshly drawn weights hardly depend on the input.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    values = {"kind": kind, **settings}
    save_model(model, opened.processor, Sidecar(values, labels, opened.base_id, opened.revision, opened.sha256), folder)
    return folder


@pytest.fixture(scope="session")
def topics_model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a model that classifies texts; it knows nothing."""
    return save_untrained("text-classification", tiny_bert, list(TOPICS), tmp_path_factory.mktemp("models") / "topics", max_length=64)


@pytest.fixture(scope="session")
def names_model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a model that finds entities in words; it knows nothing."""
    tags = ["O", "B-boats", "I-boats", "B-chess", "I-chess"]
    return save_untrained("token-classification", tiny_bert, tags, tmp_path_factory.mktemp("models") / "names", max_length=32)
