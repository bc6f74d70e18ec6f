"""Words as tokens, and rows too long for one window as several: every word is labelled once, where most around it shows."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_transfer.tasks.items import EncodedRow, TextWindow


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Give the special tokens that stand before and after a text."""
    encoded = tokenizer("a", return_attention_mask=False)
    text = [place for place, side in enumerate(encoded.sequence_ids(0)) if side is not None]
    return encoded["input_ids"][: text[0]], encoded["input_ids"][text[-1] + 1 :]


def first_pieces(
    ids: Sequence[int], word_of: Sequence[int | None], num_words: int, tokenizer: PreTrainedTokenizerBase, longest_word: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give a row's token ids, (N,), and where each word's first one stands, (num_words,).

    A word keeps at most `longest_word` pieces (a web address may have hundreds), so that it fits whole into the window that labels it.
    """
    tokens, words = np.array(ids, dtype=np.int32), np.array(word_of, dtype=np.int64)
    first = np.searchsorted(words, words)
    short = np.arange(len(words)) - first < longest_word
    tokens, words = tokens[short], words[short]
    dropped = np.setdiff1d(np.arange(num_words), words)
    if len(dropped):
        unknown = next(token for token in (tokenizer.unk_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id) if token is not None)
        order = np.argsort(np.concatenate([words, dropped]), kind="stable")
        words = np.concatenate([words, dropped])[order]
        tokens = np.concatenate([tokens, np.full(len(dropped), unknown, dtype=np.int32)])[order]
    return tokens, np.searchsorted(words, np.arange(num_words))


def cut_into_windows(ids: np.ndarray, first: np.ndarray, room: int, before: Sequence[int], after: Sequence[int]) -> EncodedRow:
    """Cut a row's tokens into windows of at most `room`.

    Args:
        ids: Token ids, (N,).
        first: Where each word begins, (num_words,).
        room: Tokens of a window, without special ones.
        before: Special tokens at its start.
        after: Special tokens at its end.
    """
    if len(first) == 0:
        return ()
    starts = np.array([0], dtype=np.int64)
    if len(ids) > room:
        starts = np.append(np.arange(0, len(ids) - room, room - room // 2), len(ids) - room)
    window_of = _most_context(first, starts, room, len(ids))
    return tuple(
        TextWindow(
            ids=np.concatenate([before, ids[start : start + room], after]).astype(np.int32),
            items=items,
            tokens=first[items] - start + len(before),
        )
        for index, start in enumerate(starts)
        if len(items := np.flatnonzero(window_of == index))
    )


def _most_context(places: np.ndarray, starts: np.ndarray, room: int, num_tokens: int) -> np.ndarray:
    """Give, for each place, the window that shows most on its poorer side; the ends of the row lack nothing. The earlier of equals.

    Args:
        places: In the row's tokens, (K,).
        starts: Of the windows, rising, (W,).
        room: Tokens of a window.
        num_tokens: Of the row.

    Returns:
        Window indices, (K,).
    """
    last = np.searchsorted(starts, places, side="right") - 1
    # Windows overlap by half, the last one perhaps more: no more than three of them show one place.
    candidates = np.maximum(last[:, None] - np.array([2, 1, 0]), 0)
    begins = starts[candidates]
    left = np.where(begins == 0, num_tokens, places[:, None] - begins)
    right = np.where(begins + room >= num_tokens, num_tokens, begins + room - 1 - places[:, None])
    return np.take_along_axis(candidates, np.minimum(left, right).argmax(axis=1)[:, None], axis=1)[:, 0]
