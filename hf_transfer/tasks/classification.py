"""What classifying texts and classifying images share: one label a row."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_transfer.data.columns import select_roles
from hf_transfer.data.labels import read_labels
from hf_transfer.data.roles import Corpus, Examples, check_classes
from hf_transfer.errors import ConfigError, did_you_mean, listed
from hf_transfer.tasks.items import Window

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from hf_transfer.data.sources import Source


def read_rows(
    source: "Source",
    columns: Mapping[str, str],
    label_names: Sequence[str] | None,
    inputs_of: Callable[[str, "Dataset"], Sequence[Any]],
    check_names: Callable[[Sequence[str]], None] | None = None,
) -> tuple[list[str], dict[str, Examples | None]]:
    """Read inputs and labels.

    Args:
        source: The data as loaded.
        columns: Role -> column.
        label_names: Names of the classes, or None to take the data's.
        inputs_of: Split and its dataset, columns named by role -> inputs, (B,).
        check_names: Refuses label names that cannot be meant, before any input is read.

    Returns:
        Label names, (C,), and split -> examples, None for a split without labels.

    Raises:
        DataError: A column, an input or a label is missing or wrong.
    """
    optional = frozenset((split, role) for split in ("validation", "test") for role in ("label", "label_name"))
    selected = select_roles(source.splits, columns, optional)
    names, ids = read_labels(selected, label_names)
    if check_names is not None:
        check_names(names)
    examples: dict[str, Examples | None] = {}
    for split, dataset in selected.items():
        labels = ids[split]
        if labels is None:
            examples[split] = None
        else:
            inputs = inputs_of(split, dataset)
            examples[split] = Examples(np.arange(len(inputs)), inputs, list(labels[:, None]), strata=labels)
    return names, examples


def check_labels(corpus: Corpus, names: Sequence[str]) -> list[str]:
    """Refuse data of one class, and labels that training lacks; give sentences to tell.

    Raises:
        DataError: Names the labels.
    """
    return check_classes(corpus, names)


def count_labels(labels: Sequence[np.ndarray], names: Sequence[str]) -> dict[str, int]:
    """Count the rows of each class."""
    counts = np.bincount(np.concatenate([np.zeros(0, dtype=np.int64), *labels]), minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def weights_by_class(weights: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """Give the weight of each class, (C,) float64, from weights by label name; others 1.

    Raises:
        ConfigError: There is no such label.
    """
    if unknown := sorted(set(weights) - set(names)):
        raise ConfigError(f"class_weights names '{unknown[0]}', labels are {listed(names)}{did_you_mean(unknown[0], names)}")
    return np.array([weights.get(name, 1.0) for name in names])


def item_logits(logits: torch.Tensor, windows: Sequence[Window]) -> torch.Tensor:
    """Give the logits of each item, (M, C): a row is one item."""
    return logits


def decode(probabilities: np.ndarray, first_item: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Give the likeliest class id of each row, (M,), from probabilities (M, C)."""
    return probabilities.argmax(axis=1)


def item_shares(num_items: np.ndarray, task: Any) -> np.ndarray:
    """Give what each item of a row counts by its row, (B,): 1."""
    return np.ones(len(num_items))


def to_table(answers: Sequence[Mapping[str, Any]], names: Sequence[str], flat: bool) -> "pa.Table":
    """Give answers as the columns of a table: `prediction` (the label's name), `score` and `probabilities` (label -> probability).

    Args:
        answers: From `to_answers`, (B,).
        names: Label names, (C,).
        flat: No cell may hold several values: a column `probability_LABEL` for each label instead.
    """
    import pyarrow as pa

    columns = {
        "prediction": pa.array([answer["label"] for answer in answers], pa.string()),
        "score": pa.array([answer["score"] for answer in answers], pa.float32()),
    }
    of_labels = [pa.array([answer["probabilities"][name] for answer in answers], pa.float32()) for name in names]
    if flat:
        return pa.table(columns | {f"probability_{name}": values for name, values in zip(names, of_labels, strict=True)})
    return pa.table(columns | {"probabilities": pa.StructArray.from_arrays(of_labels, names)})


def to_answers(
    values: Sequence[Any], probabilities: Sequence[np.ndarray], predictions: Sequence[np.ndarray], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Give `{"label", "score" (its probability), "probabilities" (label -> probability)}` for each row.

    Args:
        values: What the user passed, (B,).
        probabilities: (B,) of (1, C).
        predictions: Class ids, (B,) of (1,).
        names: Label names, (C,).
    """
    return [
        {"label": names[chosen], "score": float(of_row[0, chosen]), "probabilities": dict(zip(names, map(float, of_row[0]), strict=True))}
        for of_row, (chosen,) in zip(probabilities, predictions, strict=True)
    ]
