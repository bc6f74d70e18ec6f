"""Labels and updates saved: reading a monotone curve between its budgets, never beyond."""

import numpy as np
import pytest

from hf_transfer.evidence.learning_curves import label_efficiency, training_speed


def test_reading_the_curve_at_its_own_scores_gives_its_budgets_back() -> None:
    budgets = [50, 100, 400, 3000]
    scores = [0.1, 0.35, 0.36, 0.8]
    for rows, score in zip(budgets, scores, strict=True):
        assert label_efficiency(scores, budgets, score, 50) == {
            "matched": "reached",
            "baseline_rows": pytest.approx(rows),
            "ratio": pytest.approx(rows / 50),
        }


def test_a_higher_score_never_needs_fewer_labels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = list(rng.random(5))  # Not monotone itself.
        needed = [label_efficiency(scores, [10, 20, 50, 200, 1000], score, 10) for score in np.linspace(0, 1, 60)]
        order = {"exceeded at once": 0, "reached": 1, "not reached": 2}
        assert [order[found["matched"]] for found in needed] == sorted(order[found["matched"]] for found in needed)
        rows = [found["baseline_rows"] for found in needed if found["matched"] == "reached"]
        assert rows == sorted(rows)
        assert all(10 <= number <= 1000 for number in rows), "never beyond the budgets"


def test_a_curve_that_falls_is_levelled() -> None:
    found = label_efficiency([0.2, 0.6, 0.4], [100, 200, 400], 0.5, 100)
    assert found["baseline_rows"] == pytest.approx(200)


def test_an_arm_that_starts_late_is_seen_from_its_first_epoch_as_good() -> None:
    def history(*scores: float) -> list[dict[str, object]]:
        return [{"update": 10 * number, "validation": {"f1": score, "loss": 9.0}} for number, score in enumerate(scores, 1)]

    assert training_speed(history(0.1, 0.5, 0.4), history(0.2, 0.4, 0.4, 0.3), "f1") == (20, 20)
    assert training_speed(history(0.1, 0.3), history(0.2, 0.4), "f1") == (None, 20)
    assert training_speed(history(0.4), history(0.0, 0.0), "f1") == (10, 10)
