"""What the terminal says of a made-up run: scores, what is shipped, and what the evidence cannot bear."""

import shutil
from typing import Any

import pytest

import hf_transfer as ht
from hf_transfer.disk import read_json
from hf_transfer.evidence.report.formats import interval, score, signed
from tests.evidence.made_runs import MakeRun


def test_every_primary_score_and_gain_is_in_the_table(make_run: MakeRun) -> None:
    folder = make_run()
    lines = ht.Comparison(folder).table().splitlines()
    comparison = read_json(folder / "comparison.json")
    for entry in (*comparison["arms"], *comparison["gains"]):
        if entry["metric"] == comparison["primary_metric"]:
            size = (
                f"{signed(entry['delta'])}  {interval(entry, True)}" if "delta" in entry else f"{score(entry['mean'])}  {interval(entry)}"
            )
            assert any(line.split()[:1] == [entry["arm"]] and size in line for line in lines), entry


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Ship: lora (budget all, seed 0): lowest validation loss (0.123)."),
        ({}, "Its gain over scratch has evidence: +"),
        ({"verdicts": {"rest": "no evidence"}}, "Its gain over scratch has no evidence: +"),
        ({}, "Smallest gain this design could be expected to detect: 0."),
        ({}, "lora: to match it scratch needs 3.2 times the labels (budget 60); more labels than there are (budget all)."),
        ({}, "The other way than by accuracy: by ece (less is better) head at 60"),
        ({"seeds": (3, 4)}, "Two seeds: with one degree of freedom a 95 % interval is up to 12.7 standard errors to each side"),
        ({"seeds": (3,)}, "One seed: the intervals cover other test rows"),
        ({"arms": ("head", "lora")}, "No training from scratch was finished, so this run cannot say whether transfer helps."),
        ({"failed": [{"arm": "head", "budget": 60, "seed": 9, "error": "no number"}]}, "Failed: head, budget 60, seed 9: no number"),
        ({}, "Fewer than 50 validation rows (12)"),
    ],
)
def test_the_lines_below(make_run: MakeRun, changes: dict[str, Any], said: str) -> None:
    lines = ht.Comparison(make_run(**changes)).table().splitlines()
    assert sum(line.startswith(said) for line in lines) == 1, lines


def test_a_cell_that_failed_is_missing_and_no_more(make_run: MakeRun) -> None:
    folder = make_run(failed=[{"arm": "head", "budget": 60, "seed": 2, "error": "no number"}])
    shutil.rmtree(folder / "head" / "budget-60" / "seed-2")
    assert "Failed: head" in ht.Comparison(folder).table()
    assert "What failed" in ht.Comparison(folder).report("md")
