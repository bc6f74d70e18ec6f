from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.hygiene import count_duplicates, count_lengths, find_conflicts, length_edges
from hf_transfer.data.near_duplicates import THRESHOLD, find_near_duplicates
from hf_transfer.data.roles import Corpus, Examples, check_budget, draw, fix_test, is_empty
from tests.fuzz.strategies import result_or_sentence, wild_texts

inputs = st.sampled_from(["", "a", "b", "c", "d"]) | st.integers(0, 60).map(str)


def examples(rows: list[tuple[str, int]], has_classes: bool = True) -> Examples:
    classes = np.array([label for _, label in rows], dtype=np.int64)
    strata = classes if has_classes else np.zeros_like(classes)
    return Examples(np.arange(len(rows)), [value for value, _ in rows], list(classes[:, None]), strata)


rows = st.one_of(
    st.lists(st.tuples(inputs, st.integers(0, 2)), min_size=1, max_size=50),
    st.integers(10, 60).map(lambda number: [(str(row), row % 3) for row in range(number)]),
)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[dict[str, Examples | None], int | None, bool]:
    has_classes = draw(st.booleans())
    splits: dict[str, Examples | None] = {"train": examples(draw(rows), has_classes)}
    for split in ("validation", "test"):
        if draw(st.booleans()):
            splits[split] = draw(st.none() | rows.map(lambda found: examples(found, has_classes)))
    return splits, draw(st.none() | st.integers(1, 20)), draw(st.booleans())


@given(drawn=corpora())
def test_test_is_fixed_and_no_row_is_lost_or_counted_twice(drawn: tuple[dict[str, Examples | None], int | None, bool]) -> None:
    splits, max_test_rows, drop_overlap = drawn
    corpus = result_or_sentence(lambda: fix_test(*drawn))
    if corpus is None:
        return
    train = splits["train"]
    assert train is not None
    own_test = splits.get("test") or splits.get("validation")
    whole = result_or_sentence(lambda: fix_test(splits, None, drop_overlap))
    assert whole is not None and (max_test_rows is None or len(corpus.test) == min(max_test_rows, len(whole.test)))
    assert set(corpus.test.row_ids) <= set(whole.test.row_ids)
    kept = set(corpus.train.row_ids.tolist())
    assert len(kept) == len(corpus.train), "no row twice"
    assert not any(is_empty(value) for value in corpus.train.inputs)
    if own_test is not None:
        assert len(whole.test) == len(own_test), "no test row is dropped"
        assert len(corpus.train) + corpus.dropped_rows == len(train)
    else:
        assert len(corpus.train) + corpus.dropped_rows + len(whole.test) == len(train)
        assert not kept & set(whole.test.row_ids.tolist())
        assert not set(whole.test.inputs) & set(corpus.train.inputs), "exact duplicates share a role"
    if drop_overlap:
        assert not set(whole.test.inputs) & set(corpus.train.inputs)
    for part in (corpus.train, whole.test):
        source = train if part is corpus.train or own_test is None else own_test
        assert all(value == source.inputs[row] for row, value in zip(part.row_ids, part.inputs, strict=True)), "row ids are positions"


