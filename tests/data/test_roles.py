from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from hf_transfer.data.columns import read_documents
from hf_transfer.data.roles import Corpus, Examples, check_budget, check_classes, draw, fix_test
from hf_transfer.errors import DataError


def examples(labels: list[int] | np.ndarray, inputs: list[str] | None = None) -> Examples:
    return Examples(
        np.arange(len(labels)),
        inputs or [f"text {index}" for index in range(len(labels))],
        list(np.array(labels, dtype=np.int64)[:, None]),
        strata=np.array(labels, dtype=np.int64),
    )


def skewed(num_rows: int = 600, num_classes: int = 7, seed: int = 3) -> Examples:
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(num_classes))
    labels = np.concatenate([np.repeat(np.arange(num_classes), 2), rng.choice(num_classes, num_rows - 2 * num_classes, p=share)])
    texts = [f"text {index}" for index in range(num_rows)]
    for copy, original in zip(rng.permutation(num_rows)[:60], rng.permutation(num_rows)[:60], strict=True):
        texts[copy], labels[copy] = texts[original], labels[original]
    return examples(labels, texts)


def corpus_of(train: Examples, validation: Examples | None = None) -> Corpus:
    return Corpus(train, validation, examples([0, 1]), 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_budgets_hold_exactly_their_rows_and_nest(seed: int) -> None:
    corpus = corpus_of(skewed(seed=seed))
    num_classes = len(np.unique(corpus.train.strata))
    train_before: set[int] = set()
    validation_before: set[int] = set()
    for budget in [2 * num_classes, 15, 37, 128, 300, 599, 600, "all"]:
        train, validation = draw(corpus, budget, seed)
        assert len(train) + len(validation) == (600 if budget == "all" else budget)
        assert not set(train) & set(validation)
        assert train_before <= set(train)
        assert validation_before <= set(validation)
        assert set(corpus.train.strata[train]) == set(corpus.train.strata), "every class trains"
        texts = [corpus.train.inputs[row] for row in train]
        assert not set(texts) & {corpus.train.inputs[row] for row in validation}, "duplicates share a role"
        train_before, validation_before = set(train), set(validation)


def test_the_validation_share_is_a_stratified_fifth() -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [200, 100, 50, 100, 50])
    for seed in range(5):
        train, validation = draw(corpus_of(examples(labels)), "all", seed)
        assert np.bincount(labels[validation]).tolist() == [40, 20, 10, 20, 10]
        train, validation = draw(corpus_of(examples(labels)), 100, seed)
        assert len(validation) == 20
        assert np.abs(np.bincount(labels[validation], minlength=5) - [8, 4, 2, 4, 2]).max() <= 1
        assert np.abs(np.bincount(labels[train], minlength=5) - [32, 16, 8, 16, 8]).max() <= 2


def test_seeds_draw_other_rows_and_the_same_seed_the_same() -> None:
    corpus = corpus_of(skewed())
    assert np.array_equal(draw(corpus, 100, 0)[0], draw(corpus, 100, 0)[0])
    assert set(draw(corpus, 100, 0)[0]) != set(draw(corpus, 100, 1)[0])


def test_all_uses_the_datas_own_validation_split() -> None:
    corpus = corpus_of(examples([0, 1] * 20), examples([0, 1]))
    train, validation = draw(corpus, "all", 0)
    assert len(train) == 40
    assert validation is None
    assert draw(corpus, 20, 0)[1] is not None


def test_the_smallest_data_still_validates() -> None:
    train, validation = draw(corpus_of(examples([0, 0, 1, 1])), "all", 0)
    assert (len(train), len(validation)) == (3, 1)
    with pytest.raises(DataError, match="no training row can be set aside"):
        draw(corpus_of(examples([0, 0, 1, 1], ["a", "a", "b", "b"])), "all", 0)


