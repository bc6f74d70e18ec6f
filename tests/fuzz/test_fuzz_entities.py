from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from hf_transfer.data.conll import read_conll
from hf_transfer.data.sources import Source, read_file
from hf_transfer.data.tags import Entity, find_entities, read_tags, split_words, tag_spans, to_bio
from hf_transfer.task_configs import TokenClassification
from hf_transfer.tasks import token_classification
from tests.fuzz.strategies import damaged, json_lines, result_or_sentence, scalars, texts, values, wild_texts, write

TYPES = st.sampled_from(["x", "y", "a b", "B-c"])
tags = st.sampled_from(["O"]) | st.builds("{}-{}".format, st.sampled_from("BIESUL"), TYPES)
# A word in CoNLL: no blank or line end parts it.
words = st.text(st.characters(codec="utf-8", exclude_characters=" \t\r\n"), min_size=1, max_size=6).filter(str.strip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("entities")


@st.composite
def entities(draw: st.DrawFn) -> tuple[list[Entity], int]:
    """Draw entities that do not overlap, in order, and the words they stand among."""
    found, position = [], 0
    for gap, size, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), TYPES), max_size=6)):
        found.append(Entity(position + gap, position + gap + size, kind))
        position += gap + size
    return found, position + draw(st.integers(0, 2))


def spelled(found: list[Entity], length: int, scheme: str) -> list[str]:
    """Write entities in a scheme, as its definition says."""
    written = ["O"] * length
    for index, entity in enumerate(found):
        size = entity.end - entity.start
        if scheme == "bioes":
            marks = ["S"] if size == 1 else ["B", *"I" * (size - 2), "E"]
        else:
            before = found[index - 1] if index else None
            touches = before is not None and (before.end, before.type) == (entity.start, entity.type)
            marks = ["B" if scheme == "bio" or touches else "I", *"I" * (size - 1)]
        written[entity.start : entity.end] = [f"{mark}-{entity.type}" for mark in marks]
    return written


def as_seqeval(written: list[str], scheme: Any) -> list[Entity]:
    return [Entity(entity.start, entity.end, entity.tag) for entity in Entities([written], scheme).entities[0]]


@given(drawn=entities())
def test_every_scheme_spells_the_same_entities_as_seqeval_reads_them(drawn: tuple[list[Entity], int]) -> None:
    found, length = drawn
    for scheme, theirs in (("bio", IOB2), ("iob1", IOB1), ("bioes", IOBES)):
        written = spelled(found, length, scheme)
        assert find_entities(to_bio(written)) == found
        assert as_seqeval(written, theirs) == found


@given(row=st.lists(tags, max_size=12))
def test_any_tags_become_bio_and_stay_so(row: list[str]) -> None:
    bio = to_bio(row)
    assert len(bio) == len(row)
    assert [tag[2:] for tag in bio] == [tag[2:] for tag in row]
    assert to_bio(bio) == bio
    found = find_entities(bio)
    assert spelled(found, len(row), "bio") == bio, "every word of an entity is in one"
    assert found == as_seqeval(bio, IOB2)
    assert [(kind, start, end + 1) for kind, start, end in get_entities(bio)] == [(e.type, e.start, e.end) for e in found]


@given(row=st.lists(tags, max_size=12))
def test_entities_are_seqevals_strict_ones(row: list[str]) -> None:
    row = [tag for tag in row if tag[0] in "BIO"]
    assert find_entities(row) == as_seqeval(row, IOB2)


@given(rows=st.lists(st.lists(tags | wild_texts, max_size=4), min_size=1, max_size=4), names=st.none() | st.lists(tags, max_size=5))
def test_odd_tags_are_read_or_refused(rows: list[list[str]], names: list[str] | None) -> None:
    try:
        splits = {"train": Dataset.from_dict({"tokens": [["w"] * len(row) for row in rows], "ner_tags": rows})}
    except UnicodeEncodeError:
        return
    read = result_or_sentence(lambda: read_tags(splits, names))
    if read is not None:
        labels, of_split = read
        assert [[labels[tag] for tag in row] for row in of_split["train"] or []] == [to_bio([tag.strip() for tag in row]) for row in rows]


