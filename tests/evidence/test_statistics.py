import numpy as np
import pytest
from scipy import stats

from hf_transfer.evaluation.metrics import METRICS, Predictions
from hf_transfer.evidence import statistics
from hf_transfer.evidence.statistics import NUM_RESAMPLES, estimate, holm

METRIC = METRICS["text-classification"]


def predicted(references: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> Predictions:
    return Predictions(["a", "b", "c"], references, predictions, probabilities, np.arange(len(references) + 1))


def resample_metrics(*data: np.ndarray) -> dict[str, np.ndarray]:
    return statistics.resample_metrics(METRIC, predicted(*data))


def classification_metrics(*data: np.ndarray) -> dict[str, float]:
    return METRIC.of(predicted(*data))


def rows(num_rows: int, accuracy: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    references = rng.integers(3, size=num_rows)
    predictions = np.where(rng.random(num_rows) < accuracy, references, (references + 1) % 3)
    return references, predictions, (np.eye(3)[predictions] * 0.6 + 0.4 / 3).astype(np.float32)


def test_resampling_centres_on_the_metric_with_the_binomial_spread() -> None:
    data = rows(400, 0.8, 0)
    resampled = resample_metrics(*data)["accuracy"]
    accuracy = classification_metrics(*data)["accuracy"]
    assert resampled.shape == (NUM_RESAMPLES,)
    assert resampled.mean() == pytest.approx(accuracy, abs=0.003)
    assert resampled.std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 400), rel=0.06)


def test_resampling_is_paired_between_arms() -> None:
    references, predictions, probabilities = rows(300, 0.7, 1)
    better = predictions.copy()
    better[:30] = references[:30]
    gap = (
        resample_metrics(references, better, probabilities)["accuracy"]
        - resample_metrics(references, predictions, probabilities)["accuracy"]
    )
    assert (gap >= 0).all(), "the better arm is never worse on the same rows"


def test_one_seed_covers_rows_only() -> None:
    resampled = np.random.default_rng(0).normal(0.1, 0.02, 2000)
    found = estimate([0.1], resampled)
    assert found.scope == "rows"
    assert (found.ci_low, found.ci_high) == pytest.approx((0.061, 0.139), abs=0.003)
    assert found.p_value == pytest.approx(2 / 2001)
    assert estimate([0.0], np.random.default_rng(0).normal(0, 0.02, 2000)).p_value > 0.9


def test_several_seeds_are_a_t_interval_widened_by_the_rows() -> None:
    by_seed, resampled = [0.10, 0.14, 0.12], np.random.default_rng(0).normal(0.12, 0.01, 2000)
    found = estimate(by_seed, resampled)
    error = np.sqrt(np.var(by_seed, ddof=1) / 3 + np.var(resampled, ddof=1))
    assert found.scope == "seeds+rows"
    assert found.ci_high - found.mean == pytest.approx(stats.t.ppf(0.975, 2) * error)
    without_rows = estimate(by_seed, np.full(2000, 0.12))
    plain = stats.ttest_1samp(by_seed, 0)
    assert without_rows.p_value == pytest.approx(plain.pvalue)
    assert (without_rows.ci_low, without_rows.ci_high) == pytest.approx(tuple(plain.confidence_interval()))
    assert estimate([0.0, 0.0], np.zeros(2000)).p_value == 1.0


def test_a_null_is_rarely_called_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "NUM_RESAMPLES", 500)
    calls = 0
    for seed in range(200):
        # Two arms of equal skill on the same rows: the same references, errors of their own.
        references = np.random.default_rng(seed).integers(3, size=200)
        arms = []
        for arm in range(2):
            hit = np.random.default_rng([seed, arm]).random(200) < 0.8
            predictions = np.where(hit, references, (references + 1) % 3)
            arms.append((references, predictions, np.eye(3, dtype=np.float32)[predictions]))
        gap = [classification_metrics(*arm)["accuracy"] for arm in arms]
        resampled = [resample_metrics(*arm)["accuracy"] for arm in arms]
        calls += estimate([gap[0] - gap[1]], resampled[0] - resampled[1]).p_value < 0.05
    assert 1 <= calls <= 20, "5 % of 200 are 10"


def test_holm_is_the_textbook_one() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
