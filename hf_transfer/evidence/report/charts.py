"""The charts of a report, by section: each a function of the facts that gives none where there is nothing to draw."""

import math
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from hf_transfer.evidence.report.diagnostics import calibration_of
from hf_transfer.evidence.report.drawing import INK, MARKERS, MUTED, PAPER, Chart, arm_colour, drawing, finish
from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.formats import duration, interval, memory, percent, score, short_count, shorten, signed
from hf_transfer.evidence.report.sentences import arm_entry, budget_name, num_rows, primary_gains

Rows = list[list[Chart]]
"""Charts, by what belongs beside each other."""

MIN_TICK_RATIO = 1.35
"""Labelled rows whose ticks on a log axis stand closer than this are not both named."""
MOST_LETTERS = 16
LEAST_DECADE = 4
"""Largest over smallest cost from which on an axis is logarithmic."""
SPLIT_COLOURS = {"train": 0, "test": 1}
"""Split -> the colour of an arm that it borrows."""


def gain_charts(facts: Facts) -> Rows:
    """Draw the gains with their intervals, a chart a budget, all on one scale."""
    gains = primary_gains(facts.comparison)
    if not gains:
        return []
    low, high = min(0.0, *(gain["ci_low"] for gain in gains)), max(0.0, *(gain["ci_high"] for gain in gains))
    margin = 0.06 * (high - low or 1)
    charts = []
    for budget in reversed(facts.budgets):
        mine = [gain for gain in gains if gain["budget"] == budget]
        with drawing(60 + 34 * len(mine)) as (figure, axes):
            axes.axvline(0, color=MUTED, linewidth=1.2)
            for place, gain in enumerate(mine):
                colour, marker = _look(facts, gain["arm"])
                axes.plot([gain["ci_low"], gain["ci_high"]], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
                # Hollow where there is no evidence.
                inside = PAPER if gain["verdict"] == "no evidence" else colour
                axes.plot(gain["delta"], place, marker, markersize=9, markerfacecolor=inside, markeredgecolor=colour, markeredgewidth=1.8)
                axes.annotate(signed(gain["delta"]), (gain["delta"], place), (0, 9), textcoords="offset points", ha="center", size=11)
            axes.set_yticks(range(len(mine)), [shorten(gain["arm"], MOST_LETTERS) for gain in mine])
            axes.tick_params(axis="y", labelcolor=INK)
            axes.set_ylim(len(mine) - 0.6, -0.75)
            axes.set_xlim(low - margin, high + margin)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if abs(value) < 1e-9 else f"{value:+.2g}"))
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            axes.set_xlabel(f"{facts.comparison['primary_metric']} minus {facts.baseline}'s")
            words = [f"{gain['arm']} {signed(gain['delta'])} {interval(gain, True)}, {gain['verdict']}" for gain in mine]
            charts.append(finish(figure, f"gains-{budget}", _capital(budget_name(facts.comparison, budget)), words))
    return [charts]