@given(
    sentences=st.lists(st.lists(st.tuples(words, tags), min_size=1, max_size=4), min_size=1, max_size=5),
    separator=st.sampled_from([" ", "\t", " X NNP "]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_conll_comes_back_in_order(folder: Path, sentences: list[list[tuple[str, str]]], separator: str, end: str, mark: bool) -> None:
    sentences = [[(word, tag.replace(" ", "_")) for word, tag in sentence] for sentence in sentences]
    # Comments and documents begin with these.
    sentences = [
        [("w" + word if word.startswith(("#", "-DOCSTART-", "\ufeff")) else word, tag) for word, tag in sentence] for sentence in sentences
    ]
    lines = [f"{word}{separator}{tag}" for sentence in sentences for word, tag in [*sentence, ("", "")] if True]
    text = end.join("" if line == separator else line for line in lines)
    path = write(folder / "x.conll", b"\xef\xbb\xbf" * mark + text.encode())
    dataset = read_conll(path)
    assert dataset["tokens"][:] == [[word for word, _ in sentence] for sentence in sentences]
    assert dataset["ner_tags"][:] == [[tag for _, tag in sentence] for sentence in sentences]


@given(
    data=damaged(
        st.lists(st.lists(st.tuples(words, tags), max_size=3), max_size=4).map(
            lambda rows: "\n\n".join("\n".join(map(" ".join, row)) for row in rows).encode()
        )
    )
)
def test_damaged_conll_is_read_or_refused(folder: Path, data: bytes) -> None:
    path = write(folder / "damaged.conll", data)
    dataset = result_or_sentence(lambda: read_file(path))
    if dataset is not None:
        result_or_sentence(lambda: read_tags({"train": dataset}))
        assert sum(map(len, dataset["tokens"][:])) <= data.count(b"\n") + 1


@given(text=texts, spans=st.lists(st.tuples(st.integers(-2, 20), st.integers(-2, 20), st.sampled_from(["x", "", " y ", "z"])), max_size=4))
def test_spans_are_tagged_or_refused(text: str, spans: list[tuple[int, int, str]]) -> None:
    given_spans = [{"start": start, "end": end, "label": label} for start, end, label in spans]
    found = result_or_sentence(lambda: tag_spans(text, given_spans, "row 0"))
    if found is None:
        return
    split, places = split_words(text)
    assert found[0] == split
    entities = find_entities(found[1])
    assert len(entities) == len(spans)
    for entity, (start, end, label) in zip(entities, sorted(spans), strict=True):
        assert entity.type == label.strip()
        first, last = places[entity.start], places[entity.end - 1]
        assert first[0] < end and last[1] > start, "every word of it is in the span"
        assert all(not (begin < end and until > start) for begin, until in places[: entity.start] + places[entity.end :])


@given(text=texts)
def test_spans_of_whole_words_come_back(text: str) -> None:
    split, places = split_words(text)
    assert list(split) == [text[start:end] for start, end in places]
    spans = [{"start": start, "end": end, "label": "x"} for start, end in places[::2]]
    _, written = tag_spans(text, spans, "row 0")
    assert [(places[e.start][0], places[e.end - 1][1]) for e in find_entities(written)] == places[::2]


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "text": texts | scalars,
                "spans": values | st.lists(st.fixed_dictionaries({"start": scalars, "end": scalars, "label": texts | scalars}), max_size=2),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_spans_in_files_are_read_or_refused(folder: Path, rows: list[dict[str, Any]]) -> None:
    path = write(folder / "spans.jsonl", json_lines(rows))

    def read() -> Any:
        source = Source({"train": read_file(path)})
        columns = token_classification.choose_columns(
            {"tokens": "tokens", "ner_tags": "ner_tags"}, ["text", "spans"], TokenClassification()
        )
        return token_classification.read(source, columns, None, TokenClassification())

    found = result_or_sentence(read)
    if found is not None:
        train = found[1]["train"]
        assert train.row_ids.tolist() == list(range(len(rows)))
        assert [len(row) for row in train.labels] == [len(row) for row in train.inputs]


@given(
    rows=st.lists(
        st.fixed_dictionaries({"tokens": values | st.lists(texts, max_size=3), "ner_tags": values | st.lists(tags, max_size=3)}),
        min_size=1,
        max_size=4,
    ),
    names=st.none() | st.lists(tags, max_size=4),
)
def test_words_and_tags_in_files_are_read_or_refused(folder: Path, rows: list[dict[str, Any]], names: list[str] | None) -> None:
    path = write(folder / "words.jsonl", json_lines(rows))
    columns = {"tokens": "tokens", "ner_tags": "ner_tags"}
    found = result_or_sentence(lambda: token_classification.read(Source({"train": read_file(path)}), columns, names, TokenClassification()))
    if found is not None:
        train = found[1]["train"]
        assert train is not None
        assert [list(row) for row in train.inputs] == [row["tokens"] for row in rows]
