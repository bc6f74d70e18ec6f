"""Intervals against simulations whose truth is known, and against textbook cases."""

import numpy as np
import pytest
from scipy import stats

from hf_transfer.evaluation.metrics import METRICS, Predictions
from hf_transfer.evidence.statistics import Estimate, estimate, holm, minimum_detectable, row_values
from simulation import simulate

METRIC = METRICS["text-classification"]


def predicted(num_rows: int, accuracy: float, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    references = rng.integers(3, size=num_rows)
    predictions = np.where(rng.random(num_rows) < accuracy, references, (references + 1) % 3)
    probabilities = (np.eye(3)[predictions] * 0.6 + 0.4 / 3).astype(np.float32)
    return Predictions(["a", "b", "c"], references, predictions, probabilities, np.arange(num_rows + 1))


def take(rows: Predictions, index: np.ndarray) -> Predictions:
    return Predictions(rows.labels, rows.references[index], rows.predictions[index], rows.probabilities[index], np.arange(len(index) + 1))


def test_of_a_mean_over_rows_the_values_are_the_rows_own() -> None:
    rows = predicted(200, 0.7, 0)
    assert row_values(METRIC, rows)["accuracy"] == pytest.approx((rows.references == rows.predictions).astype(float))


def test_the_values_average_to_each_metric() -> None:
    rows = predicted(5000, 0.7, 1)  # More than one chunk.
    values = row_values(METRIC, rows)
    assert {metric: value.mean() for metric, value in values.items()} == pytest.approx(METRIC.of(rows), abs=1e-9)


@pytest.mark.parametrize("metric", ["f1_macro", "mcc"])
def test_the_spread_of_a_metric_is_that_of_drawing_rows_anew(metric: str) -> None:
    drawn = [METRIC.of(predicted(400, 0.7, seed))[metric] for seed in range(400)]
    errors = [estimate(row_values(METRIC, predicted(400, 0.7, seed))[metric][None]).error for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(drawn), rel=0.12)


def test_entities_of_a_sentence_stay_together() -> None:
    tags = np.array([0, 1, 0, 2, 0, 1, 0, 0, 2])
    found = np.array([0, 1, 0, 0, 0, 1, 0, 0, 2])
    first_item = np.array([0, 3, 5, 9])
    rows = Predictions(["O", "B-x", "B-y"], tags, found, np.eye(3, dtype=np.float32)[found], first_item)
    metric = METRICS["token-classification"]
    values = row_values(metric, rows)["f1"]
    assert values.shape == (3,)
    assert values.mean() == pytest.approx(metric.of(rows)["f1"])


def test_rows_of_a_cluster_count_as_one_draw() -> None:
    rows = predicted(300, 0.7, 2)
    doubled = take(rows, np.repeat(np.arange(300), 2))
    alone, clustered = row_values(METRIC, rows), row_values(METRIC, doubled, np.repeat(np.arange(300), 2))
    for metric in alone:
        assert clustered[metric] == pytest.approx(alone[metric], abs=1e-9), "copies teach nothing"
    assert estimate(row_values(METRIC, doubled)["accuracy"][None]).error < 0.8 * estimate(alone["accuracy"][None]).error


def test_the_order_of_rows_does_not_matter() -> None:
    rows, clusters = predicted(300, 0.7, 3), np.random.default_rng(0).integers(100, size=300)
    order = np.random.default_rng(1).permutation(300)
    shuffled = row_values(METRIC, take(rows, order), clusters[order])
    for metric, values in row_values(METRIC, rows, clusters).items():
        assert shuffled[metric] == pytest.approx(values, abs=1e-9)


def test_one_seed_is_a_t_interval_over_rows() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, 50)
    found, plain = estimate(values[None]), stats.ttest_1samp(values, 0)
    assert (found.scope, found.p_value) == ("rows", pytest.approx(plain.pvalue))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(plain.confidence_interval()))


