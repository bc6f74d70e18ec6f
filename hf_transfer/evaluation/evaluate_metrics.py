"""Our metrics as `evaluate.Metric`, offline; `evaluate.load` needs the Hub, and runs code from the working folder.

Accuracy().compute(references=[0, 1], predictions=[0, 0])
ExpectedCalibrationError().compute(references=[0, 1], predictions=[0, 0], probabilities=[[0.9, 0.1], [0.6, 0.4]])
EntityF1().compute(references=[["B-person", "I-person", "O"]], predictions=[["B-person", "O", "O"]])
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_transfer.evaluation.metrics import METRICS, Predictions

_IDS = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
_TAGS = datasets.Sequence(datasets.Value("string"))


class _ClassificationMetric(evaluate.Metric):
    """One metric of a text classification."""

    metric: str
    needs_probabilities = False

    def _info(self) -> evaluate.MetricInfo:
        features = dict(_IDS)
        if self.needs_probabilities:
            features["probabilities"] = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation="", features=datasets.Features(features))

    def _compute(self, predictions: Any, references: Any, probabilities: Any = None) -> dict[str, float]:
        if len(references) == 0:
            raise ValueError(f"{self.metric} needs at least one row, found none")
        references, predictions = np.asarray(references), np.asarray(predictions)
        if probabilities is None:
            num_classes = 1 + max(references.max(initial=-1), predictions.max(initial=-1))
            probabilities = np.eye(num_classes, dtype=np.float32)[predictions]
        probabilities = np.asarray(probabilities, dtype=np.float32)
        labels = [str(index) for index in range(probabilities.shape[1])]
        predicted = Predictions(labels, references, predictions, probabilities, np.arange(len(references) + 1))
        return {self.metric: METRICS["text-classification"].of(predicted)[self.metric]}


class Accuracy(_ClassificationMetric):
    """Share of rows whose prediction is the reference."""

    metric = "accuracy"


class MacroF1(_ClassificationMetric):
    """F1 of each class, averaged over classes."""

    metric = "f1_macro"


class MatthewsCorrelation(_ClassificationMetric):
    """Matthews correlation, multi-class."""

    metric = "mcc"


class ExpectedCalibrationError(_ClassificationMetric):
    """Mean gap between confidence and accuracy over 15 equal-width bins; needs `probabilities`, (B, C)."""

    metric = "ece"
    needs_probabilities = True


class EntityF1(evaluate.Metric):
    """F1, precision and recall of entities under strict IOB2, and the accuracy of tags; takes lists of BIO tags by name."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": _TAGS, "references": _TAGS})
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation="", features=features)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        lengths = [len(row) for row in references]
        if lengths != [len(row) for row in predictions]:
            raise ValueError("every row needs as many predicted tags as references")
        labels = sorted({tag for rows in (references, predictions) for row in rows for tag in row})
        ids = {tag: index for index, tag in enumerate(labels)}
        true, found = (np.array([ids[tag] for row in rows for tag in row], dtype=np.int64) for rows in (references, predictions))
        first_item = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        nothing = np.zeros((len(true), len(labels)), dtype=np.float32)
        return METRICS["token-classification"].of(Predictions(labels, true, found, nothing, first_item))
