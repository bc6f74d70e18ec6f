"""The report as a sheet: a row an arm, budget and metric, with its gain beside it."""

import csv
import io

from hf_transfer.evidence.report.facts import Facts

OF_ARM = ("arm", "budget", "num_rows", "metric", "mean", "ci_low", "ci_high", "scope", "num_seeds", "wall_seconds")
OF_GAIN = ("baseline", "delta", "ci_low", "ci_high", "scope", "p_value", "p_adjusted", "verdict", "minimum_detectable")


def render_sheet(facts: Facts) -> str:
    """Give the comparison as CSV; a cell without a value is empty."""
    gains = {(gain["arm"], gain["budget"], gain["metric"]): gain for gain in facts.comparison["gains"]}
    floors = (facts.hygiene or {}).get("floors", {})
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*OF_ARM, *(name if name == "baseline" else f"gain_{name}" for name in OF_GAIN), "majority", "random"])
    for entry in facts.comparison["arms"]:
        gain = gains.get((entry["arm"], entry["budget"], entry["metric"]), {})
        floor = (floors.get(name, {}).get(entry["metric"]) for name in ("majority", "random"))
        writer.writerow([*(entry.get(name) for name in OF_ARM), *(gain.get(name) for name in OF_GAIN), *floor])
    return written.getvalue()
