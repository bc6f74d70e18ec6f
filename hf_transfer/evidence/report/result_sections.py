"""The sections about scores: gains, metrics, labels needed, training, cost."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.formats import detectable_gain, duration, interval, memory, p_value, score, short_count, signed
from hf_transfer.evidence.report.layout import Column, Section, Table
from hf_transfer.evidence.report.sentences import (
    LOWER_IS_BETTER,
    arm_entry,
    budget_name,
    disagreements,
    label_efficiency,
    match_words,
    mean_of,
    num_rows,
    primary_gains,
)
from hf_transfer.run_settings import budget_order

ARM, BUDGET = Column("arm"), Column("labelled rows", is_number=True)
MOST_SEEDS = 5
"""Seeds up to which each is listed."""
MOST_BUDGETS = 2
"""Budgets up to which each has its table unfolded."""


def gains_section(facts: Facts) -> Section | None:
    """Gains over the baseline by the primary metric; the others folded away."""
    comparison = facts.comparison
    gains = primary_gains(comparison)
    if not gains:
        return None
    metric, baseline = comparison["primary_metric"], facts.baseline
    family = f" by Holm's correction for {len(gains)} gains (the intervals are not corrected)" if len(gains) > 1 else ""
    sentences = [
        f"Gain: an arm's {metric} on test minus {baseline}'s, on the same rows, budgets and seeds, with 95 % intervals. "
        f"helps / hurts: it differs from 0, p < 0.05{family}.",
        *filter(None, [disagreements(comparison)]),
    ]
    rows = []
    for gain in gains:
        found = (signed(gain["delta"]), interval(gain, True), p_value(gain["p_adjusted"]), gain["verdict"])
        rows.append([*_place(facts, gain), *found, detectable_gain(gain["minimum_detectable"])])
    columns = [ARM, BUDGET, Column(f"gain in {metric}", True), Column("95 % interval"), Column("p, corrected", True), Column("verdict")]
    tables = [Table(f"Gains over {baseline}", [*columns, Column("smallest detectable", True)], rows)]
    if len(comparison["metrics"]) > 1:
        tables.append(_other_gains(facts))
    if comparison["pairs"]:
        tables.append(_pairs(facts))
    return Section("gains", f"Gain over {baseline}", sentences, tables)


def scores_section(facts: Facts) -> Section:
    """Every metric of every arm, and what guessing scores."""
    comparison = facts.comparison
    metrics = comparison["metrics"]
    floors = (facts.hygiene or {}).get("floors", {})
    columns = [ARM, *(Column(metric) for metric in metrics), Column("seeds", True)]
    tables = []
    for number, budget in enumerate(reversed(facts.budgets)):
        rows = []
        for arm in facts.arms:
            entries = [arm_entry(comparison, arm, budget, metric) for metric in metrics]
            if entries[0] is not None:
                rows.append(
                    [arm, *(f"{score(entry['mean'])} {interval(entry)}" for entry in entries if entry), str(entries[0]["num_seeds"])]
                )
        for name, words in (("majority", "always the most frequent class"), ("random", "classes drawn by their frequency")):
            if name in floors:
                rows.append([words, *(score(floors[name].get(metric)) for metric in metrics), ""])
        rows_in = budget_name(comparison, budget)
        tables.append(Table(f"With {rows_in}", columns, rows, folded=number >= MOST_BUDGETS))
    sentences = [f"Means over seeds on test, with 95 % intervals. {metrics[0]} is the primary metric, which verdicts are about."]
    if less := [metric for metric in metrics if metric in LOWER_IS_BETTER]:
        sentences[0] += f" Of {less[0]} (expected calibration error), less is better."
    return Section("scores", "Scores on test", sentences, tables)


def labels_section(facts: Facts) -> Section:
    """How scores grow with labelled rows, and how many the baseline needs to match each arm."""
    comparison = facts.comparison
    sentences = label_efficiency(comparison)
    if len(facts.budgets) == 1:
        only = facts.budgets[0]
        rows_in = num_rows(comparison, only)
        sentences.append(
            f"One budget draws no curve: --budgets {rows_in // 4} {rows_in // 2} {only} would show how scores grow with labels."
        )
    entries = sorted(comparison["label_efficiency"], key=lambda entry: (facts.arms.index(entry["arm"]), budget_order(entry["budget"])))
    rows = [
        [
            *_place(facts, entry),
            match_words(comparison, entry),
            "-" if entry["baseline_rows"] is None else f"{entry['baseline_rows']:,.0f}",
            _times(entry["ratio"]),
            _by_seed(entry["ratio_by_seed"]),
        ]
        for entry in entries
    ]
    columns = [ARM, BUDGET, Column(f"{facts.baseline} needs"), Column("rows", True), Column("ratio", True), Column("ratio by seed")]
    title = f"What {facts.baseline} needs to match each arm, read off its own learning curve"
    tables = [Table(title, columns, rows)] if rows else []
    return Section("labels", "What labels are worth", sentences, tables)


def training_section(facts: Facts) -> Section:
    """The curves of training, and how soon each arm is as good as the baseline at its best."""
    comparison = facts.comparison
    rows = [
        [
            *_place(facts, entry),
            "never" if entry["updates"] is None else f"{entry['updates']:,.0f}",
            f"{entry['baseline_updates']:,.0f}",
            f"{entry['num_reached']} of {entry['num_seeds']}",
        ]
        for entry in comparison["training_speed"]
    ]
    columns = [ARM, BUDGET, Column("updates", True), Column(f"{facts.baseline}'s own", True), Column("seeds that reached it", True)]
    title = f"Updates until an arm validated as well as {facts.baseline} at its best, by {comparison['primary_metric']} (median over seeds)"
    sentences = ["On validation rows after each epoch: thin lines are seeds, the thick one is their mean."]
    return Section("training", "How training went", sentences, [Table(title, columns, rows)] if rows else [])


def cost_section(facts: Facts) -> Section:
    """What each arm costs."""
    columns = [
        ARM,
        BUDGET,
        Column(facts.comparison["primary_metric"], True),
        Column("time", True),
        Column("of it training", True),
        Column("trained parameters", True),
        Column("of", True),
        Column("peak memory", True),
    ]
    rows = []
    for arm, budget, results in _groups(facts):
        costs = [result["cost"] for result in results]
        peaks = [cost["peak_memory_bytes"] for cost in costs if cost["peak_memory_bytes"] is not None]
        rows.append(
            [
                *_place(facts, {"arm": arm, "budget": budget}),
                score(mean_of(facts.comparison, arm, budget)),
                duration(mean(cost["wall_seconds"] for cost in costs)),
                duration(mean(cost["train_seconds"] for cost in costs)),
                short_count(costs[0]["trainable_parameters"]),
                short_count(costs[0]["total_parameters"]),
                memory(max(peaks, default=None)),
            ]
        )
    sentence = "A training's mean time, evaluation included, and its largest memory; " + environment_words(facts.results) + "."
    return Section("cost", "Cost against quality", [sentence], [Table("Cost of each arm", columns, rows)])


def arms_section(facts: Facts) -> Section:
    """What each arm was allowed, and what it used."""
    names = ("start", "tuning", "learning rate", "epochs allowed", "epochs trained", "updates", "state kept")
    columns = [ARM, BUDGET, *(Column(name, name not in ("start", "tuning", "state kept")) for name in names)]
    rows = []
    for arm, budget, results in _groups(facts):
        rows.append(
            [
                *_place(facts, {"arm": arm, "budget": budget}),
                results[0]["init"],
                results[0]["tuning"],
                _spread([f"{result['settings']['learning_rate']:g}" for result in results]),
                f"{results[0]['settings']['num_epochs']:g}",
                _spread([f"{_epochs(result):g}" for result in results]),
                _spread([f"{result['cost']['updates']:,}" for result in results]),
                _spread([f"epoch {result['best_epoch']}" if result.get("best_epoch") else "last" for result in results]),
            ]
        )
    sentences = ["Every arm has its own learning rate and its own allowance of epochs; by seed where seeds differ."]
    if facts.baseline:
        sentences.append(f"{facts.baseline} must be a fair opponent: look whether it was still improving when its epochs were over.")
    return Section("arms", "What each arm was allowed and used", sentences, [Table("Allowed and used", columns, rows)])


def environment_words(results: Sequence[Mapping[str, Any]]) -> str:
    """Name the device, processes, threads and precision of the trainings."""
    found = results[0]["environment"]
    processes = f"{found['num_processes']} process{'' if found['num_processes'] == 1 else 'es'}"
    threads = f"{found['num_threads']} thread{'' if found['num_threads'] == 1 else 's'}"
    return f"{found['device']}, {processes} of {threads}, {found['precision']}"


def _groups(facts: Facts) -> list[tuple[str, int | str, list[dict[str, Any]]]]:
    return [(arm, budget, results) for budget in facts.budgets for arm in facts.arms if (results := facts.of(arm, budget))]


def _place(facts: Facts, entry: Mapping[str, Any]) -> list[str]:
    """Give the cells that say which arm and budget a row is about."""
    name = budget_name(facts.comparison, entry["budget"]).removesuffix(" labelled rows")
    return [entry["arm"], name]


def _other_gains(facts: Facts) -> Table:
    primary = facts.comparison["primary_metric"]
    gains = sorted(facts.comparison["gains"], key=lambda gain: budget_order(gain["budget"]))
    rows = [
        [*_place(facts, gain), gain["metric"], signed(gain["delta"]), interval(gain, True), p_value(gain["p_value"])]
        for gain in gains
        if gain["metric"] != primary
    ]
    columns = [ARM, BUDGET, Column("metric"), Column("gain", True), Column("95 % interval"), Column("p, not corrected", True)]
    return Table("Gains by the other metrics", columns, rows, folded=True)


def _pairs(facts: Facts) -> Table:
    rows = [
        [entry["arm"], entry["other"], _place(facts, entry)[1], signed(entry["delta"]), interval(entry, True), p_value(entry["p_value"])]
        for entry in facts.comparison["pairs"]
    ]
    columns = [ARM, Column("minus"), BUDGET, Column("difference", True), Column("95 % interval"), Column("p, not corrected", True)]
    return Table("Every two arms", columns, rows, folded=True)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _by_seed(ratios: Sequence[float | None]) -> str:
    """Give each seed's ratio; of many seeds the range."""
    reached = [ratio for ratio in ratios if ratio is not None]
    if len(ratios) <= MOST_SEEDS or not reached:
        return ", ".join(map(_times, ratios)) if reached else "-"
    return f"{_times(min(reached))} to {_times(max(reached))} ({len(reached)} of {len(ratios)})"


def _epochs(result: Mapping[str, Any]) -> float:
    return float(result["history"][-1]["epoch"]) if result["history"] else 0.0


def _spread(texts: Sequence[str]) -> str:
    """Give one text for all seeds, or each where they differ."""
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)
