"""Texts that say nearly the same: MinHash finds the candidates, their true similarity decides."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasketch import MinHash, MinHashLSH

THRESHOLD = 0.8
"""Jaccard similarity from which two texts are near duplicates."""
SHINGLE_WORDS = 3
"""Words of a shingle: enough that unlike texts share few, so few that a changed signature leaves most of a short text's."""
NUM_BANDS, BAND_ROWS = 25, 5
"""Of the MinHash signature: a pair at the threshold is missed once in 20,000 times, (1 - 0.8^5)^25."""
MAX_CONFIRMED = 10
"""Candidates of one text whose true similarity is computed, likeliest first: a template may have thousands."""
MAX_CHARACTERS = 60_000_000
"""Read in all: 5 to 10 s on one core (20 Newsgroups, 22 million, took 4; 2026-11-21)."""
ROW_CHARACTERS = 500
"""What a row costs beside its own characters."""
MAX_CANDIDATES = 5_000_000
"""Looked at in all, about 5 s: where all texts share a long preamble, each is a candidate of each."""
SAMPLE_SEED = 20260102

# Scripts that are written without blanks are cut at every character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
# Odd, so that multiplying by them (modulo 2^64) loses nothing.
_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 1], dtype=np.uint64)


@dataclass(frozen=True)
class NearPair:
    """Two texts that are nearly the same."""

    train: int
    """Position among the training texts."""
    test: int
    """Position of the most similar test text; the first of equals."""
    similarity: float
    """Jaccard similarity of their shingles."""


@dataclass(frozen=True)
class NearSearch:
    """What a search for near duplicates found."""

    pairs: list[NearPair]
    """One for each training text that has a near duplicate in test, in the order of training."""
    searched_train: int
    """Texts looked at."""
    searched_test: int


class _WordCodes(dict[str, int]):
    """Word -> 64-bit hash, the same in every process and whatever was read before."""

    def __missing__(self, word: str) -> int:
        code = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[word] = code
        return code


def find_near_duplicates(train: Sequence[str], test: Sequence[str]) -> NearSearch:
    """Find the training texts that have a near duplicate among the test texts.

    A text is its set of shingles, all runs of three words, folded for case, width, blanks and punctuation. Candidates share a band of
    their MinHash signatures (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900; Leskovec et al., Mining of Massive Datasets,
    chapter 3); those count whose true Jaccard similarity is at least `THRESHOLD`. Texts without any word have no near duplicates. Where
    that takes more than `MAX_CHARACTERS` or `MAX_CANDIDATES`, a fixed random sample of rows is searched.

    Args:
        train: Training texts.
        test: Test texts.
    """
    (train_rows, train_sets), (test_rows, test_sets) = _sampled_shingles(train, test)
    index = MinHashLSH(num_perm=NUM_BANDS * BAND_ROWS, params=(NUM_BANDS, BAND_ROWS))
    signatures = np.zeros((len(test_sets), NUM_BANDS * BAND_ROWS), dtype=np.uint32)
    for position, signature in enumerate(_signatures(test_sets)):
        signatures[position] = signature.hashvalues
        if len(test_sets[position]):
            index.insert(position, signature, check_duplication=False)
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(train_rows))
    pairs, num_searched, num_candidates = [], 0, 0
    for place, signature in zip(order, _signatures([train_sets[place] for place in order]), strict=True):
        candidates = np.array(sorted(index.query(signature)) if len(train_sets[place]) else [], dtype=np.int64)
        likeness = (signatures[candidates] == signature.hashvalues).mean(axis=1)
        likeliest = candidates[np.argsort(-likeness, kind="stable")[:MAX_CONFIRMED]]
        similarities = [_jaccard(train_sets[place], test_sets[candidate]) for candidate in likeliest]
        if similarities and max(similarities) >= THRESHOLD:
            similarity, row = max(zip(similarities, -test_rows[likeliest], strict=True))
            pairs.append(NearPair(int(train_rows[place]), int(-row), similarity))
        num_searched += 1
        num_candidates += len(candidates)
        if num_candidates > MAX_CANDIDATES:
            break
    return NearSearch(sorted(pairs, key=lambda pair: pair.train), num_searched, len(test_rows))


def _sampled_shingles(*sides: Sequence[str]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Give, for training and test texts, the positions that are searched, rising, and their sets of shingles.

    Where there is too much, each side gives up rows at random until it takes half of what is allowed, or what the other leaves.
    """
    costs = [np.array([len(text) + ROW_CHARACTERS for text in texts], dtype=np.int64) for texts in sides]
    codes = _WordCodes()
    sampled = []
    for texts, cost, other in zip(sides, costs, reversed(costs), strict=True):
        room = max(MAX_CHARACTERS // 2, MAX_CHARACTERS - int(other.sum()))
        order = np.random.default_rng(SAMPLE_SEED).permutation(len(texts))
        rows = np.sort(order[np.cumsum(cost[order]) <= room])
        sampled.append((rows, [_shingles(texts[row], codes) for row in rows]))
    return sampled


def _shingles(text: str, codes: _WordCodes) -> np.ndarray:
    """Give a text's shingles as hashes, rising, (S,) uint64; a text of fewer than three words is one shingle, one without words none."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if not words:
        return np.zeros(0, dtype=np.uint64)
    coded = np.array([codes[word] for word in words] + [0] * (SHINGLE_WORDS - len(words)), dtype=np.uint64)
    return np.unique((np.lib.stride_tricks.sliding_window_view(coded, SHINGLE_WORDS) * _MULTIPLIERS).sum(axis=1, dtype=np.uint64))


def _signatures(sets: Sequence[np.ndarray]) -> Iterator[MinHash]:
    hashes = ((shingles >> np.uint64(32)).tolist() for shingles in sets)
    return MinHash.generator(hashes, num_perm=NUM_BANDS * BAND_ROWS, hashfunc=int)


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Give the share of what two sets hold together that both hold; each rising and without repetition."""
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
