"""What a comparison says, in words: the same ones in the terminal, the page and the markdown. All take what `comparison.json` holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_transfer.errors import listed
from hf_transfer.evidence.report.formats import detectable_gain, interval, p_value, score, signed
from hf_transfer.run_settings import budget_order

Comparison = Mapping[str, Any]
Tone = Literal["helps", "hurts", "no evidence", "mixed", "unknown"]

DOES = {"helps": "helps", "hurts": "hurts", "no evidence": "shows no evidence"}
"""Verdict -> what transfer does by it."""
LOWER_IS_BETTER = frozenset({"ece"})
"""Metrics whose gain is a loss."""
ROUNDING = 1e-6
MOST_BUDGETS = 4
"""Budgets up to which a sentence names each."""


@dataclass(frozen=True)
class Verdict:
    """Whether transfer helps."""

    tone: Tone
    arm: str | None
    """Of the gain it speaks of."""
    sentence: str


def primary_gains(comparison: Comparison, arm: str | None = None) -> list[Mapping[str, Any]]:
    """Give the gains in the primary metric, of one arm or of all, few labels first."""
    gains = [gain for gain in comparison["gains"] if gain["metric"] == comparison["primary_metric"] and (arm is None or gain["arm"] == arm)]
    return sorted(gains, key=lambda gain: budget_order(gain["budget"]))


def budgets_of(comparison: Comparison) -> list[int | str]:
    """Give the budgets of a run, few labels first."""
    return sorted({entry["budget"] for entry in comparison["arms"]}, key=budget_order)


def arm_entry(comparison: Comparison, arm: str, budget: int | str, metric: str | None = None) -> Mapping[str, Any] | None:
    """Give an arm's entry at a budget, in the primary metric where none is named, or None."""
    wanted = (arm, budget, metric or comparison["primary_metric"])
    return next((entry for entry in comparison["arms"] if (entry["arm"], entry["budget"], entry["metric"]) == wanted), None)


def mean_of(comparison: Comparison, arm: str, budget: int | str) -> float | None:
    """Give an arm's mean primary metric at a budget, or None."""
    entry = arm_entry(comparison, arm, budget)
    return None if entry is None else float(entry["mean"])


def num_rows(comparison: Comparison, budget: int | str) -> int:
    """Give the labelled rows of a budget."""
    return next(int(entry["num_rows"]) for entry in comparison["arms"] if entry["budget"] == budget)


def budget_name(comparison: Comparison, budget: int | str) -> str:
    """Name a budget: `60 labelled rows`, `all 256 labelled rows`."""
    return f"{'all ' if budget == 'all' else ''}{num_rows(comparison, budget):,} labelled rows"


