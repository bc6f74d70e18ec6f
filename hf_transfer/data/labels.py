"""Class ids and names from whatever a label column holds."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.data.columns import is_class_label
from hf_transfer.errors import DataError, did_you_mean, listed

if TYPE_CHECKING:
    from datasets import Dataset


def read_labels(
    splits: Mapping[str, "Dataset"], label_names: Sequence[str] | None = None
) -> tuple[list[str], dict[str, np.ndarray | None]]:
    """Give the names of the classes and each split's class ids.

    A ClassLabel column keeps its names and order, unless `label_names` renames every class. Integers are named by `label_names` (by
    position), by the column `label_name`, or by their digits. Strings are their own names, in `label_names`' order or sorted (as
    numbers, where all of them are). A CSV holds strings only: its digits are integers where a name is given for them.

    Args:
        splits: Split -> dataset with a column `label` and maybe `label_name`. A split without labels (no column, or -1, None or
            nothing throughout) is only allowed outside "train".
        label_names: Names of the classes.

    Returns:
        Names, (C,), and split -> class ids, (B,) int64, or None for a split without labels.

    Raises:
        DataError: A label is missing or unknown.
    """
    raw = {split: _raw_labels(split, dataset) for split, dataset in splits.items()}
    feature = splits["train"].features["label"]
    values = {value for column in raw.values() for value in column or []}
    if not is_class_label(feature) and _are_named_digits(splits, values, label_names):
        raw = {split: None if column is None else [int(value) for value in column] for split, column in raw.items()}
        values = {int(value) for value in values}
    ids: dict[str, np.ndarray | None]
    if is_class_label(feature):
        names = _class_label_names(feature, label_names)
        ids = {split: None if column is None else _by_name(split, column, feature.names) for split, column in raw.items()}
    elif all(isinstance(value, int) for value in values):
        names, ids = _integers(splits, raw, label_names)
    else:
        texts = {split: None if column is None else [str(value) for value in column] for split, column in raw.items()}
        names = list(label_names) if label_names else _sorted_names({str(value) for value in values})
        ids = {split: None if column is None else _by_name(split, column, names) for split, column in texts.items()}
    if getattr(feature, "dtype", None) == "bool" and set(names) <= {"0", "1"}:
        names = [str(name == "1") for name in names]
    if len(set(names)) < len(names):
        raise DataError(f"label names must differ, found {listed(names)}")
    return names, ids


def _class_label_names(feature: Any, label_names: Sequence[str] | None) -> list[str]:
    """Give a ClassLabel's names, or the list that renames all of them by position."""
    if not label_names or list(label_names) == feature.names:
        return list(feature.names)
    if len(label_names) != feature.num_classes or set(label_names) & set(feature.names):
        raise DataError(
            f"the label column names its classes itself ({listed(feature.names)}): leave label_names out, or rename every class"
        )
    return list(label_names)


def _are_named_digits(splits: Mapping[str, "Dataset"], values: set[int | str], label_names: Sequence[str] | None) -> bool:
    """Say whether strings are integers that somebody names: by a column, or by a list that does not hold them itself."""
    is_named = "label_name" in splits["train"].column_names or (label_names is not None and not values & set(label_names))
    return is_named and all(isinstance(value, int) or value.removeprefix("-").isdecimal() for value in values)


def _raw_labels(split: str, dataset: "Dataset") -> list[int | str] | None:
    """Give a split's labels as integers or strings (names, where the column is a ClassLabel), or None where it has none."""
    if "label" not in dataset.column_names:
        return None
    feature = dataset.features["label"]
    if getattr(feature, "dtype", None) is None or not feature.dtype.startswith(
        ("int", "uint", "string", "large_string", "bool", "float", "null")
    ):
        raise DataError(f"labels must be integers, strings or a ClassLabel, the {split} column holds {feature}")
    values = [value.strip() if isinstance(value, str) else value for value in dataset["label"][:]]
    if split != "train" and all(value is None or value in (-1, "", "-1") for value in values):
        return None
    checked: list[int | str] = []
    for row, value in enumerate(values):
        if value is None or value != value or value == "":
            raise DataError(f"{split} row {row} has no label; remove the row or label it")
        if isinstance(value, float):
            if not value.is_integer():
                raise DataError(f"labels must be integers or strings, {split} row {row} has {value}")
            value = int(value)
        checked.append(int(value) if isinstance(value, bool) else value)
    if is_class_label(feature):
        return [_class_name(feature, split, row, int(value)) for row, value in enumerate(checked)]
    return checked


def _class_name(feature: Any, split: str, row: int, value: int) -> str:
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
    splits: Mapping[str, "Dataset"], raw: Mapping[str, list[int | str] | None], label_names: Sequence[str] | None
) -> tuple[list[str], dict[str, np.ndarray | None]]:
    for split, column in raw.items():
        for row, label in enumerate(column or []):
            if not -(2**63) <= int(label) < 2**63:
                raise DataError(f"{split} row {row} has label {label}, which is beyond 64 bits")
    arrays = {split: None if values is None else np.array(values, dtype=np.int64) for split, values in raw.items()}
    if label_names:
        for split, values in arrays.items():
            if values is not None and ((values < 0) | (values >= len(label_names))).any():
                row = int(np.argmax((values < 0) | (values >= len(label_names))))
                raise DataError(
                    f"{split} row {row} has label {values[row]}, label_names names {len(label_names)} classes "
                    f"(0 to {len(label_names) - 1}): leave it out, or name them in a column of the role label_name"
                )
        return list(label_names), arrays
    names_of: dict[int, str] = {}
    for split, values in arrays.items():
        if values is None or "label_name" not in splits[split].column_names:
            continue
        for row, (value, name) in enumerate(zip(values.tolist(), splits[split]["label_name"][:], strict=True)):
            if not isinstance(name, str) or names_of.setdefault(value, name) != name:
                raise DataError(f"{split} row {row} names label {value} '{name}', an earlier row named it '{names_of.get(value)}'")
    known = sorted({value for values in arrays.values() if values is not None for value in values.tolist()})
    return [names_of.get(value, str(value)) for value in known], {
        split: None if values is None else np.searchsorted(known, values).astype(np.int64) for split, values in arrays.items()
    }


def _sorted_names(names: set[str]) -> list[str]:
    """Sort by value where all names are finite numbers, else as text; ties by text, so every process finds one order."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    return sorted(names, key=lambda name: (numbers[name], name)) if all(map(math.isfinite, numbers.values())) else sorted(names)
