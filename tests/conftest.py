"""Tiny checkpoints and datasets, made here: the tests need neither network nor GPU nor anything beside the project."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny matrices: a second thread only waits for the first.
os.environ["OMP_NUM_THREADS"] = "1"

import csv
import random
from pathlib import Path

import pytest

TOPICS = {
    "boats": "anchor sail harbour mast rudder tide deck rope keel crew",
    "bread": "flour oven yeast crust dough loaf knead rise bake grain",
    "chess": "pawn queen knight rook castle check mate board clock opening",
}
FILLERS = ["the", "a", "and", "of", "with", "my", "is", "was", "not", "very", "we", "you", "they", "this", "that", "for"]


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


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny random BERT encoder without a classifier."""
    return save_tiny_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture(scope="session")
def topics_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with train.csv (90 rows, 3 labels) and test.csv (31 rows)."""
    folder = tmp_path_factory.mktemp("topics")
    write_csv(folder / "train.csv", make_rows(90, seed=1))
    write_csv(folder / "test.csv", make_rows(31, seed=2))
    return folder
