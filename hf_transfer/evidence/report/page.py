"""The report as one page: no script, no other file, nothing from the network."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

import hf_transfer
from hf_transfer.escaping import visible
from hf_transfer.evidence.report.charts import CHARTS, SPLIT_COLOURS, arm_number
from hf_transfer.evidence.report.content import make_content
from hf_transfer.evidence.report.drawing import GLYPHS, arm_colour, variable_of
from hf_transfer.evidence.report.facts import Facts

ROWS_SHOWN = 2
"""Rows of charts in a section; those beyond are opened on request."""


def render_page(facts: Facts) -> str:
    """Give the report as HTML; all that comes from users is escaped."""
    pages = Environment(
        loader=PackageLoader("hf_transfer.evidence.report", "."),
        autoescape=True,
        # A right-to-left override would turn what stands behind it around, and control characters are no HTML.
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.filters["unbroken"] = _unbroken
    content = make_content(facts)
    arms = [
        {"name": arm, "variable": variable_of(arm_colour(arm_number(facts, arm))), "glyph": GLYPHS[index % len(GLYPHS)]}
        for index, arm in enumerate(facts.arms)
    ]
    splits = [{"name": name, "variable": variable_of(arm_colour(index)), "glyph": "■"} for name, index in SPLIT_COLOURS.items()]
    return pages.get_template("page.html.jinja").render(
        content=content,
        charts={section.key: CHARTS[section.key](facts) if section.key in CHARTS else [] for section in content.sections},
        legends=dict.fromkeys(("labels", "training", "cost"), arms) | {"data": splits},
        rows_shown=ROWS_SHOWN,
        version=hf_transfer.__version__,
    )


def _unbroken(text: str) -> str:
    """Keep a number beside its sign and its unit where lines break."""
    return re.sub(r"(?<=\d) (?=%)|(?<=p) (?=[<=])|(?<=[<=>]) (?=\d)", "\u00a0", text)