def judge(comparison: Comparison) -> Verdict:
    """Say in one sentence whether transfer helps, by how much and on how many labels.

    It speaks of the arm to ship; where that is the baseline, of the other arm with the largest gain on the most labels.
    """
    chosen, metric = comparison["recommendation"], comparison["primary_metric"]
    gains = primary_gains(comparison, chosen["arm"])
    if not gains and comparison["gains"]:
        largest = [gain for gain in primary_gains(comparison) if gain["budget"] == primary_gains(comparison)[-1]["budget"]]
        gains = primary_gains(comparison, max(largest, key=lambda gain: gain["delta"])["arm"])
    if not gains:
        entry = arm_entry(comparison, chosen["arm"], chosen["budget"])
        found = f": {chosen['arm']} scores {metric} {score(entry['mean'])} {interval(entry)}" if entry else ""
        where = budget_name(comparison, chosen["budget"])
        return Verdict(
            "unknown", None, f"Whether transfer helps this run cannot say, as no training from scratch was finished{found} on {where}."
        )
    arm, baseline, last = gains[-1]["arm"], gains[-1]["baseline"], gains[-1]
    verdicts = list(dict.fromkeys(gain["verdict"] for gain in gains))
    if len(verdicts) > 1:
        parts = "; ".join(_of_verdict(comparison, gains, verdict) for verdict in DOES if verdict in verdicts)
        return Verdict("mixed", arm, f"Transfer ({arm} against {baseline}, {metric}) {parts}.")
    mine, theirs = (mean_of(comparison, name, last["budget"]) for name in (arm, baseline))
    scores = f"{arm} scores {metric} {score(mine)}, {baseline} {score(theirs)}"
    where = budget_name(comparison, last["budget"])
    size = f"{signed(last['delta'])} {interval(last, of_difference=True)}"
    if mine is not None and theirs is not None and abs(mine - theirs - last["delta"]) > ROUNDING:
        size += " on the seeds that both have finished"
    others = _other_budgets(comparison, gains[:-1])
    openings: dict[str, tuple[Tone, str, str]] = {
        "helps": ("helps", "Transfer helps", f"a gain of {size}"),
        "hurts": ("hurts", "Transfer hurts", f"a loss of {size}"),
        "no evidence": ("no evidence", "No evidence that transfer helps", f"a difference of {size} that may be chance"),
    }
    tone, opening, difference = openings[verdicts[0]]
    differing = [
        gain for gain in primary_gains(comparison) if gain["budget"] == last["budget"] and gain["verdict"] not in (tone, "no evidence")
    ]
    if not differing:
        return Verdict(tone, arm, f"{opening}: on {where} {scores}, {difference}{others}.")
    told = "; ".join(
        f"{gain['arm']} {gain['verdict']} ({signed(gain['delta'])} {interval(gain, of_difference=True)})" for gain in differing
    )
    opening = {"no evidence": f"No evidence that {arm} helps"}.get(tone, f"{opening} with {arm}")
    return Verdict(tone, arm, f"{opening}: on {where} {scores}, {difference}{others}. But {told}.")


def ship(comparison: Comparison) -> str:
    """Say which model to ship, and why."""
    chosen = comparison["recommendation"]
    return f"Ship: {chosen['arm']} (budget {chosen['budget']}, seed {chosen['seed']}): {chosen['reason']}."


def ship_evidence(comparison: Comparison) -> str:
    """Say whether the gain of the arm to ship has evidence: it is chosen by validation, which does not ask."""
    chosen = comparison["recommendation"]
    if not comparison["gains"]:
        return "No training from scratch was finished, so this run cannot say whether transfer helps."
    baseline = comparison["gains"][0]["baseline"]
    if chosen["arm"] == baseline:
        return f"It is the arm trained from scratch: by validation no pretrained arm is worth shipping before {baseline}."
    gain = next((gain for gain in primary_gains(comparison, chosen["arm"]) if gain["budget"] == chosen["budget"]), None)
    if gain is None:
        return f"Its gain over {baseline} is not known: {baseline} has no finished training at this budget."
    size = f"{signed(gain['delta'])} {interval(gain, of_difference=True)}"
    family = len(primary_gains(comparison))
    probability = p_value(gain["p_adjusted"])
    corrected = f"p {probability if probability.startswith('<') else f'= {probability}'}" + (
        f" after Holm's correction for {family} gains" if family > 1 else ""
    )
    return {
        "helps": f"Its gain over {baseline} has evidence: {size}, {corrected}.",
        "hurts": f"But on test it is worse than {baseline}: {size}, {corrected}.",
        "no evidence": f"Its gain over {baseline} has no evidence: {size}, {corrected}.",
    }[gain["verdict"]]


def detectable(comparison: Comparison) -> str | None:
    """Say how large a gain must be for this design to find it, and what would show smaller ones; None where the run does not tell."""
    chosen = comparison["recommendation"]
    gains = [gain for gain in primary_gains(comparison) if gain["minimum_detectable"] is not None]
    at_budget = [gain for gain in gains if gain["budget"] == chosen["budget"]]
    if not at_budget:
        return None
    named = judge(comparison).arm
    gain = next((gain for gain in at_budget if gain["arm"] == named), at_budget[0])
    if gain["minimum_detectable"] > 1:
        return (
            f"Of {gain['arm']} (budget {gain['budget']}) this design could not be expected to detect any gain, however large: "
            "more seeds or more test rows would."
        )
    return (
        f"Smallest gain this design could be expected to detect: {detectable_gain(gain['minimum_detectable'])} "
        f"({gain['arm']}, budget {gain['budget']}); more seeds or more test rows show smaller ones."
    )


