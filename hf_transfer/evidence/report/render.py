"""A finished run's report, in the format that is asked for."""

import json
from pathlib import Path

from hf_transfer.errors import ConfigError, did_you_mean, listed
from hf_transfer.evidence.report.facts import Facts, read_facts
from hf_transfer.evidence.report.markdown import render_markdown
from hf_transfer.evidence.report.sheet import render_sheet

FORMATS = ("html", "md", "csv", "json")


def render_report(run_folder: Path, format: str = "html") -> str:
    """Give the report of a finished run; it reads the run folder, and nothing else.

    Args:
        run_folder: With `comparison.json`, `recipe.yaml` and a `result.json` a cell.
        format: "html" (one page), "md" (for a pull request), "csv" (a row an arm, budget and metric) or "json" (all that was found).

    Raises:
        ConfigError: There is no such format.
        RunFolderError: It is no folder of a finished run.
    """
    if format not in FORMATS:
        raise ConfigError(f"a report is written as {listed(FORMATS)}, found '{format}'{did_you_mean(format, FORMATS)}")
    facts = read_facts(run_folder)
    if format == "html":
        # Matplotlib is for the page only.
        from hf_transfer.evidence.report.page import render_page

        return render_page(facts)
    return {"md": render_markdown, "csv": render_sheet, "json": _render_json}[format](facts)


def _render_json(facts: Facts) -> str:
    found = facts.comparison | {"hygiene": facts.hygiene, "search": facts.search}
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
