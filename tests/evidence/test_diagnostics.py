"""What predictions say of each class, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from hf_transfer.data.tags import find_entities
from hf_transfer.evaluation.metrics import METRICS, Predictions
from hf_transfer.evidence.report.diagnostics import calibration_of, class_scores, confusion_of


def random_predictions(num_classes: int, sizes: list[int], labels: list[str] | None = None) -> Predictions:
    rng = np.random.default_rng(3)
    first_item = np.concatenate([[0], np.cumsum(sizes)])
    probabilities = rng.dirichlet(np.full(num_classes, 0.5), first_item[-1]).astype(np.float32)
    names = labels or [f"class {index}" for index in range(num_classes)]
    return Predictions(names, rng.integers(num_classes, size=first_item[-1]), probabilities.argmax(axis=1), probabilities, first_item)


def test_classes_are_counted_as_scikit_learn_counts_them() -> None:
    predicted = random_predictions(5, [1] * 400)
    confusion = confusion_of(predicted, of_entities=False)
    np.testing.assert_array_equal(confusion.counts, confusion_matrix(predicted.references, predicted.predictions))
    expected = precision_recall_fscore_support(predicted.references, predicted.predictions)
    found = class_scores(confusion)
    np.testing.assert_allclose([entry.precision or 0 for entry in found], expected[0])
    np.testing.assert_allclose([entry.recall or 0 for entry in found], expected[1])
    np.testing.assert_allclose([entry.f1 or 0 for entry in found], expected[2])
    assert [entry.support for entry in found] == list(expected[3])


def test_a_class_that_nobody_predicts_has_no_precision_and_one_that_is_nowhere_no_f1() -> None:
    predicted = Predictions(["a", "b", "c"], np.array([0, 1]), np.array([0, 0]), np.eye(3, dtype=np.float32)[[0, 0]], np.arange(3))
    a, b, c = class_scores(confusion_of(predicted, of_entities=False))
    assert (a.precision, a.recall) == (0.5, 1.0)
    assert (b.precision, b.recall, b.f1) == (None, 0.0, 0.0)
    assert (c.precision, c.recall, c.f1) == (None, None, None)


def test_entities_are_counted_by_words_and_type() -> None:
    labels = ["O", "B-x", "I-x", "B-y", "I-y"]
    references = np.array([1, 2, 0, 3, 0, 1])
    predictions = np.array([1, 2, 0, 1, 3, 0])
    predicted = Predictions(labels, references, predictions, np.eye(5, dtype=np.float32)[predictions], np.array([0, 4, 6]))
    confusion = confusion_of(predicted, of_entities=True)
    # x as x; y as x; an x missed; a y that is none.
    assert list(confusion.names) == ["x", "y", "(none)"]
    assert confusion.counts.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert confusion.most_confused(9) == [("x", "(none)", 1), ("y", "x", 1), ("(none)", "y", 1)]


def test_entities_add_up_to_the_metric() -> None:
    labels = ["O", "B-x", "I-x", "B-y", "I-y"]
    predicted = random_predictions(5, [7] * 60, labels)
    found = class_scores(confusion_of(predicted, of_entities=True))
    assert sum(entry.support for entry in found) == sum(
        len(find_entities([labels[tag] for tag in row])) for row in predicted.references.reshape(60, 7)
    )
    f1 = 2 * sum(entry.hits for entry in found) / sum(entry.support + entry.predicted for entry in found)
    assert f1 == pytest.approx(METRICS["token-classification"].of(predicted)["f1"])


def test_bins_of_confidence_hold_every_prediction_once() -> None:
    predicted = random_predictions(4, [1] * 500)
    bins = calibration_of(predicted, of_entities=False)
    assert sum(entry.count for entry in bins) == 500
    right = (predicted.references == predicted.predictions).mean()
    assert sum(entry.count * entry.accuracy for entry in bins) / 500 == pytest.approx(right)
    assert sum(entry.count * entry.confidence for entry in bins) / 500 == pytest.approx(predicted.probabilities.max(axis=1).mean())
    assert [entry.confidence for entry in bins] == sorted(entry.confidence for entry in bins)


def test_of_entities_only_words_predicted_in_one_are_asked() -> None:
    labels = ["O", "B-x", "I-x"]
    predictions = np.array([0, 1, 2, 0])
    probabilities = np.full((4, 3), 0.1, dtype=np.float32)
    probabilities[np.arange(4), predictions] = 0.8
    predicted = Predictions(labels, np.array([0, 1, 0, 0]), predictions, probabilities, np.array([0, 4]))
    (found,) = calibration_of(predicted, of_entities=True)
    assert (found.count, found.accuracy) == (2, 0.5) and found.confidence == pytest.approx(0.8)