def learning_charts(facts: Facts) -> Rows:
    """Draw scores over labelled rows, with bands; nothing where there is one budget."""
    comparison = facts.comparison
    rows = {budget: num_rows(comparison, budget) for budget in facts.budgets}
    if len(rows) < 2:
        return []
    metric = comparison["primary_metric"]
    words = []
    with drawing(270) as (figure, axes):
        for arm in facts.arms:
            points = [(rows[budget], entry) for budget in facts.budgets if (entry := arm_entry(comparison, arm, budget))]
            colour, marker = _look(facts, arm)
            counts = [count for count, _ in points]
            lows, highs = ([entry[end] for _, entry in points] for end in ("ci_low", "ci_high"))
            axes.fill_between(counts, lows, highs, color=colour, alpha=0.1, linewidth=0)
            for edge in (lows, highs):
                axes.plot(counts, edge, color=colour, linewidth=0.8, alpha=0.55)
            axes.plot(counts, [entry["mean"] for _, entry in points], f"{marker}-", color=colour, markeredgecolor=PAPER)
            words.append(f"{arm} " + ", ".join(f"{score(entry['mean'])} at {count:,} rows" for count, entry in points))
        if (floor := _floor(facts)) is not None:
            axes.axhline(floor, color=MUTED, linewidth=1.4, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        ticks = _apart(sorted(rows.values()))
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("labelled rows")
        axes.set_ylabel(f"{metric} on test")
        dotted = " (dotted: always the most frequent class)" if _floor(facts) is not None else ""
        return [[finish(figure, "learning", f"{_capital(metric)} over labelled rows{dotted}", words)]]


def training_charts(facts: Facts) -> Rows:
    """Draw validation loss and primary metric over updates, two charts a budget."""
    rows: Rows = []
    for budget in reversed(facts.budgets):
        rows.append([])
        where = budget_name(facts.comparison, budget)
        for key, name in (("loss", "validation loss"), (facts.comparison["primary_metric"],) * 2):
            title = f"{_capital(name if key == 'loss' else f'validation {name}')}, {where}"
            words = []
            with drawing(230) as (figure, axes):
                for arm in facts.arms:
                    curves = [_curve(result, key) for result in facts.of(arm, budget)]
                    _draw_curves(axes, curves, *_look(facts, arm))
                    words += [f"{arm} ends at {score(mean(curve[-1][1] for curve in curves))}"] if curves and all(curves) else []
                axes.set_xlabel("updates")
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
                axes.set_ylabel(name)
                rows[-1].append(finish(figure, f"training-{budget}-{key}", title, words))
    return rows


def cost_charts(facts: Facts) -> Rows:
    """Draw scores over time, trained parameters and memory, at the largest budget."""
    budget = facts.comparison["recommendation"]["budget"]
    measures: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("wall_seconds", "time of a training", duration),
        ("trainable_parameters", "trained parameters", short_count),
        ("peak_memory_bytes", "peak memory", memory),
    )
    return [[chart for key, name, show in measures if (chart := _cost_chart(facts, budget, key, name, show)) is not None]]


def calibration_charts(facts: Facts) -> Rows:
    """Draw how often the recommended model is right, by how sure it is."""
    if facts.chosen_predictions is None or not (bins := calibration_of(facts.chosen_predictions, facts.finds_entities)):
        return []
    colour, _ = _look(facts, facts.comparison["recommendation"]["arm"])
    total = sum(entry.count for entry in bins)
    with drawing(300) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.plot([entry.confidence for entry in bins], [entry.accuracy for entry in bins], color=colour, linewidth=1.4)
        for entry in bins:
            size = 4 + 12 * math.sqrt(entry.count / total)
            axes.plot(entry.confidence, entry.accuracy, "o", color=colour, markersize=size, markeredgecolor=PAPER)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.set_xlim(-0.03, 1.04)
        axes.set_ylim(-0.05, 1.08)
        axes.set_xlabel("how sure it is (size of a point: how many)")
        axes.set_ylabel("how often it is right")
        words = [f"{percent(entry.accuracy)} right where {percent(entry.confidence)} sure ({entry.count:,})" for entry in bins]
        return [[finish(figure, "calibration", "How often it is right, by how sure it is", words)]]


def length_charts(facts: Facts) -> Rows:
    """Draw how long rows are, training beside test."""
    splits = (facts.hygiene or {}).get("splits", {})
    shown = {name: splits[name]["lengths"] for name in SPLIT_COLOURS if name in splits and sum(splits[name]["lengths"]["counts"])}
    if not shown:
        return []
    unit = next(iter(shown.values()))["unit"]
    words = []
    with drawing(220) as (figure, axes):
        for name, lengths in shown.items():
            colour = arm_colour(SPLIT_COLOURS[name])
            total = sum(lengths["counts"])
            shares = [count / total for count in lengths["counts"]]
            axes.stairs(shares, lengths["edges"], color=colour, linewidth=1.8)
            axes.stairs(shares, lengths["edges"], color=colour, alpha=0.13, fill=True)
            middle = lengths["edges"][max(range(len(shares)), key=shares.__getitem__)]
            words.append(f"{name}: {total:,} rows, most from {middle:g} {unit} on")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(unit)
        axes.set_ylabel("share of rows")
        return [[finish(figure, "lengths", f"Rows by their {unit}", words)]]


