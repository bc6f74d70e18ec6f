import warnings

import numpy as np
import pytest
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from sklearn import metrics as sk

from hf_transfer.evaluation.evaluate_metrics import Accuracy, EntityF1, ExpectedCalibrationError, MacroF1, MatthewsCorrelation
from hf_transfer.evaluation.metrics import METRICS, Predictions

METRIC = METRICS["text-classification"]


def classification_metrics(references: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    return METRIC.of(predicted(references, predictions, probabilities))


def predicted(references: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> Predictions:
    labels = [str(index) for index in range(probabilities.shape[1])]
    return Predictions(labels, references, predictions, probabilities, np.arange(len(references) + 1))


def rows(seed: int, num_rows: int = 200, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(num_classes), num_rows).astype(np.float32)
    return rng.integers(num_classes - seed % 2, size=num_rows), probabilities.argmax(axis=1), probabilities


def plain_calibration_error(references: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, as it is written."""
    confidence, total = probabilities.max(axis=1), 0.0
    for low in range(15):
        inside = (confidence > np.float32(low / 15)) & (confidence <= np.float32((low + 1) / 15))
        if inside.any():
            total += inside.sum() * abs((references == predictions)[inside].mean() - confidence[inside].mean(dtype=np.float64))
    return total / len(references)


@pytest.mark.parametrize("seed", range(6))
def test_metrics_are_scikit_learns(seed: int) -> None:
    references, predictions, probabilities = rows(seed)
    found = classification_metrics(references, predictions, probabilities)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(references, predictions), abs=1e-12)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(references, predictions, average="macro"), abs=1e-12)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(references, predictions), abs=1e-12)
    assert found["ece"] == pytest.approx(plain_calibration_error(references, predictions, probabilities), abs=1e-6)


def test_weights_are_repetitions() -> None:
    references, predictions, probabilities = rows(1)
    weights = np.random.default_rng(5).integers(0, 4, size=(3, 200))
    weighted = METRIC.divide(weights @ METRIC.count(predicted(references, predictions, probabilities)))
    for index, counts in enumerate(weights):
        repeated = np.repeat(np.arange(200), counts)
        plain = classification_metrics(references[repeated], predictions[repeated], probabilities[repeated])
        for metric, value in plain.items():
            assert weighted[metric][index] == pytest.approx(value, abs=1e-6)


def test_one_class_only() -> None:
    found = classification_metrics(np.array([1, 1]), np.array([1, 1]), np.array([[0, 1], [0, 1]], dtype=np.float32))
    assert found == {"accuracy": 1.0, "f1_macro": 1.0, "mcc": 0.0, "ece": 0.0}
    with pytest.raises(ValueError, match="at least one row"):
        classification_metrics(np.array([]), np.array([]), np.zeros((0, 2)))


def test_as_evaluate_metrics() -> None:
    references, predictions, probabilities = rows(2)
    expected = classification_metrics(references, predictions, probabilities)
    for metric, name in ((Accuracy(), "accuracy"), (MacroF1(), "f1_macro"), (MatthewsCorrelation(), "mcc")):
        assert metric.compute(references=references, predictions=predictions) == {name: pytest.approx(expected[name])}
        with pytest.raises(ValueError, match="at least one row"), warnings.catch_warnings():
            metric.compute(references=[], predictions=[])
    found = ExpectedCalibrationError().compute(references=references, predictions=predictions, probabilities=probabilities)
    assert found == {"ece": pytest.approx(expected["ece"])}


TAGS = ["O", "B-a", "I-a", "B-b", "I-b", "B-a b-c", "I-a b-c"]


def sentences(seed: int, num_rows: int = 40) -> tuple[Predictions, list[list[str]], list[list[str]]]:
    """Make random tags, legal and illegal, of which predictions repeat about half."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, num_rows)
    references = rng.integers(len(TAGS), size=lengths.sum())
    predictions = np.where(rng.random(lengths.sum()) < 0.6, references, rng.integers(len(TAGS), size=lengths.sum()))
    first_item = np.concatenate([[0], np.cumsum(lengths)])
    named = [[[TAGS[tag] for tag in row] for row in np.split(tags, first_item[1:-1])] for tags in (references, predictions)]
    return Predictions(TAGS, references, predictions, np.zeros((len(references), 7)), first_item), *named


@pytest.mark.parametrize("seed", range(25))
def test_entity_metrics_are_seqevals_strict_ones(seed: int) -> None:
    predicted, references, predictions = sentences(seed)
    found = METRICS["token-classification"].of(predicted)
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    assert found["f1"] == pytest.approx(seqeval.f1_score(references, predictions, **strict), abs=1e-12)
    assert found["precision"] == pytest.approx(seqeval.precision_score(references, predictions, **strict), abs=1e-12)
    assert found["recall"] == pytest.approx(seqeval.recall_score(references, predictions, **strict), abs=1e-12)
    assert found["accuracy"] == pytest.approx(seqeval.accuracy_score(references, predictions), abs=1e-12)
    assert 0 < found["f1"] < 1
    assert EntityF1().compute(references=references, predictions=predictions) == pytest.approx(found)


def test_nothing_to_find_is_no_division_by_zero() -> None:
    nothing = Predictions(["O"], np.zeros(3, dtype=int), np.zeros(3, dtype=int), np.ones((3, 1)), np.array([0, 3, 3]))
    assert METRICS["token-classification"].of(nothing) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
