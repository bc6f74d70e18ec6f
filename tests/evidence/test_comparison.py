"""Comparison and recommendation on made-up cells, one rule at a time."""

import json
from typing import Any

import numpy as np
import pytest

from hf_transfer.evidence.comparison import Cell, compare, recommend
from hf_transfer.evidence.report.sentences import judge
from hf_transfer.evidence.table import render_table

METRICS = ("accuracy", "f1_macro", "mcc", "ece")
DATA = {"train_rows": 80, "validation_rows": 20, "test_rows": 1000}


def cell(
    accuracy: float = 0.5, loss: float = 1.0, error: float | None = 0.1, trained: int = 100, updates: int = 10, seed: int = 0, **result: Any
) -> Cell:
    # Each row adds the metric and what differs from row to row, the less the worse the arm.
    spread = np.random.default_rng(0).normal(0, 0.5, 1000)
    spread -= spread.mean()
    return Cell(
        {
            "init": "pretrained",
            "tuning": "full",
            "seed": seed,
            "metrics": {
                "test": dict.fromkeys(METRICS, accuracy),
                "validation": {"loss": loss, "loss_standard_error": error},
            },
            "cost": {"trainable_parameters": trained, "updates": updates, "wall_seconds": 3.0},
            "history": [{"update": 5 * epoch, "validation": dict.fromkeys(METRICS, accuracy * epoch / 3)} for epoch in (1, 2, 3)],
            "data": DATA,
        }
        | result,
        dict.fromkeys(METRICS, accuracy + spread * accuracy),
    )


SCRATCH = {"init": "scratch"}


def compared(cells: dict[Any, Any], failed: Any = ()) -> dict[str, Any]:
    return compare(cells, "text-classification", METRICS, ["a", "b"], failed)


