"""The report as markdown, for a pull request: what users wrote stands in code spans, where it neither formats, links nor calls anybody."""

import html
import re

from hf_transfer.evidence.report.content import make_content
from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.layout import Example, Reading, Section, Table

SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#&])")
WORD_JOINER = "\u2060"
"""No width, and no mention: `@name` would call somebody."""


def render_markdown(facts: Facts) -> str:
    """Give the report as markdown."""
    content = make_content(facts)
    lines = [
        f"# {escape(content.title)}: does transfer help?",
        "",
        escape(content.subtitle),
        "",
        f"**{escape(content.verdict.sentence)}**",
        "",
    ]
    lines += [escape(" ".join(content.ship)), "", *(f"- {escape(note)}" for note in content.notes), ""]
    for section in content.sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Give a text that is shown as it is."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("@", f"@{WORD_JOINER}")


def code(text: str) -> str:
    """Give a text as a code span that stands in a table, too; an empty one stays empty."""
    line = " ".join(text.split()).replace("|", "\\|")
    if not line:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _section(section: Section) -> list[str]:
    lines = [f"## {escape(section.title)}", "", *(line for sentence in section.sentences for line in (escape(sentence), ""))]
    for table in section.tables:
        lines += _folded(table.caption, _table(table)) if table.folded else [f"**{escape(table.caption)}**", "", *_table(table), ""]
    for group in section.examples:
        entries = [line for entry in group.entries for line in _example(entry)] or ["None was found."]
        lines += _folded(f"{group.caption} ({len(group.entries)})", entries)
    for command in section.commands:
        lines += ["```", command, "```", ""]
    if section.source:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", section.source)), default=0))
        lines += _folded("recipe.yaml", [f"{fence}yaml", section.source.rstrip(), fence])
    return lines


def _table(table: Table) -> list[str]:
    header = [code(column.name) if table.shades and column.is_verbatim else escape(column.name) for column in table.columns]
    rule = ["---:" if column.is_number else "---" for column in table.columns]
    rows = [
        [code(text) if column.is_verbatim else escape(text) for text, column in zip(row, table.columns, strict=True)] for row in table.rows
    ]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def _folded(caption: str, lines: list[str]) -> list[str]:
    return ["<details>", f"<summary>{html.escape(caption, quote=False)}</summary>", "", *lines, "", "</details>", ""]


def _example(example: Example) -> list[str]:
    said = "; ".join(f"{escape(reading.who)}: {_reading(reading)}" for reading in example.readings)
    text = f": {code(example.text)}" if example.text else ""
    focus = f" ({code(example.focus)})" if example.focus else ""
    return [f"- {escape(example.title)}{focus}, {said}{text}"]


def _reading(reading: Reading) -> str:
    if reading.label is not None:
        return code(reading.label)
    return code(" ".join(f"[{piece.entity}: {piece.text}]" if piece.entity else piece.text for piece in reading.pieces))
