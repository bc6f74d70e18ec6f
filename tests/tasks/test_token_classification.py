"""Words in windows, their labels on first pieces, and the way back to entities with character offsets."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, PreTrainedTokenizerBase

from hf_transfer.data.roles import Corpus, Examples
from hf_transfer.data.sources import Source
from hf_transfer.data.tags import find_entities
from hf_transfer.errors import ConfigError, DataError
from hf_transfer.task_configs import TokenClassification
from hf_transfer.tasks import token_classification as task
from hf_transfer.tasks.items import EncodedRow, lay_out
from hf_transfer.tasks.tokenizers import load_tokenizer
from tests.conftest import make_sentences

TAGS = ["O", "B-x", "I-x", "B-y", "I-y"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerBase:
    return task.load_processor(tokenizer_folder, "x", BertConfig())


def alone(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Give the pieces of a word by itself, as it stands in the middle of a text."""
    return tokenizer([[word]], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]


def check_words(tokenizer: PreTrainedTokenizerBase, words: list[str], row: EncodedRow, max_length: int) -> None:
    """Every word is labelled once, on the first of its pieces."""
    assert sorted(itertools.chain.from_iterable(window.items.tolist() for window in row)) == list(range(len(words)))
    for window in row:
        assert len(window.ids) <= max_length
        assert window.tokens is not None
        for item, token in zip(window.items, window.tokens, strict=True):
            pieces = alone(tokenizer, words[item]) or [tokenizer.unk_token_id]
            longest = max(1, (max_length - 2) // 4)
            assert window.ids[token : token + min(len(pieces), longest)].tolist() == pieces[:longest], words[item]


@pytest.mark.parametrize("max_length", [8, 32, 128])
def test_no_word_of_a_long_document_is_lost(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    words = [word for row in make_sentences(400) for word in row["tokens"]][:3000]
    words[5], words[7], words[1500] = "anchor" * 60, "", "\u200b"
    assert len(words) == 3000
    row = task.encode(tokenizer, [words], TokenClassification(max_length=max_length))[0]
    assert len(row) > 3000 / max_length
    check_words(tokenizer, words, row, max_length)


@pytest.mark.parametrize("words", [["sail", "boat", "12345678901234"], [""], ["", "\u200b", "sail"], ["\t", "sail"], ["x" * 500]])
def test_words_of_many_pieces_and_of_none(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> None:
    row = task.encode(tokenizer, [words], TokenClassification(max_length=32))[0]
    check_words(tokenizer, words, row, 32)
    assert len(row) == 1


def test_a_word_reads_the_same_wherever_it_stands_and_after_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, "again", BertConfig())
    first, second = (task.encode(made, [["sail", "anchor", "sail"]], TokenClassification())[0][0].ids for made in (tokenizer, again))
    assert first.tolist() == second.tolist()
    pieces = alone(tokenizer, "sail")
    assert first[1 : 1 + len(pieces)].tolist() == first[-1 - len(pieces) : -1].tolist() == pieces


def test_the_window_of_a_word_shows_at_least_a_quarter_on_both_sides(tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["sail"] * 997
    size = len(alone(tokenizer, "sail"))
    row = task.encode(tokenizer, [words], TokenClassification(max_length=66))[0]
    for index, window in enumerate(row):
        assert window.tokens is not None
        left, right = window.tokens - 1, len(window.ids) - 2 - window.tokens
        if index > 0:
            assert left.min() >= 64 // 4 - size
        if index < len(row) - 1:
            assert right.min() >= 64 // 4 - size


def test_a_row_without_words_has_no_window() -> None:
    layout = lay_out([(), ()])
    assert (layout.windows, layout.num_items, layout.row_of_window.tolist()) == ([], 0, [])
    assert task.decode(np.zeros((0, 5)), np.array([0, 0, 0]), TAGS).tolist() == []


def test_logits_are_picked_from_each_words_first_piece(tokenizer: PreTrainedTokenizerBase) -> None:
    sentences = [row["tokens"] for row in make_sentences(5)]
    layout = lay_out(task.encode(tokenizer, sentences, TokenClassification(max_length=16)))
    arguments = task.collate(layout.windows, tokenizer)
    # A "model" whose logit is the token id.
    picked = task.item_logits(arguments["input_ids"][..., None].float(), layout.windows)
    pieces = [alone(tokenizer, word)[0] for words in sentences for word in words]
    found = np.zeros(layout.num_items)
    found[np.concatenate(layout.items)] = picked[:, 0].numpy()
    assert found.tolist() == pieces


def is_legal(tags: tuple[int, ...]) -> bool:
    names = ["O", *(TAGS[tag] for tag in tags)]
    return all(name[0] != "I" or before[2:] == name[2:] for before, name in itertools.pairwise(names))


@pytest.mark.parametrize("seed", range(50))
def test_decoding_gives_the_likeliest_legal_tags(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = [0, 1, 3, 4, 2, 0]
    first_item = np.concatenate([[0], np.cumsum(lengths)])
    probabilities = rng.dirichlet(np.full(5, 0.5), first_item[-1]).astype(np.float32)
    found = task.decode(probabilities, first_item, TAGS)
    for start, length in zip(first_item, lengths, strict=False):
        every = np.array([tags for tags in itertools.product(range(5), repeat=length) if is_legal(tags)], dtype=int)
        scores = np.log(probabilities[start + np.arange(length), every]).sum(axis=1)
        assert found[start : start + length].tolist() == every[scores.argmax()].tolist()


def read(rows: dict[str, list[object]], columns: dict[str, str] | None = None) -> tuple[list[str], dict[str, Examples | None]]:
    splits = {"train": Dataset.from_dict(rows)}
    chosen = task.choose_columns(columns or TokenClassification().columns, splits["train"].column_names, TokenClassification())
    return task.read(Source(splits), chosen, None, TokenClassification())


def test_words_or_spans() -> None:
    names, examples = read({"tokens": [["Ann", "ran"], []], "ner_tags": [["B-x", "O"], []]})
    train = examples["train"]
    assert train is not None
    assert (names, train.inputs) == (["O", "B-x", "I-x"], [("Ann", "ran"), ()])
    assert [labels.tolist() for labels in train.labels] == [[1, 0], []]
    assert train.strata.tolist() == [0, 0], "no class of their own: drawn plainly"
    spans = [[{"start": 0, "end": 3, "label": "x"}], []]
    names, examples = read({"text": ["Ann ran", "no"], "spans": spans})
    assert examples["train"] is not None
    assert examples["train"].inputs == [("Ann", "ran"), ("no",)]
    named = TokenClassification().columns | {"text": "body", "spans": "found"}
    assert read({"body": ["Ann ran", "no"], "found": spans}, named)[0] == names == ["O", "B-x", "I-x"]


def test_a_test_split_with_spans_nowhere_is_unlabelled() -> None:
    spans = [[{"start": 0, "end": 3, "label": "x"}], []]
    splits = {"train": Dataset.from_dict({"text": ["Ann ran", "no"], "spans": spans})}
    splits["test"] = Dataset.from_dict({"text": ["Bob", "Cy"], "spans": [None, None]})
    columns = {"text": "text", "spans": "spans"}
    assert task.read(Source(splits), columns, None, TokenClassification())[1]["test"] is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"tokens": [["a"], ["b", "c"]], "ner_tags": [["O"], ["O"]]}, "train row 1 has 2 words and 1 tags"),
        ({"tokens": ["a b"], "ner_tags": [["O"]]}, "train row 0: tokens must be a list of words, found str"),
        ({"tokens": [[1]], "ner_tags": [["O"]]}, "train row 0: tokens must be a list of words, one of them is 1"),
        ({"tokens": [None, ["a"]], "ner_tags": [None, ["O"]]}, "train row 0: tokens must be a list of words, found NoneType"),
        ({"tokens": [["a"]], "tags": [["O"]]}, "no column 'ner_tags'"),
        ({"text": ["Ann"], "spans": [[{"start": 0, "end": 9, "label": "x"}]]}, "train row 0: the span 0 to 9"),
        ({"text": [None, "a"], "spans": [[], []]}, "train row 0 has no text"),
        ({"text": ["Ann"], "spans": ["x"]}, "train row 0: spans must be a list"),
        ({"text": ["Ann", "Bob"], "spans": [[], None]}, r"train row 1: spans must be .*\[\] where there is no entity; found none"),
    ],
)
def test_bad_rows_are_named(rows: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(rows)


def test_training_rows_without_an_entity_are_refused() -> None:
    examples = Examples(np.arange(2), [("a",), ("b",)], [np.zeros(1, dtype=np.int64)] * 2, np.zeros(2, dtype=np.int64))
    with pytest.raises(DataError, match="the 2 training rows hold no entity"):
        task.check_labels(Corpus(examples, None, examples, 0, 0), TAGS)


def test_types_of_one_role_only_are_told() -> None:
    def tagged(*tags: int) -> Examples:
        return Examples(np.arange(1), [("a",) * len(tags)], [np.array(tags)], np.zeros(1, dtype=np.int64))

    assert task.check_labels(Corpus(tagged(1, 2, 3), None, tagged(1, 3), 0, 0), TAGS) == []
    assert task.check_labels(Corpus(tagged(1, 2), None, tagged(3, 0), 0, 0), TAGS) == [
        "training has no entity of the type y, test has: none of them can be found",
        "test has no entity of the type x",
    ]


def test_weights_by_tag_or_by_type() -> None:
    assert task.weights_by_class({"x": 3.0, "O": 0.5, "I-x": 2.0}, TAGS).tolist() == [0.5, 3.0, 2.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="names 'z', entity types are x, y and tags O"):
        task.weights_by_class({"z": 1.0}, TAGS)


def test_answers_have_character_offsets() -> None:
    text = "Ann Lee (of Rome) ran."
    config = TokenClassification()
    words = task.to_inputs([text, ["New", "York"]], config)
    assert words == [("Ann", "Lee", "(", "of", "Rome", ")", "ran", "."), ("New", "York")]
    tags = [np.array([1, 2, 0, 0, 3, 0, 0, 0]), np.array([3, 4])]
    probabilities = [np.eye(5, dtype=np.float32)[row] * 0.5 for row in tags]
    answers = task.to_answers([text, ["New", "York"]], probabilities, tags, TAGS)
    assert answers[0]["entities"] == [
        {"start": 0, "end": 7, "text": "Ann Lee", "label": "x", "score": 0.5},
        {"start": 12, "end": 16, "text": "Rome", "label": "y", "score": 0.5},
    ]
    assert answers[1]["entities"] == [{"start": 0, "end": 8, "text": "New York", "label": "y", "score": 0.5}]
    assert len(find_entities([TAGS[tag] for tag in tags[0]])) == 2
    for wrong, message in (
        ("Ann", r"found str: predict\(\[text\]\)"),
        ([1], "found int at position 0"),
        ([["a", 1]], "found list of int, str at position 0"),
        (["a", "b\ud800"], r"the text at position 1 holds half of a character, \\ud800: remove it"),
        ([["\ud83d", "\ude00"]], r"the text at position 0 holds half of a character, \\ud83d"),
    ):
        with pytest.raises(ConfigError, match=message):
            task.to_inputs(wrong, config)  # type: ignore[arg-type]


def test_collate_pads_ids_and_masks(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = lay_out(task.encode(tokenizer, [["sail"], ["sail", "sail", "sail"]], TokenClassification())).windows
    arguments = task.collate(windows, tokenizer)
    assert arguments["attention_mask"].sum(1).tolist() == [len(window.ids) for window in windows]
    assert bool((arguments["input_ids"][0, len(windows[0].ids) :] == tokenizer.pad_token_id).all())
    assert arguments["input_ids"].dtype == torch.int64
