"""Columns of a dataset: those that play a role, and those that name their classes.

`datasets` takes a third of a second to import and is imported where a dataset is read: a model that predicts needs none of it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_transfer.errors import DataError, did_you_mean, listed

if TYPE_CHECKING:
    from datasets import Dataset


def select_roles(splits: Mapping[str, "Dataset"], columns: Mapping[str, str], optional: frozenset[tuple[str, str]]) -> dict[str, "Dataset"]:
    """Keep the columns that play a role and name them by it.

    Args:
        splits: Split -> dataset.
        columns: Role -> column.
        optional: (split, role) pairs that may be absent.

    Raises:
        DataError: A column is missing; lists those found.
    """
    if len(set(columns.values())) < len(columns):
        raise DataError(f"every role needs a column of its own, found {listed(f'{role}={column}' for role, column in columns.items())}")
    selected = {}
    for split, dataset in splits.items():
        found = {role: column for role, column in columns.items() if column in dataset.column_names}
        missing = [role for role in columns if role not in found and (split, role) not in optional]
        if missing:
            wanted = ", ".join(f"'{columns[role]}' (the {role})" for role in missing)
            raise DataError(
                f"the {split} data has no column {wanted}; it has {listed(dataset.column_names)}: name it with --columns "
                f"{' '.join(f'{role}=COLUMN' for role in missing)}{did_you_mean(columns[missing[0]], dataset.column_names)}"
            )
        selected[split] = dataset.select_columns(list(found.values())).rename_columns({column: role for role, column in found.items()})
    return selected


def is_class_label(feature: Any) -> bool:
    """Say whether a column's feature names its classes: a `datasets.ClassLabel`."""
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)
