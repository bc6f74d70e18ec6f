"""What a report is made of, whatever it is written as: sections of sentences, tables and examples."""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_UNFOLDED = 25
"""Rows up to which a table of labels lies open."""
PRIVATE = "The data is private: rows are named by number, without what they hold."


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    is_number: bool = False
    """Stands to the right."""
    is_verbatim: bool = False
    """Holds what users wrote (labels, texts, paths): shown as it is, whatever it looks like."""


@dataclass(frozen=True)
class Table:
    """Rows of cells, each a text."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    flagged: frozenset[int] = frozenset()
    """Rows that must not be overlooked."""
    shades: Sequence[Sequence[float | None]] | None = None
    """How strongly each cell is shaded, 0 to 1; None = not."""
    folded: bool = False
    """Opened on request only."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a text, with the type of the entity that it is."""

    text: str
    entity: str | None = None


@dataclass(frozen=True)
class Reading:
    """What one side says of a row."""

    who: str
    label: str | None
    pieces: Sequence[Piece] = ()


@dataclass(frozen=True)
class Example:
    """A test row that somebody should look at."""

    title: str
    readings: Sequence[Reading]
    focus: str | None = None
    """The word it is about."""
    text: str | None = None
    image: str | None = None
    """As a `data:` address."""


@dataclass(frozen=True)
class Examples:
    """A list of them."""

    caption: str
    entries: Sequence[Example]
    shown: int = 5
    """Those beyond are opened on request."""


@dataclass(frozen=True)
class Section:
    """A part of the report, with a heading."""

    key: str
    """Its anchor, and what its charts are drawn by."""
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[Examples] = ()
    source: str | None = None
    """A file to be shown as it is."""
    commands: Sequence[str] = ()
    """To be typed into a shell."""