CHARTS: dict[str, Callable[[Facts], Rows]] = {
    "gains": gain_charts,
    "labels": learning_charts,
    "training": training_charts,
    "cost": cost_charts,
    "calibration": calibration_charts,
    "data": length_charts,
}
"""Key of a section -> its charts."""


def arm_number(facts: Facts, arm: str) -> int | None:
    """Give an arm's place among the colours, the same in all charts; None for the baseline."""
    return None if arm == facts.baseline else [name for name in facts.arms if name != facts.baseline].index(arm)


def _look(facts: Facts, arm: str) -> tuple[str, str]:
    """Give an arm's colour and marker."""
    return arm_colour(arm_number(facts, arm)), MARKERS[facts.arms.index(arm) % len(MARKERS)]


def _floor(facts: Facts) -> float | None:
    """Give what the most frequent class, said always, scores by the primary metric."""
    floors = (facts.hygiene or {}).get("floors", {})
    return dict(floors.get("majority", {})).get(facts.comparison["primary_metric"])


def _curve(result: dict[str, Any], key: str) -> list[tuple[float, float]]:
    return [(entry["update"], entry["validation"][key]) for entry in result["history"] if entry["validation"].get(key) is not None]


def _draw_curves(axes: Axes, curves: Sequence[Sequence[tuple[float, float]]], colour: str, marker: str) -> None:
    """Draw a thin line a seed, and a thick one for their mean as far as all of them go."""
    for curve in curves if len(curves) > 1 else []:
        axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.8, alpha=0.5)
    shared = sorted(set.intersection(*({update for update, _ in curve} for curve in curves))) if curves else []
    if shared:
        values = [mean(dict(curve)[update] for curve in curves) for update in shared]
        axes.plot(shared, values, color=colour, marker=marker, markevery=max(1, len(shared) // 6), markeredgecolor=PAPER)


def _cost_chart(facts: Facts, budget: int | str, key: str, name: str, show: Callable[[float], str]) -> Chart | None:
    points = []
    for arm in facts.arms:
        costs = [result["cost"][key] for result in facts.of(arm, budget)]
        entry = arm_entry(facts.comparison, arm, budget)
        if entry and costs and None not in costs:
            points.append((arm, max(costs) if key == "peak_memory_bytes" else mean(costs), entry))
    if not points or min(value for _, value, _ in points) <= 0:
        return None
    metric = facts.comparison["primary_metric"]
    with drawing(220) as (figure, axes):
        for arm, value, entry in points:
            colour, marker = _look(facts, arm)
            axes.plot([value, value], [entry["ci_low"], entry["ci_high"]], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot(value, entry["mean"], marker, color=colour, markersize=9, markeredgecolor=PAPER)
        values = sorted(value for _, value, _ in points)
        if values[-1] / values[0] < LEAST_DECADE:
            axes.set_xlim(0, values[-1] * 1.15)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
        else:
            axes.set_xscale("log")
            axes.set_xlim(values[0] / 1.6, values[-1] * 1.6)
            ticks = _apart(values, max(2.0, (values[-1] / values[0]) ** 0.25))
            axes.set_xticks(ticks, [show(value) for value in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name)
        axes.set_ylabel(metric)
        words = [f"{arm} {score(entry['mean'])} for {show(value)}" for arm, value, entry in points]
        return finish(figure, f"cost-{key}", f"{_capital(name)}, {budget_name(facts.comparison, budget)}", words)


def _apart(values: Sequence[float], ratio: float = MIN_TICK_RATIO) -> list[float]:
    """Keep those of ascending values that stand far enough apart on a log axis to be named, the last among them."""
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if kept[-1] / value >= ratio:
            kept.append(value)
    return kept[::-1]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
