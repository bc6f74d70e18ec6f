"""The embedded data: what their cards say."""

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hf_transfer.data.sources import EMBEDDED_FOLDER, embedded_datasets
from hf_transfer.data.tags import find_entities, to_bio


def rows_of(name: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EMBEDDED_FOLDER / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def words_of(row: dict[str, Any]) -> list[str]:
    return [word.lower() for word in (row["tokens"] if "tokens" in row else re.findall(r"\w+", row["text"]))]


def sequences(row: dict[str, Any]) -> set[tuple[str, ...]]:
    words = words_of(row)
    return {tuple(words[start : start + 4]) for start in range(len(words) - 3)}


@pytest.mark.parametrize(("name", "num_train", "num_test"), [("newsgroups", 256, 128), ("sentiment", 576, 288), ("ner", 320, 160)])
def test_splits_share_little(name: str, num_train: int, num_test: int) -> None:
    train, test = rows_of(name, "train"), rows_of(name, "test")
    assert (len(train), len(test)) == (num_train, num_test)
    assert len({json.dumps(words_of(row)) for row in [*train, *test]}) == num_train + num_test, "no row stands twice"
    seen = set().union(*map(sequences, train))
    shared = [len(sequences(row) & seen) / max(1, len(sequences(row))) for row in test]
    assert max(shared) <= 0.27
    assert np.median(shared) < 0.03
    assert (EMBEDDED_FOLDER / name / "README.md").is_file()
    assert name in embedded_datasets()


@pytest.mark.parametrize(("name", "labels"), [("newsgroups", 8), ("sentiment", 2)])
def test_labels_are_even(name: str, labels: int) -> None:
    for split in ("train", "test"):
        counts = Counter(row["label"] for row in rows_of(name, split))
        assert len(counts) == labels
        assert len(set(counts.values())) == 1


def test_entities_are_of_four_types_several_a_sentence_and_none_in_some() -> None:
    rows = rows_of("ner", "train") + rows_of("ner", "test")
    found = [find_entities(row["ner_tags"]) for row in rows]
    assert all(to_bio(row["ner_tags"]) == row["ner_tags"] and len(row["tokens"]) == len(row["ner_tags"]) for row in rows)
    types = Counter(entity.type for entities in found for entity in entities)
    assert types == {"location": 284, "person": 268, "organization": 249, "product": 193}
    sizes = Counter(map(len, found))
    assert sizes[0] == 120
    assert sum(count for size, count in sizes.items() if size >= 2) > 200