def about_seeds(num_seeds: int) -> str | None:
    """Say what so few seeds cannot show."""
    if num_seeds == 1:
        return "One seed: the intervals cover other test rows, not another draw of training rows; --seeds 0 1 2 covers both."
    if num_seeds == 2:
        return (
            "Two seeds: with one degree of freedom a 95 % interval is up to 12.7 standard errors to each side; a third seed makes it 4.3."
        )
    return None


def disagreements(comparison: Comparison) -> str | None:
    """Name the gains that point the other way by another metric than by the primary one (for `ece` less is better)."""
    primary = {(gain["arm"], gain["budget"]): gain["delta"] for gain in primary_gains(comparison)}
    against: dict[str, list[str]] = {}
    for gain in sorted(comparison["gains"], key=lambda gain: budget_order(gain["budget"])):
        goodness = -gain["delta"] if gain["metric"] in LOWER_IS_BETTER else gain["delta"]
        if goodness * primary[gain["arm"], gain["budget"]] < 0:
            against.setdefault(gain["metric"], []).append(f"{gain['arm']} at {gain['budget']} ({signed(gain['delta'])})")
    if not against:
        return None
    named = "; ".join(f"by {metric}{_less(metric)} {listed(places, 3)}" for metric, places in against.items())
    return f"The other way than by {comparison['primary_metric']}: {named}."


def label_efficiency(comparison: Comparison) -> list[str]:
    """Say how many labels the baseline needs to match each arm, an arm a sentence."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for entry in sorted(comparison["label_efficiency"], key=lambda entry: budget_order(entry["budget"])):
        by_arm.setdefault(entry["arm"], []).append(entry)
    lines = []
    for arm, entries in by_arm.items():
        at: dict[str, list[str]] = {}
        for entry in entries:
            at.setdefault(match_words(comparison, entry), []).append(str(entry["budget"]))
        needed = "; ".join(f"{words} (budget {' and '.join(budgets)})" for words, budgets in at.items())
        lines.append(f"{arm}: to match it {entries[0]['baseline']} needs {needed}.")
    return lines


def match_words(comparison: Comparison, entry: Mapping[str, Any]) -> str:
    """Say of one arm and budget how many labels the baseline needs."""
    if entry["matched"] == "reached":
        return f"{entry['ratio']:.1f} times the labels"
    if entry["matched"] == "exceeded at once":
        return "no more than its fewest labels"
    bound = least_ratio(comparison, entry)
    return f"more than {bound:.1f} times the labels" if bound > 1 else "more labels than there are"


def least_ratio(comparison: Comparison, entry: Mapping[str, Any]) -> float:
    """Give the ratio that the baseline had and that was not enough: its most labelled rows over the arm's."""
    rows = [at["num_rows"] for at in comparison["arms"] if at["arm"] == entry["baseline"]]
    return max(rows, default=0) / float(entry["num_rows"])


def failures(comparison: Comparison) -> list[str]:
    """Name the trainings that failed, and why."""
    return [f"{entry['arm']}, budget {entry['budget']}, seed {entry['seed']}: {entry['error']}" for entry in comparison["failed"]]


def _of_verdict(comparison: Comparison, gains: Sequence[Mapping[str, Any]], verdict: str) -> str:
    mine = [gain for gain in gains if gain["verdict"] == verdict]
    if len(mine) > MOST_BUDGETS:
        return f"{DOES[verdict]} with {listed(gain['budget'] for gain in mine)} labelled rows"
    sizes = (f"{budget_name(comparison, gain['budget'])} ({signed(gain['delta'])} {interval(gain, of_difference=True)})" for gain in mine)
    return f"{DOES[verdict]} with {' and '.join(sizes)}"


def _other_budgets(comparison: Comparison, gains: Sequence[Mapping[str, Any]]) -> str:
    if not gains:
        return ""
    if len(gains) > MOST_BUDGETS:
        return f"; the same verdict at {len(gains)} smaller budgets"
    return "; with " + ", ".join(f"{budget_name(comparison, gain['budget'])} {signed(gain['delta'])}" for gain in gains)


def _less(metric: str) -> str:
    return " (less is better)" if metric in LOWER_IS_BETTER else ""
