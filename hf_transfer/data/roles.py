"""Which rows train, which choose, which test: fixed before any model sees one (design decision: test first, then draws per seed)."""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.errors import DataError, listed
from hf_transfer.run_settings import Budget

MIN_PLAIN_ROWS = 10
"""The smallest budget of rows without a class of their own."""
TEST_SEED = 20260101
"""Draws the test rows of data without a test split, and the sample of `--max-test-rows`; the same for every seed, arm and budget."""


@dataclass(frozen=True)
class Examples:
    """Rows of one role."""

    row_ids: np.ndarray
    """(B,) int64: 0-based position in the split as loaded."""
    inputs: Sequence[Any]
    """(B,) texts, pairs of texts, tuples of words, pictures, or what the task reads."""
    labels: Sequence[np.ndarray]
    """(B,) int64 class ids of each row's items, (N_i,): one of a text, one a word of a sentence."""
    strata: np.ndarray
    """(B,) int64: the class a row is drawn by; all 0 where rows have none of their own, which draws plainly."""

    documents: np.ndarray | None = None
    """(B,) int64: the document a row is from, where the data says so."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def clusters(self) -> np.ndarray:
        """(B,) int64: rows that are no independent draws hold the same number, those of one document, or else of equal inputs."""
        if self.documents is not None:
            return self.documents
        first: dict[Any, int] = {}
        return np.array([first.setdefault(value, len(first)) for value in self.inputs], dtype=np.int64)

    def take(self, index: np.ndarray) -> "Examples":
        """Give the rows at positions `index`, in that order."""
        documents = None if self.documents is None else self.documents[index]
        return Examples(
            self.row_ids[index], [self.inputs[i] for i in index], [self.labels[i] for i in index], self.strata[index], documents
        )


@dataclass(frozen=True)
class Corpus:
    """A dataset with its test rows fixed."""

    train: Examples
    """What training and validation rows are drawn from."""
    validation: Examples | None
    """The data's own validation split, used by the budget "all"."""
    test: Examples
    dropped_rows: int
    """Training rows left out: empty, or (on request) also in test."""
    overlap_rows: int
    """Training rows whose input stands in test too."""
    test_origin: str = "the test split"
    """Where the test rows come from, for a person to read."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every row's id, input, label and document, as hex digits."""
        digest = hashlib.sha256()
        for examples in (self.train, self.validation, self.test):
            if examples is not None:
                digest.update(examples.row_ids.tobytes())
                if examples.documents is not None:
                    digest.update(examples.documents.tobytes())
                for value, labels in zip(examples.inputs, examples.labels, strict=True):
                    digest.update(repr(value).encode() + labels.tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def fix_test(splits: dict[str, Examples | None], max_test_rows: int | None = None, drop_overlap: bool = False) -> Corpus:
    """Fix the test rows, then drop what must not train.

    Test is the test split; where there is none with labels, the validation split; where there is neither, a stratified fifth of the
    training rows, exact duplicates together. Empty training rows are dropped, empty test rows stay (dropping them moves the benchmark).

    Args:
        splits: "train", maybe "validation" and "test"; None for a split without labels. Equal inputs are exact
            duplicates; one that holds nothing (no character, no word) is an empty row.
        max_test_rows: Keep one fixed random sample of this many test rows.
        drop_overlap: Drop training rows whose input stands in test.

    Raises:
        DataError: No training row is left, or there is no test row.
    """
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    assert train is not None
    origin = "the test split"
    why = "the test split has no labels" if "test" in splits else "there is no test split"
    if test is None and validation is not None:
        test, validation, origin = validation, None, f"the validation split: {why}"
    elif test is None:
        origin = f"a fifth of the rows: {why}"
        in_test = _mark_fifth(train, np.random.default_rng(TEST_SEED))
        train, test = train.take(np.flatnonzero(~in_test)), train.take(np.flatnonzero(in_test))
    tested = set(test.inputs)
    if max_test_rows is not None and max_test_rows < len(test):
        test = test.take(np.sort(np.random.default_rng(TEST_SEED).permutation(len(test))[:max_test_rows]))
    empty = np.array([is_empty(value) for value in train.inputs], dtype=bool)
    overlap = np.array([value in tested for value in train.inputs], dtype=bool) & ~empty
    keep = ~(empty | overlap) if drop_overlap else ~empty
    if not keep.any():
        raise DataError(f"no training row is left: {int(empty.sum())} of {len(train)} are empty, {int(overlap.sum())} stand in test too")
    if len(test) == 0:
        same = "all rows hold the same input" if len(set(train.inputs)) == 1 else "no class has two different inputs"
        why = "the test split has no rows" if splits.get("test") is not None else "there is one row" if len(train) == 1 else same
        raise DataError(f"no test row can be set aside: {why}; give a test split, or other rows")
    return Corpus(train.take(np.flatnonzero(keep)), validation, test, int((~keep).sum()), int(overlap.sum()), origin)


def is_empty(value: Any) -> bool:
    """Say whether an input holds nothing: no character, no word."""
    return isinstance(value, (str, tuple)) and not any(value)


def check_classes(corpus: Corpus, names: Sequence[str]) -> list[str]:
    """Refuse data of one class, and labels that training lacks; after rows were dropped, which may take the last of a class.

    Args:
        corpus: With its test rows fixed.
        names: Label names, (C,).

    Returns:
        Sentences to tell: classes that no test row has.

    Raises:
        DataError: Names the labels.
    """
    trained = set(np.unique(corpus.train.strata).tolist())
    left = f" ({corpus.dropped_rows} empty or overlapping rows were dropped)" if corpus.dropped_rows else ""
    if len(trained) < 2:
        raise DataError(f"training needs at least two classes, every training row is '{names[trained.pop()]}'{left}")
    for split, examples in (("validation", corpus.validation), ("test", corpus.test)):
        unseen = set() if examples is None else set(np.unique(examples.strata).tolist()) - trained
        if unseen:
            raise DataError(
                f"the {split} data has labels that training lacks: {listed(names[label] for label in sorted(unseen))}{left}; "
                "add training rows of them, or take their rows out"
            )
    untested = sorted(trained - set(np.unique(corpus.test.strata).tolist()))
    return [f"no test row has the label {listed(names[label] for label in untested)}"] if untested else []


def check_budget(corpus: Corpus, budget: Budget) -> None:
    """Refuse a budget that the data cannot fill, or that cannot hold two rows a class (10 rows, where rows have no class).

    Raises:
        DataError: Says what the data has.
    """
    num_classes = len(np.unique(corpus.train.strata))
    least, what = (2 * num_classes, f"for {num_classes} classes") if num_classes > 1 else (MIN_PLAIN_ROWS, "to train and validate on")
    rows = len(corpus.train)
    if budget == "all":
        if rows < least:
            raise DataError(f"{rows} training rows are too few {what}: at least {least} are needed")
    elif budget > rows:
        raise DataError(
            f"a budget of {budget} rows is more than the {rows} training rows there are; leave --budgets out to use all of them"
        )
    elif budget < least:
        raise DataError(f"a budget of {budget} rows is too small {what}: at least {least} are needed")


def draw(corpus: Corpus, budget: Budget, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw the training and validation rows of one budget and seed.

    A fifth of the budget validates, stratified as far as it goes; the rest trains, one row a class first. A budget holds exactly that
    many rows, its rows lie inside those of every larger budget of the same seed, and exact duplicates never stand in both roles.
    "all" is every training row, with the data's own validation split where there is one.

    Args:
        corpus: Rows to draw from.
        budget: Rows, or "all".
        seed: Draws the rows.

    Returns:
        Positions in `corpus.train` that train, and that validate (None: the data's own validation split does).

    Raises:
        DataError: No row is left to validate on.
    """
    if budget == "all" and corpus.validation is not None:
        return np.arange(len(corpus.train)), None
    rng = np.random.default_rng([seed, 0])
    in_validation = _mark_fifth(corpus.train, rng)
    validation = _in_stratified_order(np.flatnonzero(in_validation), corpus.train.strata, rng)
    train = _in_stratified_order(np.flatnonzero(~in_validation), corpus.train.strata, rng)
    if len(validation) == 0:
        raise DataError("no training row can be set aside for validation: every class holds one input, repeated or alone")
    is_first = np.zeros(len(train), dtype=bool)
    is_first[np.unique(corpus.train.strata[train], return_index=True)[1]] = True
    train = np.concatenate([train[is_first], train[~is_first]])
    num_rows = len(corpus.train) if budget == "all" else budget
    num_validation = max(min(max(1, num_rows // 5), len(validation)), num_rows - len(train))
    return train[: num_rows - num_validation], validation[:num_validation]


def _in_stratified_order(rows: np.ndarray, strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle rows so that every prefix holds the classes in about the proportions of the whole.

    The i-th of a class's n rows stands at (i + u) / n of the way, u drawn once a class.

    Args:
        rows: Positions to shuffle, (N,).
        strata: Classes of all positions, (B,).
        rng: Draws the order.

    Returns:
        The same positions, (N,).
    """
    place = np.empty(len(rows))
    for stratum in np.unique(strata[rows]):
        members = rng.permutation(np.flatnonzero(strata[rows] == stratum))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return rows[np.argsort(place, kind="stable")]


def _mark_fifth(examples: Examples, rng: np.random.Generator) -> np.ndarray:
    """Mark a stratified fifth of the rows; exact duplicates are marked together, and every class keeps a text unmarked
    (unless all its texts stand under another label too).

    Each class gives a fifth of its rows, rounded so that the sum is a fifth of all (largest remainders first, ties by lot),
    as near as whole groups of duplicates come to it.

    Args:
        examples: Rows; a group of duplicates belongs to the class of its first row.
        rng: Draws the groups.

    Returns:
        (B,) bool.
    """
    group_of: dict[Any, int] = {}
    groups = np.array([group_of.setdefault(value, len(group_of)) for value in examples.inputs])
    group_sizes = np.bincount(groups)
    group_strata = examples.strata[np.unique(groups, return_index=True)[1]]
    classes, class_of = np.unique(group_strata, return_inverse=True)
    fifths = np.bincount(class_of, weights=group_sizes) / 5
    # A class of one text has none to give.
    fifths[np.bincount(class_of) < 2] = 0
    quotas = np.floor(fifths).astype(int)
    missing = max(1, len(examples) // 5) - quotas.sum()
    by_remainder = np.lexsort((rng.random(len(classes)), quotas - fifths))
    quotas[[index for index in by_remainder if fifths[index] > 0][:missing]] += 1
    marked = np.zeros(len(group_sizes), dtype=bool)
    for index, quota in enumerate(quotas):
        left = quota
        for group in rng.permutation(np.flatnonzero(class_of == index))[1:]:
            if group_sizes[group] <= left:
                marked[group] = True
                left -= group_sizes[group]
    return marked[groups]
