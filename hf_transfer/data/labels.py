"""Class ids and names from whatever a label column holds."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import ClassLabel, Dataset

from hf_transfer.errors import DataError, did_you_mean, listed


def read_labels(splits: Mapping[str, Dataset], label_names: Sequence[str] | None = None) -> tuple[list[str], dict[str, np.ndarray | None]]:
    """Give the names of the classes and each split's class ids.

    A ClassLabel column keeps its names and order. Integers are named by `label_names` (by position), by the column `label_name`, or
    by their digits. Strings are their own names, in `label_names`' order or sorted (as numbers, where all of them are).

    Args:
        splits: Split -> dataset with a column `label` and maybe `label_name`. A split without labels (no column, or -1 or None
            throughout) is only allowed outside "train".
        label_names: Names of the classes.

    Returns:
        Names, (C,), and split -> class ids, (B,) int64, or None for a split without labels.

    Raises:
        DataError: A label is missing, unknown, or absent from training; there is one class only.
    """
    raw = {split: _raw_labels(split, dataset) for split, dataset in splits.items()}
    feature = splits["train"].features["label"]
    if isinstance(feature, ClassLabel):
        names = list(feature.names)
        ids: dict[str, np.ndarray | None] = {
            split: None if values is None else _by_name(split, values, names) for split, values in raw.items()
        }
    elif all(isinstance(value, int) for values in raw.values() for value in values or []):
        names, ids = _integers(splits, raw, label_names)
    else:
        texts = {split: None if values is None else [str(value).strip() for value in values] for split, values in raw.items()}
        names = list(label_names) if label_names else _sorted_names({name for values in texts.values() for name in values or []})
        ids = {split: None if values is None else _by_name(split, values, names) for split, values in texts.items()}
    if len(set(names)) < len(names):
        raise DataError(f"label names must differ, found {listed(names)}")
    _check_classes(names, ids)
    return names, ids


def _raw_labels(split: str, dataset: Dataset) -> list[int | str] | None:
    """Give a split's labels as integers or strings (names, where the column is a ClassLabel), or None where it has none."""
    if "label" not in dataset.column_names:
        return None
    feature = dataset.features["label"]
    if getattr(feature, "dtype", None) is None or not feature.dtype.startswith(
        ("int", "uint", "string", "large_string", "bool", "float", "null")
    ):
        raise DataError(f"labels must be integers, strings or a ClassLabel, the {split} column holds {feature}")
    values = dataset["label"][:]
    if split != "train" and all(value is None or value == -1 for value in values):
        return None
    checked: list[int | str] = []
    for row, value in enumerate(values):
        if value is None or value != value or (value == "" and isinstance(value, str)):
            raise DataError(f"{split} row {row} has no label; remove the row or label it")
        if isinstance(value, float):
            if not value.is_integer():
                raise DataError(f"labels must be integers or strings, {split} row {row} has {value}")
            value = int(value)
        checked.append(int(value) if isinstance(value, bool) else value)
    if isinstance(feature, ClassLabel):
        return [_class_name(feature, split, row, int(value)) for row, value in enumerate(checked)]
    return checked


def _class_name(feature: ClassLabel, split: str, row: int, value: int) -> str:
    if not 0 <= value < feature.num_classes:
        raise DataError(f"{split} row {row} has label {value}, the column names {feature.num_classes} classes")
    return str(feature.names[value])


def _by_name(split: str, values: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    ids = {name: index for index, name in enumerate(names)}
    for row, value in enumerate(values):
        if value not in ids:
            raise DataError(
                f"{split} row {row} has label '{value}', which is none of the names {listed(names)}{did_you_mean(str(value), names)}"
            )
    return np.array([ids[str(value)] for value in values], dtype=np.int64)


def _integers(
    splits: Mapping[str, Dataset], raw: Mapping[str, list[int | str] | None], label_names: Sequence[str] | None
) -> tuple[list[str], dict[str, np.ndarray | None]]:
    arrays = {split: None if values is None else np.array(values, dtype=np.int64) for split, values in raw.items()}
    if label_names:
        for split, values in arrays.items():
            if values is not None and ((values < 0) | (values >= len(label_names))).any():
                row = int(np.argmax((values < 0) | (values >= len(label_names))))
                raise DataError(
                    f"{split} row {row} has label {values[row]}, label_names names {len(label_names)} classes (0 to {len(label_names) - 1})"
                )
        return list(label_names), arrays
    names_of: dict[int, str] = {}
    for split, values in arrays.items():
        if values is None:
            continue
        written = splits[split]["label_name"][:] if "label_name" in splits[split].column_names else [str(value) for value in values]
        for row, (value, name) in enumerate(zip(values.tolist(), written, strict=True)):
            if not isinstance(name, str) or names_of.setdefault(value, name) != name:
                raise DataError(f"{split} row {row} names label {value} '{name}', an earlier row named it '{names_of.get(value)}'")
    known = sorted(names_of)
    return [names_of[value] for value in known], {
        split: None if values is None else np.searchsorted(known, values).astype(np.int64) for split, values in arrays.items()
    }


def _sorted_names(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _check_classes(names: Sequence[str], ids: Mapping[str, np.ndarray | None]) -> None:
    train_ids = ids["train"]
    assert train_ids is not None
    trained = set(np.unique(train_ids).tolist())
    if len(trained) < 2:
        raise DataError(f"training needs at least two classes, every training row is '{names[trained.pop()]}'")
    for split, values in ids.items():
        unseen = set() if values is None else set(np.unique(values).tolist()) - trained
        if unseen:
            raise DataError(f"the {split} data has labels that training lacks: {listed(names[index] for index in sorted(unseen))}")
