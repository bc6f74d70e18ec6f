"""Comparison and recommendation on made-up cells, one rule at a time."""

from typing import Any

import numpy as np
import pytest

from hf_transfer.evidence.comparison import Cell, compare, recommend
from hf_transfer.evidence.table import render_table

METRICS = ("accuracy", "f1_macro", "mcc", "ece")


def cell(
    accuracy: float = 0.5, loss: float = 1.0, error: float | None = 0.1, trained: int = 100, updates: int = 10, seed: int = 0, **result: Any
) -> Cell:
    spread = np.random.default_rng(0).normal(0, 0.01, 2000)
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
        }
        | result,
        dict.fromkeys(METRICS, accuracy + spread * accuracy),
    )


SCRATCH = {"init": "scratch"}
DATA = {"train_rows": 80, "validation_rows": 20, "test_rows": 1000}


def test_verdicts_and_their_family() -> None:
    cells = {
        ("scratch", 100): [cell(0.5, **SCRATCH)],
        ("good", 100): [cell(0.9)],
        ("same", 100): [cell(0.5)],
        ("bad", 100): [cell(0.3)],
        ("scratch", "all"): [cell(0.5, **SCRATCH)],
        ("good", "all"): [cell(0.9)],
    }
    gains = [gain for gain in compare(cells, METRICS)["gains"] if gain["metric"] == "accuracy"]
    assert [(gain["arm"], gain["budget"], gain["verdict"]) for gain in gains] == [
        ("good", 100, "helps"),
        ("same", 100, "no evidence"),
        ("bad", 100, "hurts"),
        ("good", "all", "helps"),
    ]
    # Four gains are one family over arms and budgets: the smallest p-value counts four times.
    assert gains[0]["p_value"] == pytest.approx(2 / 2001)
    assert gains[0]["p_adjusted"] == pytest.approx(8 / 2001)
    assert {gain["scope"] for gain in gains} == {"rows"}


def test_the_baseline_is_the_arm_trained_whole_from_scratch() -> None:
    def baselines(cells: dict[Any, Any]) -> set[str]:
        return {gain["baseline"] for gain in compare(cells, METRICS)["gains"]}

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
        ({("a", 9): [cell(loss=1.0, error=None)], ("b", 9): [cell(loss=1.0, error=None, trained=5)]}, "b", 0),
    ],
)
def test_the_recommendation(cells: dict[Any, Any], arm: str, seed: int) -> None:
    found = recommend(cells)
    assert (found["arm"], found["seed"]) == (arm, seed)
    assert found["reason"]


def test_the_table_aligns_numbers_right_and_words_left() -> None:
    cells = {("lora", 100): [cell(0.9, data=DATA)], ("zero", 100): [cell(0.5, data=DATA, **SCRATCH)]}
    results = [group[0].result | {"arm": arm, "budget": budget} for (arm, budget), group in cells.items()]
    lines = render_table(compare(cells, METRICS), results).splitlines()
    assert lines[0] == "budget 100: 80 rows train, 20 validate, 1,000 test; seed 0"
    header, lora, zero = lines[1:4]
    assert header.split() == ["arm", "accuracy", "[95", "%]", "gain", "over", "zero", "[95", "%]", "verdict", "trained", "updates", "time"]
    assert lora.index("helps") == header.index("verdict"), "words stand left"
    assert lora.index("100") + 3 == zero.index("100") + 3 == header.index("trained") + len("trained"), "numbers stand right"
    assert "an arm's score minus zero's" in lines[-3]
