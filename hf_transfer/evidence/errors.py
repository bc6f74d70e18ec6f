"""Test rows worth a look: the model's surest errors, and the labels that are probably wrong; a run's `examples.json`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.data.tags import find_entities
from hf_transfer.evaluation.metrics import Predictions
from hf_transfer.evidence.hygiene import EXCERPT, MAX_SHOWN, excerpt
from hf_transfer.evidence.predictions import read_predictions
from hf_transfer.evidence.study import Study
from hf_transfer.files import PREDICTIONS_FILE, cell_folder
from hf_transfer.run_settings import Budget


def describe_errors(
    study: Study, predicted: Mapping[int, Predictions], arm: str, budget: Budget, seed: int, private: bool
) -> dict[str, Any]:
    """Give what `examples.json` holds.

    Args:
        study: Data with fixed roles.
        predicted: Seed -> test predictions of the arm; the labels are judged by their mean probabilities.
        arm: Whose predictions.
        budget: At which budget.
        seed: Whose errors are listed.
        private: Hold no text or image of the data.
    """
    chosen = predicted[seed]
    confidence = _of_items(chosen.probabilities, chosen.predictions)
    mean = average(list(predicted.values()), study.task.decode)
    margin = _of_items(mean.probabilities, mean.predictions) - _of_items(mean.probabilities, mean.references)
    describe = _describe_sentence if study.task.MANY_ITEMS else _describe_row
    return {
        "private": private,
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "worst_errors": [
            describe(study, chosen, item, private) for item in _surest(chosen, chosen.predictions != chosen.references, confidence)
        ],
        "suspected_label_errors": [describe(study, mean, item, private) for item in _surest(mean, find_label_errors(mean), margin)],
    }


def describe_chosen(
    study: Study, run_folder: Path, recommendation: Mapping[str, Any], seeds: Sequence[int], private: bool
) -> dict[str, Any]:
    """Give what `examples.json` holds of a run's recommended arm, from the predictions of its finished seeds."""
    arm, budget = recommendation["arm"], recommendation["budget"]
    paths = {seed: cell_folder(run_folder, arm, budget, seed) / PREDICTIONS_FILE for seed in seeds}
    predicted = {seed: read_predictions(path, study.labels)[0] for seed, path in paths.items() if path.is_file()}
    return describe_errors(study, predicted, arm, budget, recommendation["seed"], private)


def average(predicted: Sequence[Predictions], decode: Callable[..., np.ndarray]) -> Predictions:
    """Give the predictions of an ensemble: of the mean probabilities of several models for the same rows."""
    first = predicted[0]
    probabilities = np.stack([one.probabilities for one in predicted]).mean(axis=0, dtype=np.float64)
    predictions = decode(probabilities, first.first_item, first.labels)
    return Predictions(first.labels, first.references, predictions, probabilities, first.first_item)


def find_label_errors(predicted: Predictions) -> np.ndarray:
    """Mark the items whose label is probably wrong, by confident learning (Northcutt et al. 2021, section 3.1, https://arxiv.org/abs/1911.00068).

    A class's threshold is the mean probability of that class among the items labelled so. An item belongs confidently to the likeliest of
    the classes whose threshold it reaches; where that is another than its label, and the prediction is likelier than the label, the
    label is suspect.

    Args:
        predicted: Of rows the model was not trained on.

    Returns:
        (M,) bool.
    """
    references, probabilities = predicted.references, predicted.probabilities.astype(np.float64)
    of_label, of_prediction = (_of_items(probabilities, classes) for classes in (references, predicted.predictions))
    counts = np.bincount(references, minlength=probabilities.shape[1])
    sums = np.bincount(references, weights=of_label, minlength=len(counts))
    # No item can be said to belong to a class of which none is known.
    thresholds = np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    is_confident = reached.max(axis=1, initial=-1.0) >= 0
    return is_confident & (reached.argmax(axis=1) != references) & (of_prediction > of_label)


def _of_items(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Give each item's probability of a class, (M,), from probabilities (M, C) and class ids (M,)."""
    return probabilities[np.arange(len(classes)), classes]


def _surest(predicted: Predictions, marked: np.ndarray, scores: np.ndarray) -> list[int]:
    """Give the marked items of the highest scores, one a row, best first; the earlier of equals."""
    row_of_item = np.repeat(np.arange(predicted.num_rows), np.diff(predicted.first_item))
    items = np.flatnonzero(marked)
    items = items[np.argsort(-scores[items], kind="stable")]
    _, first = np.unique(row_of_item[items], return_index=True)
    return items[np.sort(first)[:MAX_SHOWN]].tolist()


def _describe_row(study: Study, predicted: Predictions, item: int, private: bool) -> dict[str, Any]:
    shown = {} if private else study.task.show(study.test.examples.inputs[item])
    return {
        "row_id": int(study.test.examples.row_ids[item]),
        "reference": study.labels[predicted.references[item]],
        "prediction": study.labels[predicted.predictions[item]],
        **_probabilities(predicted, item),
        "text": excerpt(shown["text"]) if "text" in shown else None,
        "image": shown.get("image"),
    }


def _describe_sentence(study: Study, predicted: Predictions, item: int, private: bool) -> dict[str, Any]:
    """Describe the sentence of a word: as many words around it as may be shown, and the entities among them."""
    row = int(np.searchsorted(predicted.first_item, item, side="right")) - 1
    word = item - int(predicted.first_item[row])
    words = study.test.examples.inputs[row]
    start, end = _window(words, word)

    def spans(tags: np.ndarray) -> list[dict[str, Any]]:
        of_row = [study.labels[tag] for tag in tags[predicted.first_item[row] : predicted.first_item[row + 1]]]
        return [
            {"start": max(entity.start, start) - start, "end": min(entity.end, end) - start, "label": entity.type}
            for entity in find_entities(of_row)
            if entity.start < end and entity.end > start
        ]

    return {
        "row_id": int(study.test.examples.row_ids[row]),
        "first_word": start,
        "word": word - start,
        "words": None if private else [excerpt(shown) for shown in study.task.show(words)["words"][start:end]],
        "reference": spans(predicted.references),
        "prediction": spans(predicted.predictions),
        **_probabilities(predicted, item),
    }


def _probabilities(predicted: Predictions, item: int) -> dict[str, float]:
    of_item = predicted.probabilities[item]
    return {
        "confidence": float(of_item[predicted.predictions[item]]),
        "reference_probability": float(of_item[predicted.references[item]]),
    }


def _window(words: tuple[str, ...], word: int) -> tuple[int, int]:
    """Give the first and one behind the last word of a stretch around one that takes at most `EXCERPT` characters, blanks included."""
    start, end, room = word, word + 1, EXCERPT - len(words[word])
    while True:
        before = start > 0 and len(words[start - 1]) < room
        if before:
            start -= 1
            room -= len(words[start]) + 1
        after = end < len(words) and len(words[end]) < room
        if after:
            room -= len(words[end]) + 1
            end += 1
        if not before and not after:
            return start, end
