"""The content of a report, in its order: what the page and the markdown both show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.formats import duration, interval, score, signed
from hf_transfer.evidence.report.layout import Section
from hf_transfer.evidence.report.model_sections import calibration_section, classes_section, errors_section
from hf_transfer.evidence.report.result_sections import (
    arms_section,
    cost_section,
    gains_section,
    labels_section,
    scores_section,
    training_section,
)
from hf_transfer.evidence.report.run_sections import data_section, failed_section, repeat_section, search_section
from hf_transfer.evidence.report.sentences import (
    Verdict,
    about_seeds,
    arm_entry,
    budget_name,
    detectable,
    judge,
    least_ratio,
    match_words,
    primary_gains,
    ship,
    ship_evidence,
)

SECTIONS = (
    gains_section,
    scores_section,
    labels_section,
    training_section,
    cost_section,
    arms_section,
    classes_section,
    calibration_section,
    errors_section,
    data_section,
    search_section,
    failed_section,
    repeat_section,
)


@dataclass(frozen=True)
class Figure:
    """A number to begin with."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Content:
    """A report."""

    title: str
    subtitle: str
    verdict: Verdict
    ship: Sequence[str]
    notes: Sequence[str]
    """What the evidence cannot bear."""
    figures: Sequence[Figure]
    sections: Sequence[Section]


def make_content(facts: Facts) -> Content:
    """Say what a run found."""
    comparison = facts.comparison
    failed = len(comparison["failed"])
    notes = [
        about_seeds(len(facts.seeds)),
        detectable(comparison),
        f"{failed} training{' is' if failed == 1 else 's are'} missing: what failed stands below." if failed else None,
    ]
    return Content(
        title=facts.recipe["name"],
        subtitle=_subtitle(facts),
        verdict=judge(comparison),
        ship=[ship(comparison), ship_evidence(comparison)],
        notes=[note for note in notes if note],
        figures=_figures(facts),
        sections=[section for make in SECTIONS if (section := make(facts)) is not None],
    )


def _subtitle(facts: Facts) -> str:
    comparison, first = facts.comparison, facts.results[0]
    seeds = f"{len(facts.seeds)} seed{'' if len(facts.seeds) == 1 else 's'}"
    *fewer, most = (budget_name(comparison, budget).removesuffix(" labelled rows") for budget in facts.budgets)
    budgets = f"{', '.join(fewer)} and {most}" if fewer else most
    return (
        f"{comparison['task'].replace('-', ' ')} · {first['dataset']} · {len(comparison['labels'])} labels · {budgets} labelled rows · "
        f"{first['data']['test_rows']:,} test rows · {first['checkpoint']} · {', '.join(facts.arms)} · {seeds}"
    )


def _figures(facts: Facts) -> list[Figure]:
    """Give the score, the gain, the labels it saves and the time of the arm that the verdict speaks of."""
    comparison, chosen = facts.comparison, facts.comparison["recommendation"]
    arm, budget, baseline = judge(comparison).arm or chosen["arm"], chosen["budget"], facts.baseline
    metric, where = comparison["primary_metric"], budget_name(comparison, budget)
    figures = []
    mine, theirs = arm_entry(comparison, arm, budget), arm_entry(comparison, baseline, budget) if baseline else None
    if mine:
        figures.append(Figure(f"{metric} of {arm}", score(mine["mean"]), f"{interval(mine)}, {where}"))
    for gain in primary_gains(comparison, arm):
        if gain["budget"] == budget:
            figures.append(Figure(f"gain over {baseline}", signed(gain["delta"]), f"{interval(gain, True)}: {gain['verdict']}"))
    for entry in comparison["label_efficiency"]:
        if (entry["arm"], entry["budget"]) == (arm, budget):
            figures.append(
                Figure(f"labels {baseline} needs to match it", _labels_needed(comparison, entry), match_words(comparison, entry))
            )
    if mine:
        beside = f"{duration(theirs['wall_seconds'])} for {baseline}" if theirs else where
        figures.append(Figure(f"time of one {arm} training", duration(mine["wall_seconds"]), beside))
    return figures


def _labels_needed(comparison: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    if entry["matched"] == "reached":
        return f"{entry['ratio']:.1f}×"
    return f"> {least_ratio(comparison, entry):.1f}×" if entry["matched"] == "not reached" else "fewer"