@pytest.mark.parametrize(
    ("budget", "message"),
    [(41, "a budget of 41 rows is more than the 40"), (3, "too small for 2 classes: at least 4")],
)
def test_a_budget_the_data_cannot_fill(budget: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_budget(corpus_of(examples([0, 1] * 20)), budget)


def test_a_class_without_a_test_row_is_told() -> None:
    train = examples([0, 1, 2, 2])
    assert check_classes(Corpus(train, None, examples([0, 1]), 0, 0), ["x", "y", "z"]) == ["no test row has the label z"]
    assert check_classes(Corpus(train, None, examples([0, 1, 2]), 0, 0), ["x", "y", "z"]) == []


def test_too_few_rows_in_all() -> None:
    with pytest.raises(DataError, match="3 training rows are too few for 2 classes"):
        check_budget(corpus_of(examples([0, 1, 1])), "all")


def test_test_is_the_test_split_else_validation_else_a_fifth() -> None:
    train, validation, test = skewed(), examples([0, 1], ["v1", "v2"]), examples([1], ["t1"])
    assert fix_test({"train": train, "validation": validation, "test": test}).test is test
    without_labels = fix_test({"train": train, "validation": validation, "test": None})
    assert without_labels.test is validation
    assert without_labels.validation is None
    drawn = fix_test({"train": train})
    assert len(drawn.test) == 120
    assert sorted([*drawn.test.row_ids, *drawn.train.row_ids]) == list(range(600))
    assert not set(drawn.test.inputs) & set(drawn.train.inputs)
    assert np.array_equal(drawn.test.row_ids, fix_test({"train": train}).test.row_ids), "the same rows every time"


def test_what_is_dropped_and_what_overlaps() -> None:
    train = examples([0, 0, 1, 1, 1], ["a", "", "b", "c", ""])
    test = examples([0, 1, 0], ["b", "", "z"])
    corpus = fix_test({"train": train, "test": test})
    assert (corpus.train.inputs, corpus.dropped_rows, corpus.overlap_rows) == (["a", "b", "c"], 2, 1)
    assert corpus.train.row_ids.tolist() == [0, 2, 3], "row ids are positions in the split as loaded"
    assert len(corpus.test) == 3, "empty test rows stay"
    dropped = fix_test({"train": train, "test": test}, drop_overlap=True)
    assert (dropped.train.inputs, dropped.dropped_rows, dropped.overlap_rows) == (["a", "c"], 3, 1)
    with pytest.raises(DataError, match="no training row is left: 1 of 1 are empty"):
        fix_test({"train": examples([0], [""]), "test": test})


def test_a_sample_of_the_test_rows_is_fixed() -> None:
    splits = {"train": skewed(), "test": examples(list(range(5)) * 20)}
    sample = fix_test(splits, max_test_rows=30).test
    assert len(sample) == 30
    assert np.array_equal(sample.row_ids, fix_test(splits, max_test_rows=30).test.row_ids)
    assert len(fix_test(splits, max_test_rows=1000).test) == 100


def test_the_fingerprint_follows_every_row() -> None:
    base = fix_test({"train": examples([0, 1], ["a", "b"]), "test": examples([0], ["c"])})
    same = fix_test({"train": examples([0, 1], ["a", "b"]), "test": examples([0], ["c"])})
    other_text = fix_test({"train": examples([0, 1], ["a", "B"]), "test": examples([0], ["c"])})
    other_label = fix_test({"train": examples([0, 1], ["a", "b"]), "test": examples([1], ["c"])})
    assert base.fingerprint == same.fingerprint
    of_documents = replace(base, test=replace(base.test, documents=np.array([0])))
    assert len({base.fingerprint, other_text.fingerprint, other_label.fingerprint, of_documents.fingerprint}) == 4


def test_classes_are_checked_after_rows_were_dropped() -> None:
    names = ["x", "y", "z"]
    check_classes(fix_test({"train": examples([0, 1], ["a", "b"]), "test": examples([1], ["c"])}), names)
    only_empty = fix_test({"train": examples([0, 0, 1], ["a", "b", ""]), "test": examples([0], ["c"])})
    with pytest.raises(DataError, match=r"at least two classes, every training row is 'x' \(1 empty or overlapping rows were dropped\)"):
        check_classes(only_empty, names)
    only_overlap = fix_test({"train": examples([0, 1, 2], ["a", "b", "c"]), "test": examples([2], ["c"])}, drop_overlap=True)
    with pytest.raises(DataError, match="the test data has labels that training lacks: z"):
        check_classes(only_overlap, names)


def test_the_overlap_does_not_depend_on_the_sample() -> None:
    train, test = examples([0, 1] * 20), examples([0, 1] * 20)
    for size in (None, 1, 10):
        assert fix_test({"train": train, "test": test}, max_test_rows=size).overlap_rows == 40


def test_no_test_row_is_refused() -> None:
    with pytest.raises(DataError, match="no test row"):
        fix_test({"train": examples([0, 0, 1, 1], ["a", "a", "b", "b"])})


def test_equal_inputs_are_one_cluster_and_so_are_the_rows_of_a_document() -> None:
    rows = examples([0, 1, 0, 1], ["a", "b", "a", ""])
    assert rows.clusters.tolist() == [0, 1, 0, 2]
    of_documents = replace(rows, documents=np.array([7, 7, 8, 8]))
    assert of_documents.clusters.tolist() == [7, 7, 8, 8], "the same sentence in two documents does not join them"
    assert of_documents.take(np.array([3, 0])).clusters.tolist() == [8, 7]


def test_documents_are_found_by_their_column() -> None:
    rows = Dataset.from_dict({"text": ["x", "y", "z"], "doc": ["b", "a", "b"], "document": [1, 1, 2]})
    splits = {"train": rows, "test": rows.remove_columns("doc")}
    assert {split: found.tolist() for split, found in read_documents(splits, None, ["text"]).items()} == {
        "train": [0, 0, 1],
        "test": [0, 0, 1],
    }
    assert {split: found.tolist() for split, found in read_documents(splits, "doc", ["text"]).items()} == {"train": [1, 0, 1]}
    assert read_documents(splits, None, ["document"]) == {}, "the column is the text itself"
    with pytest.raises(DataError, match=r"no column 'docs' \(the document\); it has text, doc, document; did you mean 'doc'"):
        read_documents(splits, "docs", ["text"])
