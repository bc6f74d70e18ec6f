"""The report as markdown, for a pull request: what users wrote stands in code spans, where it neither formats, links nor calls anybody."""

import html
import re

from hf_transfer.escaping import markdown_code, markdown_text, visible
from hf_transfer.evidence.report.content import make_content
from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.layout import Example, Reading, Section, Table


def render_markdown(facts: Facts) -> str:
    """Give the report as markdown."""
    content = make_content(facts)
    lines = [
        f"# {markdown_text(content.title)}: does transfer help?",
        "",
        markdown_text(content.subtitle),
        "",
        f"**{markdown_text(content.verdict.sentence)}**",
        "",
    ]
    lines += [markdown_text(" ".join(content.ship)), "", *(f"- {markdown_text(note)}" for note in content.notes), ""]
    for section in content.sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"## {markdown_text(section.title)}", "", *(line for sentence in section.sentences for line in (markdown_text(sentence), ""))]
    for table in section.tables:
        lines += _folded(table.caption, _table(table)) if table.folded else [f"**{markdown_text(table.caption)}**", "", *_table(table), ""]
    for group in section.examples:
        entries = [line for entry in group.entries for line in _example(entry)] or ["None was found."]
        lines += _folded(f"{group.caption} ({len(group.entries)})", entries)
    for command in section.commands:
        lines += ["```", command, "```", ""]
    if section.source:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", section.source)), default=0))
        lines += _folded("recipe.yaml", [f"{fence}yaml", visible(section.source.rstrip()), fence])
    return lines


def _table(table: Table) -> list[str]:
    header = [markdown_code(column.name) if table.shades and column.is_verbatim else markdown_text(column.name) for column in table.columns]
    rule = ["---:" if column.is_number else "---" for column in table.columns]
    rows = [
        [markdown_code(text) if column.is_verbatim else markdown_text(text) for text, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def _folded(caption: str, lines: list[str]) -> list[str]:
    return ["<details>", f"<summary>{html.escape(visible(caption), quote=False)}</summary>", "", *lines, "", "</details>", ""]


def _example(example: Example) -> list[str]:
    said = "; ".join(f"{markdown_text(reading.who)}: {_reading(reading)}" for reading in example.readings)
    text = f": {markdown_code(example.text)}" if example.text else ""
    focus = f" ({markdown_code(example.focus)})" if example.focus else ""
    return [f"- {markdown_text(example.title)}{focus}, {said}{text}"]


def _reading(reading: Reading) -> str:
    if reading.label is not None:
        return markdown_code(reading.label)
    return markdown_code(" ".join(f"[{piece.entity}: {piece.text}]" if piece.entity else piece.text for piece in reading.pieces))
