"""The comparison as a table in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_transfer.escaping import visible_line
from hf_transfer.evidence.fit import MIN_ROWS_TO_CHOOSE
from hf_transfer.evidence.report.formats import duration, interval, score, short_count, signed
from hf_transfer.evidence.report.sentences import (
    about_seeds,
    detectable,
    disagreements,
    failures,
    label_efficiency,
    ship,
    ship_evidence,
)


def render_table(comparison: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the primary metric of each arm and budget, gains over scratch, cost, and which arm to ship.

    Args:
        comparison: What `comparison.json` holds.
        results: What each cell's `result.json` holds.

    Returns:
        Lines of text: a table of 120 columns or so for each budget, then sentences.
    """
    seeds = sorted({result["seed"] for result in results})
    lines = []
    for budget in dict.fromkeys(entry["budget"] for entry in comparison["arms"]):
        cells = [result for result in results if result["budget"] == budget]
        data = cells[0]["data"]
        counts = f"{data['train_rows']:,} rows train, {data['validation_rows']:,} validate, {data['test_rows']:,} test"
        lines.append(f"budget {budget}: {counts}; {f'seed {seeds[0]}' if len(seeds) == 1 else f'mean of {len(seeds)} seeds'}")
        lines += [*_align(_rows(comparison, cells, budget)), ""]
    lines += [ship(comparison), ship_evidence(comparison), *filter(None, [detectable(comparison)])]
    lines += label_efficiency(comparison)
    if comparison["gains"]:
        baseline = comparison["gains"][0]["baseline"]
        family = sum(gain["metric"] == comparison["primary_metric"] for gain in comparison["gains"])
        corrected = f" by Holm's correction for {family} gains (the intervals are not corrected)" if family > 1 else ""
        lines.append(f"Gain: an arm's score minus {baseline}'s, on the same rows. helps / hurts: it differs from 0, p < 0.05{corrected}.")
    lines += filter(None, [disagreements(comparison), about_seeds(len(seeds))])
    few = sorted({result["data"]["validation_rows"] for result in results if result["data"]["validation_rows"] < MIN_ROWS_TO_CHOOSE})
    if few:
        found = f"Fewer than {MIN_ROWS_TO_CHOOSE} validation rows ({', '.join(map(str, few))})"
        lines.append(f"{found}: no early stopping, and the last state is kept, not the best.")
    lines += [f"Failed: {failure}" for failure in failures(comparison)]
    return "\n".join(map(visible_line, lines))


def _rows(comparison: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], budget: int | str) -> list[list[str]]:
    """Give the header and a row an arm; the columns of gains are left out where nothing was trained from scratch."""
    metric = comparison["primary_metric"]
    gains = {gain["arm"]: gain for gain in comparison["gains"] if (gain["budget"], gain["metric"]) == (budget, metric)}
    baseline = next((gain["baseline"] for gain in gains.values()), None)
    rows = [["arm", metric, "[95 %]", *([f"gain over {baseline}", "[95 %]", "verdict"] if gains else []), "trained", "updates", "time"]]
    for entry in comparison["arms"]:
        if (entry["budget"], entry["metric"]) == (budget, metric):
            costs = [result["cost"] for result in cells if result["arm"] == entry["arm"]]
            updates = round(sum(cost["updates"] for cost in costs) / len(costs))
            found = [entry["arm"], score(entry["mean"]), interval(entry)]
            price = [short_count(costs[0]["trainable_parameters"]), f"{updates:,}", duration(entry["wall_seconds"])]
            rows.append(found + (_gain(gains.get(entry["arm"])) if gains else []) + price)
    return rows


def _gain(gain: Mapping[str, Any] | None) -> list[str]:
    if gain is None:
        return ["-", "", ""]
    return [signed(gain["delta"]), interval(gain, of_difference=True), gain["verdict"]]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad cells to their column's width: numbers to the right, names and intervals to the left."""
    lines = []
    columns = list(zip(*rows, strict=True))
    for row in rows:
        cells = [
            text.rjust(max(map(len, column))) if column[-1] and column[-1][0] in "+-0123456789" else text.ljust(max(map(len, column)))
            for text, column in zip(row, columns, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
