"""What the fuzz tests draw: texts as odd as they come, files as writers make them, and what becomes of a file on its way."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import event
from hypothesis import strategies as st

from hf_transfer.errors import TransferError

T = TypeVar("T")
ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "\ufeff",
    "\u200b\u200d",
    "e\u0301\u0323" * 3,
    "\u202eright to left \u0627\u0644\u0639",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    '"',
    'a "b" c',
    "a,b\tc;d",
    "\r\n",
    "\r",
    "NA",
    "null",
    "-1",
    "1e999",
    "#",
    "-DOCSTART-",
    "\U0001f469\u200d\U0001f680",
    "\ud7ff\ue000\U0010ffff",
    "word " * 300,
)
texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(codec="utf-8"), max_size=12))
"""Texts that have a form in UTF-8."""
wild_texts = st.one_of(texts, st.text(max_size=12), st.sampled_from(["\ud800", "a\udfff b"]))
"""Any that Python holds, halves of characters included."""
names = st.text("abcdef_ é", min_size=1, max_size=4)
"""Of columns and the like."""
floats = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 1e-300, float("nan"), float("inf"), float("-inf")])
scalars = st.one_of(st.none(), st.booleans(), st.integers() | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30]), floats, texts)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)
"""What JSON, or Python's reading of it, may hold."""


@st.composite
def tables(draw: st.DrawFn, max_rows: int = 8) -> dict[str, list[str]]:
    """Draw columns of texts: at least one column and one row."""
    columns = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    rows = draw(st.lists(st.tuples(*[texts] * len(columns)), min_size=1, max_size=max_rows))
    return {name: [row[index] for row in rows] for index, name in enumerate(columns)}


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Draw a file, and what a bad disk, a bad editor or a bad program makes of it."""
    data = draw(contents)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "drop", "flip", "insert", "repeat", "utf-16", "mark", "cr"])):
            case "cut":
                data = data[:at]
            case "drop":
                data = data[:at] + data[at + draw(st.integers(1, 3)) :]
            case "flip" if data:
                at %= len(data)
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "insert":
                extra = st.sampled_from([b'"', b"\n", b"\r", b"\0", b",", b"\t", b"[", b"{", b"\\ud800", b"NaN", b"\xff", b"\xef\xbb\xbf"])
                data = data[:at] + draw(extra | st.binary(max_size=4)) + data[at:]
            case "repeat":
                data = data[:at] + data
            case "utf-16":
                data = data.decode("utf-8", "replace").encode("utf-16")
            case "mark":
                data = b"\xef\xbb\xbf" + data
            case "cr":
                data = data.replace(b"\n", b"\r")
    return data


def delimited(columns: Mapping[str, Sequence[str]], separator: str) -> bytes:
    """Write a table as Python's csv module does."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue().encode()


def json_lines(rows: Sequence[Any], plain: bool = True) -> bytes:
    """Write values a line, as letters or (not `plain`) as escapes."""
    return "".join(json.dumps(row, ensure_ascii=not plain) + "\n" for row in rows).encode()


def result_or_sentence(do: Callable[[], T]) -> T | None:
    """Give what a function gives; where it refuses, check that it says so as a user's mistake, in one sentence that can be printed."""
    try:
        found = do()
    except TransferError as error:
        event("refused")
        message = str(error)
        assert message and len(message.splitlines()) == 1, message
        message.encode()
        return None
    event("accepted")
    return found


def write(path: Path, data: bytes) -> Path:
    """Write a file anew."""
    path.write_bytes(data)
    return path
