"""What the predictions of one cell say of each class: scores, confusions, calibration. Entities are counted by type, words by tag."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hf_transfer.data.tags import OUTSIDE, Entity, find_entities, type_of
from hf_transfer.evaluation.metrics import Predictions

NUM_BINS = 10
MISSED = "(none)"
"""The class of an entity that one side does not have."""


@dataclass(frozen=True)
class ClassScore:
    """How a class, or a type of entities, is predicted."""

    name: str
    support: int
    """Rows, or entities, that are of it."""
    predicted: int
    hits: int

    @property
    def precision(self) -> float | None:
        """Share of those predicted that are right, None where none was predicted."""
        return self.hits / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of those there are that were found, None where there are none."""
        return self.hits / self.support if self.support else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both, None where there is nothing to count."""
        total = self.support + self.predicted
        return 2 * self.hits / total if total else None


@dataclass(frozen=True)
class Confusion:
    """How often each class was predicted for each."""

    names: Sequence[str]
    """Classes, (C,); of entities their types, then `MISSED`."""
    counts: np.ndarray
    """References by predictions, (C, C)."""
    of_entities: bool

    def most_confused(self, limit: int) -> list[tuple[str, str, int]]:
        """Give the most frequent mistakes: reference, prediction, count."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong.ravel(), kind="stable")[:limit]
        places = [np.unravel_index(place, wrong.shape) for place in order]
        return [(self.names[row], self.names[column], int(wrong[row, column])) for row, column in places if wrong[row, column]]


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions of like confidence."""

    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    count: int


def confusion_of(predicted: Predictions, of_entities: bool) -> Confusion:
    """Count references by predictions; of entities the types, where both sides have the same words, and those that one side lacks."""
    if not of_entities:
        size = len(predicted.labels)
        pairs = predicted.references.astype(np.int64) * size + predicted.predictions
        return Confusion(predicted.labels, np.bincount(pairs, minlength=size * size).reshape(size, size), of_entities)
    types = list(dict.fromkeys(type_of(tag) for tag in predicted.labels if tag != OUTSIDE))
    names = [*types, MISSED]
    counted: Counter[tuple[str, str]] = Counter()
    for true, found in entities_of(predicted):
        type_at = {(entity.start, entity.end): entity.type for entity in found}
        counted.update((entity.type, type_at.pop((entity.start, entity.end), MISSED)) for entity in true)
        counted.update((MISSED, kind) for kind in type_at.values())
    return Confusion(names, np.array([[counted[row, column] for column in names] for row in names]), of_entities)


def class_scores(confusion: Confusion) -> list[ClassScore]:
    """Give the scores of each class, or type of entities, in the order of the names."""
    support, predicted, hits = confusion.counts.sum(axis=1), confusion.counts.sum(axis=0), confusion.counts.diagonal()
    names = confusion.names[:-1] if confusion.of_entities else confusion.names
    return [ClassScore(name, int(support[index]), int(predicted[index]), int(hits[index])) for index, name in enumerate(names)]


def calibration_of(predicted: Predictions, of_entities: bool) -> list[CalibrationBin]:
    """Give the bins of confidence that hold a prediction, of equal width; of entities the words that are predicted to be in one."""
    asked = np.ones(len(predicted.references), dtype=bool)
    if of_entities:
        asked = np.array([tag != OUTSIDE for tag in predicted.labels])[predicted.predictions]
    confidences = predicted.probabilities.max(axis=1)[asked]
    right = (predicted.references == predicted.predictions)[asked]
    bins = np.clip(np.ceil(confidences * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return [
        CalibrationBin(float(confidences[bins == place].mean()), float(right[bins == place].mean()), int(np.sum(bins == place)))
        for place in np.unique(bins)
    ]


def entities_of(predicted: Predictions) -> Iterator[tuple[list[Entity], list[Entity]]]:
    """Give the entities of each row and those that were predicted."""
    for start, end in zip(predicted.first_item[:-1], predicted.first_item[1:], strict=True):
        yield (
            find_entities([predicted.labels[tag] for tag in predicted.references[start:end]]),
            find_entities([predicted.labels[tag] for tag in predicted.predictions[start:end]]),
        )
