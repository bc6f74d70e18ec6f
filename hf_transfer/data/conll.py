"""CoNLL files: a word and its tag a line, a blank line between sentences."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_transfer.errors import DataError
from hf_transfer.task_configs import DOCUMENT


def read_conll(path: Path) -> Dataset:
    """Read words (the first column) and tags (the last) of a UTF-8 file; columns are cut at tabs, or at blanks where there are none.

    A `-DOCSTART-` line ends a sentence, too, and begins a document; skipped are lines that begin with `#` and do not have the columns of
    the others (comments).

    Returns:
        Columns `tokens` and `ner_tags`, both lists of strings; where `-DOCSTART-` lines part them, the number of each sentence's document.

    Raises:
        DataError: A line has other columns than those before it; names the line.
    """
    found = list(_sentences(path))
    numbers, sentences = [number for number, _ in found], [sentence for _, sentence in found]
    columns: dict[str, list[Any]] = {
        "tokens": [[word for word, _ in sentence] for sentence in sentences],
        "ner_tags": [[tag for _, tag in sentence] for sentence in sentences],
    }
    return Dataset.from_dict(columns | ({DOCUMENT: numbers} if len(set(numbers)) > 1 else {}))


def _sentences(path: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Read the number of documents begun so far, and a sentence."""
    document = 0
    sentence: list[tuple[str, str]] = []
    num_columns = 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n")
            # Only blanks and tabs part columns: a word may hold a no-break space.
            cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            if not line.strip() or line.startswith("-DOCSTART-"):
                if sentence:
                    yield document, sentence
                sentence = []
                document += line.startswith("-DOCSTART-")
            elif line.startswith("#") and len(cells) != (num_columns or 2):
                continue
            elif len(cells) < 2 or len(cells) != (num_columns or len(cells)):
                expected = f"{num_columns} columns as in the lines before" if num_columns else "a word and its tag"
                raise DataError(f"{path} is malformed: line {number} has {len(cells)} ({line[:60]!r}), expected {expected}")
            else:
                num_columns = len(cells)
                sentence.append((cells[0], cells[-1].strip()))
    if sentence:
        yield document, sentence
