"""Our metrics as `evaluate.Metric`, offline; `evaluate.load` needs the Hub, and runs code from the working folder.

Accuracy().compute(references=[0, 1], predictions=[0, 0])
ExpectedCalibrationError().compute(references=[0, 1], predictions=[0, 0], probabilities=[[0.9, 0.1], [0.6, 0.4]])
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_transfer.evaluation.metrics import classification_metrics

_IDS = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}


class _ClassificationMetric(evaluate.Metric):
    """One metric of `classification_metrics`."""

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
        return {self.metric: classification_metrics(references, predictions, np.asarray(probabilities, dtype=np.float32))[self.metric]}


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
