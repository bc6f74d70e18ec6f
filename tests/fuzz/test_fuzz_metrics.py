import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from sklearn import metrics as sk

from hf_transfer.evaluation.metrics import METRICS, Metrics, Predictions
from hf_transfer.evidence.statistics import Estimate, estimate, holm, minimum_detectable, row_values

CLASSES, ENTITIES = METRICS["text-classification"], METRICS["token-classification"]
TAGS = ["O", "B-a", "I-a", "B-b b", "I-b b"]


@st.composite
def classified(draw: st.DrawFn) -> Predictions:
    """Draw rows of one label, of few or many classes, with probabilities from certain to even."""
    num_classes = draw(st.integers(1, 5))
    rows = draw(st.lists(st.tuples(*[st.integers(0, num_classes - 1)] * 2, st.floats(0, 1, width=32)), min_size=1, max_size=25))
    references, predictions, certainty = (np.array(column) for column in zip(*rows, strict=True))
    probabilities = np.full((len(rows), num_classes), 1 / num_classes) * (1 - certainty[:, None])
    probabilities[np.arange(len(rows)), predictions] += certainty
    labels = [str(index) for index in range(num_classes)]
    return Predictions(labels, references, predictions, probabilities.astype(np.float32), np.arange(len(rows) + 1))


@st.composite
def tagged(draw: st.DrawFn) -> Predictions:
    """Draw sentences, empty ones too, and tags legal and illegal."""
    rows = draw(st.lists(st.lists(st.tuples(*[st.integers(0, len(TAGS) - 1)] * 2), max_size=7), min_size=1, max_size=10))
    items = np.array([item for row in rows for item in row], dtype=np.int64).reshape(-1, 2)
    first_item = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Predictions(TAGS, items[:, 0], items[:, 1], np.zeros((len(items), len(TAGS)), dtype=np.float32), first_item)


def part(predicted: Predictions, start: int, end: int) -> Predictions:
    items = slice(predicted.first_item[start], predicted.first_item[end])
    first_item = predicted.first_item[start : end + 1] - predicted.first_item[start]
    return Predictions(
        predicted.labels, predicted.references[items], predicted.predictions[items], predicted.probabilities[items], first_item
    )


@given(predicted=classified() | tagged(), data=st.data())
def test_counts_of_parts_sum_to_those_of_the_whole(predicted: Predictions, data: st.DataObject) -> None:
    metrics = ENTITIES if predicted.labels == TAGS else CLASSES
    borders = sorted({0, predicted.num_rows, *data.draw(st.lists(st.integers(0, predicted.num_rows), max_size=4))})
    counted = np.concatenate([metrics.count(part(predicted, *pair)) for pair in itertools.pairwise(borders)])
    whole = metrics.count(predicted)
    assert np.array_equal(counted, whole)
    assert len(whole) == predicted.num_rows
    order = data.draw(st.permutations(range(predicted.num_rows)))
    merged = metrics.divide(counted[order].sum(axis=0, keepdims=True))
    found = metrics.of(predicted)
    assert {name: pytest.approx(value, abs=1e-9) for name, value in found.items()} == {name: values[0] for name, values in merged.items()}
    json.dumps(found, allow_nan=False)
    assert all((-1 if name == "mcc" else 0) - 1e-9 <= value <= 1 + 1e-9 for name, value in found.items())


@given(predicted=classified())
def test_metrics_are_scikit_learns(predicted: Predictions) -> None:
    found = CLASSES.of(predicted)
    references, predictions = predicted.references, predicted.predictions
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(references, predictions), abs=1e-12)
    with warnings.catch_warnings():
        # One class alone has no correlation, and scikit-learn says so.
        warnings.simplefilter("ignore")
        assert found["f1_macro"] == pytest.approx(sk.f1_score(references, predictions, average="macro"), abs=1e-12)
        assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(references, predictions), abs=1e-9)


@given(predicted=tagged())
def test_entities_are_seqevals_strict_ones(predicted: Predictions) -> None:
    found = ENTITIES.of(predicted)
    references, predictions = (
        [[TAGS[tag] for tag in row] for row in np.split(tags, predicted.first_item[1:-1])]
        for tags in (predicted.references, predicted.predictions)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "f1": seqeval.f1_score(references, predictions, mode="strict", scheme=IOB2, zero_division=0),
            "precision": seqeval.precision_score(references, predictions, mode="strict", scheme=IOB2, zero_division=0),
            "recall": seqeval.recall_score(references, predictions, mode="strict", scheme=IOB2, zero_division=0),
        }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    if len(predicted.references):
        assert found["accuracy"] == pytest.approx((predicted.references == predicted.predictions).mean())


def check_estimate(found: Estimate, mean: float) -> None:
    assert found.mean == pytest.approx(mean)
    assert found.ci_low <= found.mean <= found.ci_high
    assert 0 <= found.p_value <= 1
    assert not math.isnan(found.freedom) and found.freedom > 0
    assert found.error >= 0


@given(predicted=classified() | tagged(), data=st.data())
def test_row_values_have_the_metric_as_their_mean(predicted: Predictions, data: st.DataObject) -> None:
    metrics: Metrics = ENTITIES if predicted.labels == TAGS else CLASSES
    same = st.lists(st.integers(0, 3), min_size=predicted.num_rows, max_size=predicted.num_rows).map(np.array)
    clusters = data.draw(st.none() | same)
    whole = metrics.of(predicted)
    for name, values in row_values(metrics, predicted, clusters).items():
        assert np.isfinite(values).all()
        assert len(values) == (predicted.num_rows if clusters is None else len(np.unique(clusters)))
        assert values.mean() == pytest.approx(whole[name], abs=1e-9)
        check_estimate(estimate(values[None]), whole[name])


grids = st.tuples(st.integers(1, 4), st.integers(1, 8)).flatmap(
    lambda shape: st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e9]) | st.floats(-5, 5), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
    ).map(lambda values: np.array(values).reshape(shape))
)


@given(values=grids, constant=st.none() | st.floats(-1, 1), family=st.integers(1, 50))
def test_an_interval_holds_its_estimate(values: np.ndarray, constant: float | None, family: int) -> None:
    values = values if constant is None else np.full_like(values, constant)
    found = estimate(values)
    check_estimate(found, float(values.mean()))
    shown = minimum_detectable(found, family)
    assert not math.isnan(shown) and shown >= 0
    assert estimate(values[::-1]).mean == pytest.approx(found.mean), "the order of seeds is none of its business"


@given(p_values=st.lists(st.floats(0, 1), max_size=9))
def test_holm_keeps_the_order_and_never_helps(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(0 <= before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(first <= second for first, second in zip(np.array(adjusted)[order], np.array(adjusted)[order][1:], strict=False))
    if p_values:
        assert min(adjusted) == min(1.0, min(p_values) * len(p_values))
