import random

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_transfer.data.tags import Entity, find_entities, read_tags, split_words, tag_spans, to_bio
from hf_transfer.errors import DataError


def dataset(tags: list[list[str]] | list[list[int]], names: list[str] | None = None) -> Dataset:
    words = [[f"w{index}" for index in range(len(row))] for row in tags]
    features = None
    if names:
        features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    return Dataset.from_dict({"tokens": words, "ner_tags": tags}, features=features)


def spelled(entities: list[Entity], length: int, scheme: str) -> list[str]:
    """Write entities as a textbook says a scheme does."""
    tags = ["O"] * length
    for index, entity in enumerate(entities):
        size = entity.end - entity.start
        if scheme == "bioes":
            marks = ["S"] if size == 1 else ["B", *"I" * (size - 2), "E"]
        else:
            follows = index > 0 and entities[index - 1].end == entity.start and entities[index - 1].type == entity.type
            marks = ["B" if scheme == "bio" or follows else "I", *"I" * (size - 1)]
        tags[entity.start : entity.end] = [f"{mark}-{entity.type}" for mark in marks]
    return tags


@pytest.mark.parametrize("scheme", ["bio", "iob1", "bioes"])
def test_every_scheme_reads_as_the_same_entities(scheme: str) -> None:
    rng = random.Random(3)
    for _ in range(300):
        entities, position = [], 0
        while position < 20:
            position += rng.randint(0, 3)
            size = rng.randint(1, 4)
            if position + size <= 20 and rng.random() < 0.7:
                entities.append(Entity(position, position + size, rng.choice(["x", "y"])))
            position += size
        tags = spelled(entities, 20, scheme)
        assert find_entities(to_bio(tags)) == entities
        assert to_bio(to_bio(tags)) == to_bio(tags)
        assert to_bio(tags) == spelled(entities, 20, "bio")


def test_names_keep_the_datas_order_where_they_are_bio_already() -> None:
    names, tags = read_tags({"train": dataset([[0, 3, 4], [1]], ["O", "B-y", "I-y", "B-x", "I-x"])})
    assert names == ["O", "B-y", "I-y", "B-x", "I-x"]
    assert [row.tolist() for row in tags["train"] or []] == [[0, 3, 4], [1]]


@pytest.mark.parametrize(
    ("data", "label_names"),
    [
        (dataset([["S-x", "O", "B-y", "E-y"]]), None),
        (dataset([[1, 0, 2, 3]], ["O", "S-x", "B-y", "E-y"]), None),
        (dataset([[1, 0, 2, 3]]), ["O", "S-x", "B-y", "E-y"]),
    ],
)
def test_names_strings_and_integers_read_alike(data: Dataset, label_names: list[str] | None) -> None:
    splits = {"train": data, "test": data.remove_columns("ner_tags")}
    names, tags = read_tags(splits, label_names)
    assert sorted(names) == ["B-x", "B-y", "I-x", "I-y", "O"]
    assert [names[tag] for tag in (tags["train"] or [])[0]] == ["B-x", "O", "B-y", "I-y"]
    assert tags["test"] is None


@pytest.mark.parametrize(
    ("data", "label_names", "message"),
    [
        (dataset([["O"], ["PER"]]), None, "train row 1 has the tag 'PER', expected O, or B-TYPE and I-TYPE"),
        (dataset([["O"], ["X-PER"]]), None, "train row 1 has the tag 'X-PER'"),
        (dataset([["B-"]]), None, "train row 0 has the tag 'B-'"),
        (dataset([["O", None]]), None, "train row 0 has the tag None"),
        (dataset([[0, 1]]), None, "train row 0 has the tag 0, and nothing names it: --set 'data.label_names="),
        (dataset([[0, 2]]), ["O", "B-x"], r"has the tag 2, 2 tags are named \(0 to 1\)"),
        (dataset([["O", "B-z"]]), ["O", "B-x"], "has the tag 'B-z', which is none of O, B-x"),
        (dataset([[0, 1]]), ["O", "PAD"], "the list of tag names has the tag 'PAD', expected O, or B-TYPE"),
        (dataset([[0, 1]]), ["O", "B-x", "B-x"], "tag names must differ, found O, B-x, B-x"),
        (dataset([[0, 1]], ["O", "B-x"]), ["O", "B-y"], r"names its tags itself \(O, B-x\): leave label_names out"),
        (Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[["O"]]]}), None, r"has the tag \['O'\], expected O"),
        (Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [["O"]]}), None, "train row 0 has 2 words and 1 tags"),
        (Dataset.from_dict({"tokens": [["a"]], "ner_tags": ["O"]}), None, "train row 0 has 1 words and 'O' for tags"),
    ],
)
def test_bad_tags_name_the_row(data: Dataset, label_names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tags({"train": data}, label_names)


def test_words_cover_a_text_without_overlap() -> None:
    text = "O'Malley's  e-mail: 3.5% of 東京タワー — naïve नमस्ते 😀\n"
    words, places = split_words(text)
    assert words == tuple(text[start:end] for start, end in places)
    assert "".join(words) == "".join(text.split())
    assert {"東", "京", "naïve", "नमस्ते", "e", "mail"} <= set(words)
    assert split_words("") == ((), [])


def test_spans_become_tags_of_whole_words() -> None:
    text = "Ann Lee-Kim saw (New York)."
    words, tags = tag_spans(text, [{"start": 17, "end": 25, "label": "place"}, {"start": 0, "end": 11, "label": "person"}], "row 0")
    assert words == ("Ann", "Lee", "-", "Kim", "saw", "(", "New", "York", ")", ".")
    assert find_entities(tags) == [Entity(0, 4, "person"), Entity(6, 8, "place")]
    assert tag_spans("Rome2Go", [{"start": 0, "end": 4, "label": "x"}], "row 0")[1] == ["B-x"], "a word belongs to its span whole"
    assert tag_spans("a b", None, "row 0")[1] == ["O", "O"]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"start": 0, "end": 30, "label": "x"}], r"row 3: the span 0 to 30 \(x\) is outside its text of 11 characters"),
        ([{"start": -1, "end": 3, "label": "x"}], "outside its text"),
        ([{"start": 4, "end": 4, "label": "x"}], "or empty"),
        (
            [{"start": 0, "end": 5, "label": "x"}, {"start": 4, "end": 7, "label": "y"}],
            r"spans x 'Ann L' \(0 to 5\) and y 'Lee' .* overlap",
        ),
        ([{"start": 3, "end": 4, "label": "x"}], "holds no word"),
        ([{"start": 4, "end": 5, "label": "x"}, {"start": 5, "end": 7, "label": "x"}], "share the word 'Lee'"),
        ([{"start": 0, "end": 3}], "a span needs start, end and label"),
        (["PER"], "a span needs start, end and label"),
        ([{"start": False, "end": True, "label": "x"}], "whole numbers for start and end"),
        ([{"start": 0.5, "end": 3, "label": "x"}], "whole numbers for start and end"),
        ([{"start": 0, "end": 3, "label": ""}], "a name for label"),
    ],
)
def test_bad_spans_name_the_row(spans: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tag_spans("Ann Lee ran", spans, "row 3")  # type: ignore[arg-type]


def test_an_i_that_continues_nothing_is_no_entity() -> None:
    assert find_entities(["I-x", "O", "B-x", "I-y", "I-x"]) == [Entity(2, 3, "x")]
    assert np.array_equal(find_entities([]), [])
