"""The comparison as a table in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def render_table(comparison: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the primary metric of each arm and budget, gains over scratch, cost, and which arm to ship.

    Args:
        comparison: What `comparison.json` holds.
        results: What each cell's `result.json` holds.

    Returns:
        Lines of text, 100 columns or so.
    """
    metric = comparison["primary_metric"]
    seeds = sorted({result["seed"] for result in results})
    lines = []
    for budget in dict.fromkeys(entry["budget"] for entry in comparison["arms"]):
        cells = {result["arm"]: result for result in results if result["budget"] == budget}
        data = next(iter(cells.values()))["data"]
        seeded = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
        lines.append(
            f"budget {budget}: {data['train_rows']:,} rows train, {data['validation_rows']:,} validate, "
            f"{data['test_rows']:,} test; {seeded}"
        )
        rows = [["arm", metric, "[95 %]", "gain over scratch", "[95 %]", "verdict", "trained", "updates", "time"]]
        for entry in comparison["arms"]:
            if entry["budget"] == budget and entry["metric"] == metric:
                cost = cells[entry["arm"]]["cost"]
                rows.append(
                    [
                        entry["arm"],
                        f"{entry['mean']:.3f}",
                        f"[{entry['ci_low']:.3f}, {entry['ci_high']:.3f}]",
                        *_gain(comparison, entry["arm"], budget, metric),
                        _short_count(cost["trainable_parameters"]),
                        f"{cost['updates']:,}",
                        _duration(entry["wall_seconds"]),
                    ]
                )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        right = {1, 3, 6, 7, 8}
        for row in rows:
            cells_of_row = (
                text.rjust(width) if column in right else text.ljust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  " + "  ".join(cells_of_row).rstrip())
        lines.append("")
    chosen = comparison["recommendation"]
    lines.append(f"Ship: {chosen['arm']} (budget {chosen['budget']}, seed {chosen['seed']}): {chosen['reason']}.")
    if comparison["gains"]:
        lines.append("Gain: an arm's score minus scratch's, on the same rows. helps / hurts: the gain differs from 0 (p < 0.05, Holm).")
    if len(seeds) == 1:
        lines.append("One seed: the intervals cover other test rows, not another draw of training rows; --seeds 0 1 2 covers both.")
    few = sorted({result["data"]["validation_rows"] for result in results if result["data"]["validation_rows"] < 50})
    if few:
        lines.append(
            f"Fewer than 50 validation rows ({', '.join(map(str, few))}): no early stopping, and the last state is kept, not the best."
        )
    return "\n".join(lines)


def _gain(comparison: Mapping[str, Any], arm: str, budget: int | str, metric: str) -> list[str]:
    for gain in comparison["gains"]:
        if (gain["arm"], gain["budget"], gain["metric"]) == (arm, budget, metric):
            return [f"{gain['delta']:+.3f}", f"[{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]", gain["verdict"]]
    return ["-", "", ""]


def _short_count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
