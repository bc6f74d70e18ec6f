"""The table of metrics by task: counts of each row, and what their sums give. Count, merge, then divide.

Since every metric is a quotient of sums over rows, a weighting of the rows (a bootstrap sample, say) is one matrix product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_transfer.data.tags import find_entities


@dataclass(frozen=True)
class Predictions:
    """Labelled rows and what a model says of them; a row has items (a text one, a sentence one a word)."""

    labels: Sequence[str]
    """Names, (C,)."""
    references: np.ndarray
    """Class ids of all items, (M,)."""
    predictions: np.ndarray
    """Class ids, (M,)."""
    probabilities: np.ndarray
    """(M, C) float32."""
    first_item: np.ndarray
    """The items of row i are `first_item[i]` up to `first_item[i + 1]`, (B + 1,)."""

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.first_item) - 1


@dataclass(frozen=True)
class Metrics:
    """The metrics of a task."""

    names: tuple[str, ...]
    """The first is the primary one."""
    count: Callable[[Predictions], np.ndarray]
    """Rows -> counts, (B, K) float64."""
    divide: Callable[[np.ndarray], dict[str, np.ndarray]]
    """Sums of counts, (R, K) -> metric -> values, (R,)."""

    def of(self, predicted: Predictions) -> dict[str, float]:
        """Give each metric of some rows.

        Raises:
            ValueError: There are no rows.
        """
        if predicted.num_rows == 0:
            raise ValueError("metrics need at least one row, found none")
        return {name: float(values[0]) for name, values in self.divide(self.count(predicted).sum(axis=0, keepdims=True)).items()}


NUM_BINS = 15


def count_classes(predicted: Predictions) -> np.ndarray:
    """Count, for each text or image, its class, its predicted class, its hit, and by confidence bin what is missing: (B, 3 C + 15)."""
    identity = np.eye(len(predicted.labels))
    true, guessed = identity[predicted.references], identity[predicted.predictions]
    correct = (predicted.references == predicted.predictions).astype(np.float64)
    confidences = predicted.probabilities.max(axis=1).astype(np.float32)
    gaps = np.zeros((len(correct), NUM_BINS))
    bins = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    gaps[np.arange(len(correct)), bins] = correct - confidences
    return np.hstack([true, guessed, true * correct[:, None], gaps])


def classification_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Give accuracy, macro-F1, Matthews correlation and expected calibration error from sums of `count_classes`.

    macro-F1 averages over the classes among references and predictions, as scikit-learn does; MCC is the multi-class form of Gorodkin
    2004 (https://doi.org/10.1016/j.compbiolchem.2004.09.006); ECE has 15 equal-width bins over the probability of the predicted class
    (Guo et al. 2017, section 2, https://arxiv.org/abs/1706.04599).
    """
    true, guessed, hits = np.split(sums[:, :-NUM_BINS], 3, axis=1)
    total = true.sum(axis=1)
    num_hits = hits.sum(axis=1)
    seen = (true + guessed) > 0
    covariance = num_hits * total - (true * guessed).sum(axis=1)
    scale = np.sqrt((total**2 - (guessed**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1)))
    return {
        "accuracy": num_hits / total,
        "f1_macro": _ratio(2 * hits, true + guessed).sum(axis=1) / seen.sum(axis=1),
        "mcc": _ratio(covariance, scale),
        "ece": np.abs(sums[:, -NUM_BINS:]).sum(axis=1) / total,
    }


def count_entities(predicted: Predictions) -> np.ndarray:
    """Count, for each sentence, entities found right, entities predicted, entities there are, words tagged right, words: (B, 5).

    An entity is right when its borders and its type are (strict IOB2, as seqeval counts them).
    """
    counts = np.zeros((predicted.num_rows, 5))
    for row, (start, end) in enumerate(zip(predicted.first_item[:-1], predicted.first_item[1:], strict=True)):
        references, predictions = predicted.references[start:end], predicted.predictions[start:end]
        true = set(find_entities([predicted.labels[tag] for tag in references]))
        found = set(find_entities([predicted.labels[tag] for tag in predictions]))
        counts[row] = len(true & found), len(found), len(true), np.count_nonzero(references == predictions), end - start
    return counts


def entity_metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Give entity F1, precision and recall, and the accuracy of tags, from sums of `count_entities`; 0 where there is nothing to count."""
    hits, found, true, right_words, words = sums.T
    return {
        "f1": _ratio(2 * hits, found + true),
        "precision": _ratio(hits, found),
        "recall": _ratio(hits, true),
        "accuracy": _ratio(right_words, words),
    }


METRICS = {
    "text-classification": Metrics(("accuracy", "f1_macro", "mcc", "ece"), count_classes, classification_metrics),
    "image-classification": Metrics(("accuracy", "f1_macro", "mcc", "ece"), count_classes, classification_metrics),
    "token-classification": Metrics(("f1", "precision", "recall", "accuracy"), count_entities, entity_metrics),
}
"""Kind of task -> its metrics."""


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide, giving 0 where there is nothing to divide by."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