def budget_of(num_rows: int) -> dict[str, int]:
    return {"train_rows": num_rows - num_rows // 5, "validation_rows": num_rows // 5, "test_rows": 1000}


def test_verdicts_and_their_family() -> None:
    cells = {
        ("scratch", 100): [cell(0.5, **SCRATCH)],
        ("good", 100): [cell(0.9)],
        ("same", 100): [cell(0.5)],
        ("bad", 100): [cell(0.3)],
        ("scratch", "all"): [cell(0.5, **SCRATCH)],
        ("good", "all"): [cell(0.9)],
    }
    gains = [gain for gain in compared(cells)["gains"] if gain["metric"] == "accuracy"]
    assert [(gain["arm"], gain["budget"], gain["verdict"]) for gain in gains] == [
        ("good", 100, "helps"),
        ("same", 100, "no evidence"),
        ("bad", 100, "hurts"),
        ("good", "all", "helps"),
    ]
    # Four gains are one family over arms and budgets: the smallest p-value counts four times.
    in_order = sorted(gain["p_value"] for gain in gains)
    assert min(gain["p_adjusted"] for gain in gains) == pytest.approx(4 * in_order[0])
    assert {gain["scope"] for gain in gains} == {"rows"}
    assert all(gain["minimum_detectable"] > 0 for gain in gains)
    others = [gain for gain in compared(cells)["gains"] if gain["metric"] != "accuracy"]
    assert {(gain["p_adjusted"], gain["verdict"], gain["minimum_detectable"]) for gain in others} == {(None, None, None)}


def test_two_arms_are_compared_on_the_seeds_both_have() -> None:
    cells = {
        ("scratch", 100): [cell(0.5, seed=0, **SCRATCH), cell(0.1, seed=1, **SCRATCH), cell(0.6, seed=2, **SCRATCH)],
        ("lora", 100): [cell(0.7, seed=2), cell(0.9, seed=0)],
        ("full", 100): [cell(0.7, seed=7)],
    }
    found = compared(cells, [{"arm": "lora", "budget": 100, "seed": 1, "error": "the loss is no number"}])
    (gain,) = [gain for gain in found["gains"] if gain["metric"] == "accuracy"]
    assert (gain["arm"], gain["delta"]) == ("lora", pytest.approx((0.4 + 0.1) / 2))
    assert {entry["arm"]: entry["num_seeds"] for entry in found["arms"]} == {"scratch": 3, "lora": 2, "full": 1}
    assert [entry["error"] for entry in found["failed"]] == ["the loss is no number"]
    json.dumps(found, allow_nan=False)


def test_the_verdict_says_that_its_gain_is_of_fewer_seeds_than_the_scores() -> None:
    scratch = [cell(accuracy, loss=2.0, seed=seed, **SCRATCH) for seed, accuracy in enumerate((0.5, 0.9))]
    for lora, expected in (([cell(0.7, seed=0), cell(0.95, seed=1)], False), ([cell(0.95, seed=1)], True)):
        said = judge(compared({("scratch", 100): scratch, ("lora", 100): lora})).sentence
        assert ("on the seeds that both have finished" in said) is expected


def test_how_many_labels_an_arm_is_worth() -> None:
    cells = {
        (arm, budget): [cell(score, data=budget_of(rows), **(SCRATCH if arm == "scratch" else {}))]
        for arm, scores in {"scratch": (0.2, 0.4, 0.6), "lora": (0.1, 0.5, 0.9)}.items()
        for budget, rows, score in zip((100, 400, "all"), (100, 400, 1600), scores, strict=True)
    }
    found = {entry["budget"]: entry for entry in compared(cells)["label_efficiency"]}
    assert [found[budget]["matched"] for budget in (100, 400, "all")] == ["exceeded at once", "reached", "not reached"]
    # Half way from 0.4 to 0.6 is half way from 400 to 1,600 on a logarithmic axis.
    assert (found[400]["baseline_rows"], found[400]["ratio"]) == (pytest.approx(800), pytest.approx(2))
    assert found[400]["ratio_by_seed"] == [pytest.approx(2)]
    assert [entry["num_rows"] for entry in found.values()] == [100, 400, 1600]


def test_one_budget_says_nothing_of_labels() -> None:
    assert compared({("scratch", 100): [cell(**SCRATCH)], ("lora", 100): [cell(0.9)]})["label_efficiency"] == []


def test_how_much_sooner_an_arm_is_as_good() -> None:
    cells = {("scratch", 100): [cell(0.6, **SCRATCH)], ("lora", 100): [cell(0.9)], ("head", 100): [cell(0.3)]}
    found = {
        entry["arm"]: (entry["updates"], entry["baseline_updates"], entry["num_reached"]) for entry in compared(cells)["training_speed"]
    }
    assert found == {"lora": (10.0, 15.0, 1), "head": (None, 15.0, 0)}


def test_the_baseline_is_the_arm_trained_whole_from_scratch() -> None:
    def baselines(cells: dict[Any, Any]) -> set[str]:
        return {gain["baseline"] for gain in compared(cells)["gains"]}

    assert baselines({("a", 1): [cell()], ("b", 1): [cell()]}) == set()
    assert baselines({("zero", 1): [cell(**SCRATCH)], ("b", 1): [cell()]}) == {"zero"}
    assert baselines({("probe", 1): [cell(init="scratch", tuning="head")], ("b", 1): [cell()]}) == set()
    assert baselines({("zero", 1): [cell(**SCRATCH)], ("scratch", 1): [cell(**SCRATCH)], ("b", 1): [cell()]}) == {"scratch"}


@pytest.mark.parametrize(
    ("cells", "arm", "seed"),
    [
        # Within one standard error of the best (over rows with one seed): the fewest trainable parameters.
        ({("big", 9): [cell(loss=1.0, error=0.1)], ("small", 9): [cell(loss=1.09, trained=5)]}, "small", 0),
        ({("big", 9): [cell(loss=1.0, error=0.1)], ("small", 9): [cell(loss=1.11, trained=5)]}, "big", 0),
        # The error is the best arm's, not the other's.
        ({("big", 9): [cell(loss=1.0, error=0.01)], ("small", 9): [cell(loss=1.09, error=9.0, trained=5)]}, "big", 0),
        # As many parameters: the fewest updates.
        ({("long", 9): [cell(loss=1.0)], ("short", 9): [cell(loss=1.05, updates=5)]}, "short", 0),
        # Test metrics do not choose.
        ({("a", 9): [cell(accuracy=0.1, loss=1.0)], ("b", 9): [cell(accuracy=0.9, loss=2.0, trained=5)]}, "a", 0),
        # The largest budget only; "all" is the largest.
        ({("a", 9): [cell(loss=0.1, trained=1)], ("a", "all"): [cell(loss=1.0)], ("b", "all"): [cell(loss=0.5)]}, "b", 0),
        # Several seeds: the error is over seeds (here 0.1), and the seed is that with the median loss.
        (
            {
                ("a", 9): [cell(loss=1.1, seed=0), cell(loss=0.7, seed=1), cell(loss=0.9, seed=2)],
                ("b", 9): [cell(loss=1.02, trained=5, seed=0), cell(loss=0.99, trained=5, seed=1), cell(loss=1.0, trained=5, seed=2)],
            },
            "b",
            2,
        ),
        # On the seeds that both have: b's only one is an easy draw, where a is better by far. With none in common, on what there is.
        ({("a", 9): [cell(loss=1.0, seed=0), cell(loss=0.1, error=0.01, seed=1)], ("b", 9): [cell(loss=0.3, seed=1)]}, "a", 1),
        ({("a", 9): [cell(loss=1.0, seed=0)], ("b", 9): [cell(loss=0.3, seed=1)]}, "b", 1),
        ({("a", 9): [cell(loss=1.0, error=None)], ("b", 9): [cell(loss=1.0, error=None, trained=5)]}, "b", 0),
    ],
)
def test_the_recommendation(cells: dict[Any, Any], arm: str, seed: int) -> None:
    found = recommend(cells)
    assert (found["arm"], found["seed"]) == (arm, seed)
    assert found["reason"]


def test_the_table_aligns_numbers_right_and_words_left() -> None:
    cells = {("lora", 100): [cell(0.9)], ("zero", 100): [cell(0.5, **SCRATCH)]}
    results = [group[0].result | {"arm": arm, "budget": budget} for (arm, budget), group in cells.items()]
    lines = render_table(compared(cells), results).splitlines()
    assert lines[0] == "budget 100: 80 rows train, 20 validate, 1,000 test; seed 0"
    header, lora, zero = lines[1:4]
    assert header.split() == ["arm", "accuracy", "[95", "%]", "gain", "over", "zero", "[95", "%]", "verdict", "trained", "updates", "time"]
    assert lora.index("helps") == header.index("verdict"), "words stand left"
    assert lora.index("100") + 3 == zero.index("100") + 3 == header.index("trained") + len("trained"), "numbers stand right"
    assert any("an arm's score minus zero's" in line for line in lines)