@given(
    found=rows,
    has_classes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    budgets=st.lists(st.integers(2, 50), min_size=1, max_size=4),
    has_validation=st.booleans(),
)
def test_budgets_nest_and_hold_exactly_their_rows(
    found: list[tuple[str, int]], has_classes: bool, seed: int, budgets: list[int], has_validation: bool
) -> None:
    train = examples(found, has_classes)
    corpus = Corpus(train, train if has_validation else None, train, 0, 0)
    before: tuple[set[int], set[int]] = (set(), set())
    for budget in [*sorted(budgets), "all"]:
        if result_or_sentence(lambda: check_budget(corpus, budget) or True) is None:  # noqa: B023
            continue
        drawn = result_or_sentence(lambda: draw(corpus, budget, seed))  # noqa: B023
        if drawn is None:
            continue
        trained, validating = drawn
        if budget == "all" and has_validation:
            assert validating is None and trained.tolist() == list(range(len(train)))
            continue
        assert validating is not None and len(validating) >= 1 and len(trained) >= 1
        roles = set(trained.tolist()), set(validating.tolist())
        assert len(trained) + len(validating) == len(roles[0] | roles[1]) == (len(train) if budget == "all" else budget)
        assert not {train.inputs[row] for row in roles[0]} & {train.inputs[row] for row in roles[1]}, "duplicates share a role"
        assert before[0] <= roles[0] and before[1] <= roles[1], "smaller budgets lie inside"
        distinct = {name: {train.inputs[row] for row in np.flatnonzero(train.strata == name)} for name in np.unique(train.strata)}
        assert all((train.strata[trained] == name).any() for name in distinct if len(set(found)) == len({value for value, _ in found})), (
            "every class trains"
        )
        if not has_classes and len(set(train.inputs)) == len(train):
            assert len(validating) == max(1, (len(trained) + len(validating)) // 5), "a fifth validates"
        again = draw(corpus, budget, seed)
        assert again[1] is not None and np.array_equal(again[0], trained) and np.array_equal(again[1], validating)
        before = roles


@given(train=rows, test=rows)
def test_repetitions_and_contradictions_are_counted_as_by_hand(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> None:
    splits = {"train": examples(train), "test": examples(test)}
    filled = [value for value, _ in train if value]
    assert count_duplicates(splits["train"]) == len(filled) - len(set(filled))
    labels_of: dict[str, set[int]] = {}
    for value, label in train + test:
        labels_of.setdefault(value, set()).add(label)
    conflicts = find_conflicts(splits)
    assert {conflict.value for conflict in conflicts} == {value for value, found in labels_of.items() if value and len(found) > 1}
    for conflict in conflicts:
        assert {int(label[0]) for label in conflict.labels} == labels_of[conflict.value]
        for split, rows_of in (("train", train), ("test", test)):
            assert conflict.positions.get(split, []) == [row for row, (value, _) in enumerate(rows_of) if value == conflict.value]


@given(lengths=st.lists(st.integers(0, 50) | st.integers(0, 10**7), min_size=1, max_size=30))
def test_every_length_is_in_one_bin(lengths: list[int]) -> None:
    edges = length_edges(min(lengths), max(lengths))
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= min(lengths) and edges[-1] > max(lengths)
    counts = count_lengths(lengths, edges)
    assert sum(counts) == len(lengths) and len(counts) == len(edges) - 1
    assert counts == np.histogram(lengths, [*edges[:-1], edges[-1]])[0].tolist() or max(lengths) == edges[-1]


sentences = st.lists(st.sampled_from(["sail", "mast", "oven", "Ｏven", "é", "船", "\u202eabc", "\ud800"]) | wild_texts, max_size=12).map(
    " ".join
)


@given(train=st.lists(sentences, max_size=8), test=st.lists(sentences, max_size=8))
def test_near_duplicates_of_any_texts(train: list[str], test: list[str]) -> None:
    found = find_near_duplicates(train, test)
    assert (found.searched_train, found.searched_test) == (len(train), len(test))
    positions = [pair.train for pair in found.pairs]
    assert positions == sorted(set(positions))
    assert all(THRESHOLD <= pair.similarity <= 1 and 0 <= pair.test < len(test) for pair in found.pairs)
    near = {pair.train: pair for pair in found.pairs}
    for row, text in enumerate(train):
        if text in test and any(character.isalnum() for character in text):
            assert near[row].similarity == 1, "an equal text is the nearest there is"


@pytest.mark.parametrize("text", ["x" * 1_000_000, "word " * 200_000, "\u0301" * 100_000, "\ufdfa" * 50_000, "船" * 200_000])
def test_enormous_texts(text: str) -> None:
    pairs: list[Any] = find_near_duplicates([text, "a"], ["b", text]).pairs
    assert [(pair.train, pair.test) for pair in pairs] == ([(0, 1)] if text[0] != "\u0301" else [])
    assert Counter(len(text) for text in [text])