def test_where_rows_make_no_difference_it_is_a_t_interval_over_seeds() -> None:
    by_seed = np.array([0.10, 0.14, 0.12])
    found, plain = estimate(np.repeat(by_seed[:, None], 400, axis=1)), stats.ttest_1samp(by_seed, 0)
    assert (found.scope, found.p_value) == ("seeds+rows", pytest.approx(plain.pvalue))
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(plain.confidence_interval()))


def test_where_seeds_make_no_difference_it_is_that_over_rows() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, 400)
    found = estimate(np.repeat(values[None], 3, axis=0))
    assert found.error == pytest.approx(values.std(ddof=1) / 20)
    assert found.ci_high - found.mean == pytest.approx(1.96 * found.error, rel=0.01)


def test_the_variance_is_right_on_average() -> None:
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(3000):
        values = 0.3 * rng.standard_normal((4, 1)) + rng.standard_normal(30) + rng.standard_normal((4, 30))
        means.append(values.mean())
        errors.append(estimate(values).error ** 2)
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.06)
    assert np.var(means) == pytest.approx(0.09 / 4 + 1 / 30 + 1 / 120, rel=0.08)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_what_never_varies_is_not_certain(num_seeds: int) -> None:
    always = estimate(np.ones((num_seeds, 100)))
    assert (always.mean, always.ci_low) == (1.0, pytest.approx(stats.beta.ppf(0.025, 100, 1)))
    never = estimate(np.zeros((num_seeds, 100)))
    assert (never.mean, never.p_value, never.ci_high) == (0.0, 1.0, pytest.approx(1 - 0.025**0.01))


def test_seeds_that_agree_by_chance_are_not_certain() -> None:
    values = np.zeros((2, 1000))
    values[0, :20] = values[1, 20:40] = 1
    found = estimate(values)
    assert found.error > 0, "the rows vary, though both seeds have 20 of them"
    assert 0.0001 < found.p_value < 0.05


def test_few_rows_that_all_say_the_same_are_weak_evidence() -> None:
    assert [estimate(np.ones((1, rows))).p_value for rows in (2, 7)] == [0.5, 1 / 64]


def test_one_test_row_shows_nothing() -> None:
    found = estimate(np.array([[1.0], [0.0]]))
    assert (found.ci_low, found.ci_high, found.p_value) == (-np.inf, np.inf, 1.0)


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(3, 0.0), (3, 0.04), (5, 0.01)])
def test_simulated_runs_are_covered(num_seeds: int, seed_sd: float) -> None:
    # README has the whole grid, from scripts/simulate; here 600 runs of it, two standard errors more each way.
    null = simulate(num_seeds, 500, seed_sd, 0.0, 600)
    real = simulate(num_seeds, 500, seed_sd, 0.05, 600)
    for rates in (null, real):
        assert 0.92 - 0.018 < rates.covered < 0.98 + 0.018
    assert null.helps < 0.05 + 0.018
    assert real.helps > null.helps


def test_the_simulation_sees_seeds_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def over_rows(values: np.ndarray) -> Estimate:
        return estimate(values.mean(axis=0)[None])

    monkeypatch.setattr("simulation.estimate", over_rows)
    assert simulate(3, 2000, 0.04, 0.0, 200).covered < 0.6


def test_the_smallest_detectable_gain_is_found_in_four_of_five() -> None:
    rng = np.random.default_rng(0)
    sizes = [minimum_detectable(estimate(rng.standard_normal((1, 200))), family=1) for _ in range(50)]
    size = float(np.median(sizes))
    found = np.mean([estimate(size + rng.standard_normal((1, 200))).p_value < 0.05 for _ in range(2000)])
    assert found == pytest.approx(0.8, abs=0.03)
    one = estimate(rng.standard_normal((3, 200)))
    assert minimum_detectable(one, family=6) > minimum_detectable(one, family=1)


def test_holm_is_the_textbook_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
