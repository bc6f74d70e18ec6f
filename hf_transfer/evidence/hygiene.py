"""What a run's data is like, before any training: its `hygiene.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_transfer.data.hygiene import Conflict, count_duplicates, count_lengths, find_conflicts, length_edges
from hf_transfer.data.near_duplicates import SHINGLE_WORDS, THRESHOLD, NearSearch, find_near_duplicates
from hf_transfer.data.roles import Examples, is_empty
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evidence.report.formats import shorten
from hf_transfer.evidence.study import Study

MAX_SHOWN = 20
"""Pairs and conflicts that are listed; all are counted."""
EXCERPT = 300
"""Characters of a text that are shown."""
NUM_DRAWS, DRAW_SEED = 5, 20260103
"""Of the random floor."""

# pHash of 64 bits put 86 of 1,000 test digits of MNIST within 2 bits of one of 4,000 training digits (2026-11-21).
FILES_ONLY = (
    "an exact duplicate is the same image file, byte for byte; near duplicates of images are not searched: perceptual hashes take "
    "different small images of one class for the same"
)


def describe_data(study: Study, private: bool) -> dict[str, Any]:
    """Give what `hygiene.json` holds.

    Rows are those the run uses. The empty rows of training were dropped before and are no part of its `rows`; those of test are predicted
    like any other. Duplicates, conflicts and overlap leave empty rows out.

    Args:
        study: Data with fixed roles.
        private: Hold no text of the data.
    """
    corpus = study.corpus
    splits = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    filled = {split: examples for split, examples in splits.items() if examples is not None}
    conflicts = find_conflicts(filled)
    return {
        "private": private,
        "splits": _describe_splits(study, filled, conflicts),
        "overlap": _describe_overlap(study, private),
        "conflicts": _list_conflicts(study, filled, conflicts, private),
        "floors": measure_floors(study),
    }


def overlap_notes(hygiene: Mapping[str, Any]) -> list[str]:
    """Give sentences to tell before any number: training rows that stand in test nearly, and labels that contradict each other."""
    overlap, told = hygiene["overlap"], []
    if overlap["near_rows"]:
        of_sample = f"of {overlap['searched_train_rows']:,} looked at, " if is_sampled(hygiene) else ""
        told.append(
            f"{overlap['near_rows']:,} training rows nearly stand in test too ({of_sample}similarity of at least {overlap['threshold']})"
        )
    if conflicting := sum(split["conflicting_rows"] for split in hygiene["splits"].values()):
        told.append(f"{conflicting:,} rows hold an input that stands under another label too")
    return told


def is_sampled(hygiene: Mapping[str, Any]) -> bool:
    """Say whether near duplicates were searched in a sample of the rows."""
    overlap, splits = hygiene["overlap"], hygiene["splits"]
    looked_at = overlap["searched_train_rows"], overlap["searched_test_rows"]
    return overlap["near_rows"] is not None and looked_at != (splits["train"]["rows"], splits["test"]["rows"])


def excerpt(text: str) -> str:
    """Give a text, or its beginning where it is long."""
    return shorten(text, EXCERPT)


def measure_floors(study: Study) -> dict[str, dict[str, float]]:
    """Measure on the test rows what needs no model: always the most frequent training label, and labels drawn by their training frequency.

    Both are made legal as a model's predictions are, and state the training frequencies as their probabilities; "random" is the mean over
    a few fixed draws.
    """
    names, layout = study.labels, study.test.layout
    counts = np.bincount(study.train.labels, minlength=len(names))
    frequencies = (counts / counts.sum()).astype(np.float32)
    probabilities = np.tile(frequencies, (layout.num_items, 1))

    def measured(chosen: np.ndarray) -> dict[str, float]:
        certain = np.zeros_like(probabilities)
        certain[np.arange(len(chosen)), chosen] = 1
        predictions = study.task.decode(certain, layout.first_item, names)
        return study.metrics.of(Predictions(names, study.test.labels, predictions, probabilities, layout.first_item))

    rng = np.random.default_rng(DRAW_SEED)
    draws = [measured(rng.choice(len(names), size=layout.num_items, p=counts / counts.sum())) for _ in range(NUM_DRAWS)]
    return {
        "majority": measured(np.full(layout.num_items, counts.argmax())),
        "random": {name: float(np.mean([draw[name] for draw in draws])) for name in study.metrics.names},
    }


def _describe_splits(study: Study, splits: Mapping[str, Examples], conflicts: Sequence[Conflict]) -> dict[str, Any]:
    corpus, task = study.corpus, study.task
    lengths = {split: [task.length_of(value) for value in examples.inputs] for split, examples in splits.items()}
    together = [length for of_split in lengths.values() for length in of_split]
    edges = length_edges(min(together), max(together))
    empty = {split: sum(map(is_empty, examples.inputs)) for split, examples in splits.items()}
    empty["train"] = corpus.dropped_rows - (corpus.overlap_rows if study.recipe.data.drop_overlap else 0)
    return {
        split: {
            "rows": len(examples),
            "empty_rows": empty[split],
            "duplicate_rows": count_duplicates(examples),
            "conflicting_rows": sum(len(conflict.positions.get(split, ())) for conflict in conflicts),
            "label_counts": task.count_labels(examples.labels, study.labels),
            "lengths": {"unit": task.LENGTH_UNIT, "edges": edges.tolist(), "counts": count_lengths(lengths[split], edges)},
        }
        for split, examples in splits.items()
    }


def _describe_overlap(study: Study, private: bool) -> dict[str, Any]:
    train, test = study.corpus.train, study.corpus.test
    train_texts, test_texts = ([study.task.to_text(value) for value in examples.inputs] for examples in (train, test))
    is_text = None not in train_texts
    search = find_near_duplicates(train_texts, test_texts) if is_text else NearSearch([], 0, 0)
    place_in_test: dict[Any, int] = {}
    for position, value in enumerate(test.inputs):
        place_in_test.setdefault(value, position)
    near = [pair for pair in search.pairs if train.inputs[pair.train] not in place_in_test]
    near.sort(key=lambda pair: (-pair.similarity, pair.train))
    # What is nearly the same is what a person has to judge, so the exact duplicates come behind.
    pairs = [(pair.train, pair.test, pair.similarity) for pair in near]
    pairs += [
        (position, place_in_test[value], 1.0)
        for position, value in enumerate(train.inputs)
        if value in place_in_test and not is_empty(value)
    ]
    return {
        "exact_rows": study.corpus.overlap_rows,
        "near_rows": len(near) if is_text else None,
        "threshold": THRESHOLD if is_text else None,
        "method": _describe_search(study, search) if is_text else FILES_ONLY,
        "searched_train_rows": search.searched_train,
        "searched_test_rows": search.searched_test,
        "pairs": [
            {
                "train_row": int(train.row_ids[at_train]),
                "test_row": int(test.row_ids[at_test]),
                "similarity": float(similarity),
                "train_text": None if private or not is_text else excerpt(train_texts[at_train]),
                "test_text": None if private or not is_text else excerpt(test_texts[at_test]),
            }
            for at_train, at_test, similarity in pairs[:MAX_SHOWN]
        ],
    }


def _describe_search(study: Study, search: NearSearch) -> str:
    sampled = search.searched_train < len(study.train) or search.searched_test < len(study.test)
    return (
        f"Jaccard similarity of at least {THRESHOLD} between sets of {SHINGLE_WORDS}-word shingles, folded for case, blanks and "
        f"punctuation; candidates by MinHash{', in a fixed random sample of the rows' if sampled else ''}"
    )


def _list_conflicts(study: Study, splits: Mapping[str, Examples], conflicts: Sequence[Conflict], private: bool) -> list[dict[str, Any]]:
    """List conflicting inputs, one entry for each split that holds it; `labels` are those of all splits."""
    entries = []
    for conflict in conflicts[:MAX_SHOWN]:
        labels = [excerpt(" ".join(study.labels[label] for label in of_row)) for of_row in conflict.labels]
        text = study.task.to_text(conflict.value)
        shown = None if private or text is None else excerpt(text)
        entries += [
            {"split": split, "row_ids": splits[split].row_ids[positions].tolist(), "labels": labels, "text": shown}
            for split, positions in conflict.positions.items()
        ]
    return entries[:MAX_SHOWN]
