import os
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from hf_transfer.data import near_duplicates
from hf_transfer.data.hygiene import count_duplicates, count_lengths, find_conflicts, length_edges
from hf_transfer.data.near_duplicates import THRESHOLD, find_near_duplicates
from hf_transfer.data.roles import Examples

WORDS = [f"word{index}" for index in range(300)]


def text_of(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def changed(text: str, rng: random.Random, num_changes: int) -> str:
    words = text.split()
    for _ in range(num_changes):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def true_similarity(first: str, second: str) -> float:
    """Say it again with words and sets alone."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))}

    return len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))


def found(train: list[str], test: list[str]) -> dict[int, tuple[int, float]]:
    return {pair.train: (pair.test, pair.similarity) for pair in find_near_duplicates(train, test).pairs}


def examples(labels: list[int] | list[list[int]], inputs: list) -> Examples:
    items = [np.atleast_1d(np.array(label, dtype=np.int64)) for label in labels]
    return Examples(np.arange(len(inputs)), inputs, items, np.zeros(len(inputs), dtype=np.int64))


@pytest.mark.parametrize("seed", range(3))
def test_exactly_the_pairs_that_compare_all_with_all_are_found(seed: int) -> None:
    rng = random.Random(seed)
    test = [text_of(rng, rng.randint(1, 60)) for _ in range(60)]
    train = [changed(rng.choice(test), rng, rng.randint(0, 4)) for _ in range(150)] + [text_of(rng, 30) for _ in range(50)]
    expected = {}
    for row, text in enumerate(train):
        similarities = [true_similarity(text, other) for other in test]
        if max(similarities) >= THRESHOLD:
            expected[row] = (int(np.argmax(similarities)), max(similarities))
    assert 30 < len(expected) < 170
    assert any(similarity < 1 for _, similarity in expected.values())
    assert found(train, test) == expected


def test_a_changed_signature_and_an_added_line_still_match_and_unlike_texts_do_not() -> None:
    rng = random.Random(0)
    body = text_of(rng, 60)
    test = [text_of(rng, 60), f"{body}\n--\nAda Byron, London", text_of(rng, 60)]
    train = [
        f"{body}\n\n--\nGrace Hopper, New York",
        f"Please read this, it came back:\n{body}\n--\nAda Byron, London",
        f"> {body.upper().replace(' ', '   ')} -- ada byron london",
        text_of(rng, 60),
        " ".join(reversed(body.split())),
    ]
    pairs = found(train, test)
    assert {row: at_test for row, (at_test, _) in pairs.items()} == {0: 1, 1: 1, 2: 1}
    assert pairs[2][1] == 1.0


def test_permuted_rows_permute_the_answer() -> None:
    rng = random.Random(1)
    test = [text_of(rng, 20) for _ in range(40)]
    train = [changed(rng.choice(test), rng, 1) for _ in range(40)]
    before = found(train, test)
    assert before
    for_train, for_test = np.random.default_rng(0).permutation(40), np.random.default_rng(1).permutation(40)
    after = found([train[row] for row in for_train], [test[row] for row in for_test])
    assert {int(for_train[row]): (int(for_test[at]), similarity) for row, (at, similarity) in after.items()} == before


def test_every_process_finds_the_same() -> None:
    program = (
        "import random; from hf_transfer.data.near_duplicates import find_near_duplicates, _signatures, _shingles, _WordCodes\n"
        "texts = ['the very same words ' * 3 + str(index % 7) for index in range(20)]\n"
        "print(find_near_duplicates(texts, texts[:3]), next(_signatures([_shingles(texts[0], _WordCodes())])).hashvalues.tolist())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and "NearPair" in printed.pop()


def test_what_has_no_words_matches_nothing_and_short_texts_match_whole() -> None:
    assert found(["", "!!!", " \n", "ok"], ["", "!!!", "?", "no"]) == {}
    assert found(["OK!", "not ok", "ok"], ["ok"]) == {0: (0, 1.0), 2: (0, 1.0)}
    assert found(["a single row of words"], ["a single row of words"]) == {0: (0, 1.0)}
    assert found([], ["a"]) == found(["a"], []) == {}


def test_odd_unicode_is_folded_and_breaks_nothing() -> None:
    chinese = "今天天气很好我们一起去公园散步看花喝茶聊天非常开心明天还想再来"
    accents = "Über naïve façades, señor: ça va très bien à l'été"
    test = [chinese, accents, "\ud800 lone surrogate here", "👩‍👩‍👧 \u200b\x00 family of signs", "ﬁne full width text"]
    train = [f"{chinese}吧", unicodedata.normalize("NFD", accents).upper(), *test[2:4], "fine ｆｕｌｌ ＷＩＤＴＨ text", "今天"]
    assert {row: at for row, (at, _) in found(train, test).items()} == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}


def test_too_much_text_is_searched_in_a_fixed_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    texts = [text_of(rng, 30) for _ in range(100)]
    whole = find_near_duplicates(texts, texts[:20])
    assert (whole.searched_train, whole.searched_test, len(whole.pairs)) == (100, 20, 20)
    costs = [len(text) + near_duplicates.ROW_CHARACTERS for text in texts]
    monkeypatch.setattr(near_duplicates, "MAX_CHARACTERS", sum(costs[:20]) + sum(costs) // 2)
    part = find_near_duplicates(texts, texts[:20])
    assert part.searched_test == 20, "the small side is searched whole"
    assert 45 <= part.searched_train <= 50
    assert 0 < len(part.pairs) < 20
    assert set(part.pairs) < set(whole.pairs)
    assert find_near_duplicates(texts, texts[:20]) == part


def test_where_all_are_candidates_of_all_a_fixed_sample_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    preamble = text_of(rng, 40)
    train, test = ([f"{preamble} {rng.random()}" for _ in range(size)] for size in (100, 30))
    whole = find_near_duplicates(train, test)
    assert (whole.searched_train, len(whole.pairs)) == (100, 100)
    assert [pair.train for pair in whole.pairs] == list(range(100))
    monkeypatch.setattr(near_duplicates, "MAX_CANDIDATES", 20 * 30 - 1)
    part = find_near_duplicates(train, test)
    assert (part.searched_train, part.searched_test, len(part.pairs)) == (20, 30, 20)
    assert set(part.pairs) < set(whole.pairs)
    assert max(pair.train for pair in part.pairs) > 50, "not the first rows"


def test_of_many_alike_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    template = text_of(rng, 40)
    test = [f"{template} {index}" for index in range(200)]
    confirmed = []
    real = near_duplicates._jaccard
    monkeypatch.setattr(near_duplicates, "_jaccard", lambda *sets: confirmed.append(1) or real(*sets))
    assert len(found([f"{template} other"], test)) == 1
    assert len(confirmed) == near_duplicates.MAX_CONFIRMED


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_and_conflicts_agree_with_looking_at_every_pair(seed: int) -> None:
    rng = random.Random(seed)
    splits = {
        name: examples([rng.randrange(2) for _ in range(size)], [rng.choice(["", "a", "b", "c", "d", "e", "f"]) for _ in range(size)])
        for name, size in (("train", 8), ("validation", 3), ("test", 4))
    }
    rows = [(name, row) for name, split in splits.items() for row in range(len(split))]

    def at(name: str, row: int) -> tuple[str, int]:
        return splits[name].inputs[row], int(splits[name].labels[row][0])

    expected = {
        (name, row)
        for name, row in rows
        if at(name, row)[0] and any(at(name, row)[0] == at(*other)[0] and at(name, row)[1] != at(*other)[1] for other in rows)
    }
    conflicts = find_conflicts(splits)
    assert {(name, row) for conflict in conflicts for name, places in conflict.positions.items() for row in places} == expected
    assert len({conflict.value for conflict in conflicts}) == len(conflicts)
    assert all(sorted(int(label[0]) for label in conflict.labels) == [0, 1] for conflict in conflicts)
    for split in splits.values():
        repeats = [row for row, value in enumerate(split.inputs) if value and value in split.inputs[:row]]
        assert count_duplicates(split) == len(repeats)


def test_pairs_of_texts_and_tagged_words_conflict_only_as_a_whole() -> None:
    pairs = examples([0, 1, 1], [("a", "b"), ("a", "c"), ("a", "b")])
    assert [conflict.positions for conflict in find_conflicts({"train": pairs})] == [{"train": [0, 2]}]
    words = examples([[0, 1], [0, 1], [0, 0], [2]], [("to", "Rome"), ("to", "Rome"), ("to", "Rome"), ("Rome",)])
    (conflict,) = find_conflicts({"train": words})
    assert conflict.positions == {"train": [0, 1, 2]}
    assert [label.tolist() for label in conflict.labels] == [[0, 1], [0, 0]]
    assert count_duplicates(words) == 2
    assert find_conflicts({"train": examples([0], ["alone"])}) == []


@pytest.mark.parametrize(("shortest", "longest"), [(0, 0), (1, 1), (0, 1), (5, 300), (28, 28), (64, 64), (0, 100_000)])
def test_every_length_falls_into_one_bin(shortest: int, longest: int) -> None:
    edges = length_edges(shortest, longest)
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= shortest and edges[-2] <= longest < edges[-1]
    lengths = sorted({shortest, longest, *np.random.default_rng(0).integers(shortest, longest + 1, 50).tolist()})
    counts = count_lengths(lengths, edges)
    assert counts == np.histogram(lengths, bins=[*edges[:-1], edges[-1] - 0.5])[0].tolist()
    assert sum(counts) == len(lengths)
