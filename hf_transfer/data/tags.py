"""Tags of words: BIO whatever the data writes, character spans as tags, and the entities that tags spell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Regex, pre_tokenizers

from hf_transfer.data.columns import is_class_label
from hf_transfer.errors import DataError, listed

if TYPE_CHECKING:
    from datasets import Dataset

OUTSIDE = "O"
# What begins an entity and what goes on with one, in BIO, IOB1, BIOES and BILOU.
BEGINNINGS, CONTINUATIONS = ("B", "S", "U"), ("I", "E", "L")

# Scripts that are written without blanks are cut at every character.
_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}]"), "isolated")]
)


@dataclass(frozen=True)
class Entity:
    """A named stretch of words."""

    start: int
    """First word."""
    end: int
    """One behind the last word."""
    type: str


def read_tags(
    splits: Mapping[str, "Dataset"], label_names: Sequence[str] | None = None
) -> tuple[list[str], dict[str, list[np.ndarray] | None]]:
    """Give the tags of words as BIO, whichever of BIO, IOB1 and BIOES the data writes.

    Args:
        splits: Split -> dataset with columns `tokens` and `ner_tags` (names, a ClassLabel, or integers that `label_names` names). A split
            without tags (no such column) is only allowed outside "train".
        label_names: Names of integer tags by position, or all string tags there may be.

    Returns:
        Names, (C,): `O`, then `B-` and `I-` of each type (in the data's own order, where it names exactly these); and split -> class
        ids of each row's words, (B,) of (N_i,) int64, or None for a split without tags.

    Raises:
        DataError: A tag is none of BIO, IOB1 or BIOES, or a row has more or fewer tags than words; names the row.
    """
    feature = _tag_feature(splits["train"])
    declared = list(feature.names) if is_class_label(feature) else [name.strip() for name in label_names or []]
    if is_class_label(feature) and label_names and list(label_names) != declared:
        raise DataError(f"the tag column names its tags itself ({listed(declared)}): leave label_names out")
    for name in declared:
        _checked_tag(name, declared, "the list of tag names")
    if len(set(declared)) < len(declared):
        raise DataError(f"tag names must differ, found {listed(declared)}")
    named = {split: _named_tags(split, dataset, declared) for split, dataset in splits.items()}
    used = {tag for rows in named.values() for row in rows or [] for tag in row}
    types = list(dict.fromkeys(type_of(tag) for tag in [*declared, *sorted(used)] if tag != OUTSIDE))
    names = [OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI")]
    if set(declared) == set(names):
        names = declared
    ids = {name: index for index, name in enumerate(names)}
    return names, {
        split: None if rows is None else [np.array([ids[tag] for tag in to_bio(row)], dtype=np.int64) for row in rows]
        for split, rows in named.items()
    }


def to_bio(tags: Sequence[str]) -> list[str]:
    """Rewrite tags so that every entity begins with `B-` and goes on with `I-`.

    What goes on with an entity of another type, or with none, begins one: so IOB1, where `B-` only parts neighbours of one type, BIOES
    and BIO (which stays as it is) are read alike.
    """
    bio = []
    before = OUTSIDE
    for tag in tags:
        if tag == OUTSIDE:
            bio.append(tag)
        else:
            goes_on = (
                tag[0] in CONTINUATIONS and before != OUTSIDE and type_of(before) == type_of(tag) and before[0] not in ("S", "U", "E", "L")
            )
            bio.append(f"{'I' if goes_on else 'B'}-{type_of(tag)}")
        before = tag
    return bio


def type_of(tag: str) -> str:
    """Give the entity type of a tag other than `O`: `person` of `B-person`."""
    return tag[2:]


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """Give the entities that tags spell under strict IOB2: each begins with `B-`; an `I-` that continues nothing is none."""
    entities = []
    start = None
    for position, tag in enumerate([*tags, OUTSIDE]):
        if start is not None and tag != f"I-{type_of(tags[start])}":
            entities.append(Entity(start, position, type_of(tags[start])))
            start = None
        if tag.startswith("B-"):
            start = position
    return entities


def split_words(text: str) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Cut a text into words and marks of punctuation.

    Returns:
        Words, (N,), and where each stands, (N,) of (start, end) in characters.
    """
    found = _WORDS.pre_tokenize_str(text)
    return tuple(word for word, _ in found), [place for _, place in found]


def tag_spans(text: str, spans: Sequence[Mapping[str, Any]] | None, where: str) -> tuple[tuple[str, ...], list[str]]:
    """Cut a text into words and tag them by character spans; a word that a span covers in part belongs to it whole.

    Args:
        text: The text.
        spans: Each with `start`, `end` (one behind the last character) and `label`.
        where: Names the row in messages.

    Returns:
        Words and BIO tags, (N,) each.

    Raises:
        DataError: A span is malformed, outside the text, holds no word, or overlaps another.
    """
    words, places = split_words(text)
    tags = [OUTSIDE] * len(words)
    last_end, last_span = 0, ""
    for span in sorted((_checked_span(text, span, where) for span in spans or []), key=lambda span: span["start"]):
        shown = f"{span['label']} {text[span['start'] : span['end']]!r} ({span['start']} to {span['end']})"
        if span["start"] < last_end:
            raise DataError(f"{where}: the spans {last_span} and {shown} overlap; keep one of them")
        covered = [index for index, (start, end) in enumerate(places) if start < span["end"] and end > span["start"]]
        if not covered:
            raise DataError(f"{where}: the span {shown} holds no word; give it the characters of its words")
        if tags[covered[0]] != OUTSIDE:
            raise DataError(f"{where}: the spans {last_span} and {shown} share the word '{words[covered[0]]}'; move their border")
        for position, index in enumerate(covered):
            tags[index] = f"{'I' if position else 'B'}-{span['label']}"
        last_end, last_span = span["end"], shown
    return words, tags


def _checked_span(text: str, span: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(span, Mapping) or not {"start", "end", "label"} <= set(span):
        raise DataError(f"{where}: a span needs start, end and label, found {span!r}")
    # A column of numbers with one fraction among them is all floats.
    start, end = (int(span[key]) if isinstance(span[key], float) and span[key].is_integer() else span[key] for key in ("start", "end"))
    label = span["label"]
    # True and False are whole numbers to Python.
    if not (type(start) is type(end) is int and isinstance(label, str) and label.strip()):
        raise DataError(f"{where}: a span needs whole numbers for start and end and a name for label, found {dict(span)!r}")
    if not 0 <= start < end <= len(text):
        raise DataError(f"{where}: the span {start} to {end} ({label}) is outside its text of {len(text)} characters, or empty")
    return {"start": start, "end": end, "label": label.strip()}


def _tag_feature(dataset: "Dataset") -> Any:
    return getattr(dataset.features.get("ner_tags"), "feature", None)


def _named_tags(split: str, dataset: "Dataset", names: Sequence[str]) -> list[list[str]] | None:
    """Give the tags of each row by name, each of them checked, or None for a split without tags."""
    if "ner_tags" not in dataset.column_names:
        return None
    feature = _tag_feature(dataset)
    # A split may number its tags in another order than training does.
    names = list(feature.names) if is_class_label(feature) else names
    rows = []
    known: dict[Any, str] = {}
    for row, (words, tags) in enumerate(zip(dataset["tokens"][:], dataset["ner_tags"][:], strict=True)):
        if not isinstance(tags, list) or len(tags) != len(words or []):
            found = f"{len(tags)} tags" if isinstance(tags, list) else f"{tags!r} for tags"
            raise DataError(f"{split} row {row} has {len(words or [])} words and {found}: every word needs one tag")
        for tag in tags:
            if not isinstance(tag, (str, int)) or tag not in known:
                known[tag] = _checked_tag(tag, names, f"{split} row {row}")
        rows.append([known[tag] for tag in tags])
    return rows


def _checked_tag(tag: Any, names: Sequence[str], where: str) -> str:
    """Give a tag's name.

    Raises:
        DataError: It is no tag of BIO, IOB1 or BIOES, or a number that nothing names.
    """
    if isinstance(tag, int) and not isinstance(tag, bool):
        if not names:
            raise DataError(f"{where} has the tag {tag}, and nothing names it: --set 'data.label_names=[O, B-person, I-person, ...]'")
        if not 0 <= tag < len(names):
            raise DataError(f"{where} has the tag {tag}, {len(names)} tags are named (0 to {len(names) - 1})")
        tag = names[tag]
    tag = tag.strip() if isinstance(tag, str) else tag
    if names and tag not in names:
        raise DataError(f"{where} has the tag {tag!r}, which is none of {listed(names)}")
    if tag != OUTSIDE and not (isinstance(tag, str) and tag[:1] in BEGINNINGS + CONTINUATIONS and tag[1:2] == "-" and tag[2:].strip()):
        raise DataError(f"{where} has the tag {tag!r}, expected O, or B-TYPE and I-TYPE (BIO, IOB1), or S-TYPE and E-TYPE as well (BIOES)")
    return str(tag)
