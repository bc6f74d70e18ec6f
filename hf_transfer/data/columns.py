"""Columns of a dataset: those that play a role, and those that name their classes.

`datasets` takes a third of a second to import and is imported where a dataset is read: a model that predicts needs none of it.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import DataError, did_you_mean, listed
from hf_transfer.task_configs import DOCUMENT

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


def read_documents(splits: Mapping[str, "Dataset"], column: str | None, other_columns: Collection[str]) -> dict[str, np.ndarray]:
    """Give, for each split that has such a column, the number of each row's document, (B,): rows of one are no independent draws.

    Args:
        splits: Split -> dataset.
        column: Named for the role `document`; None takes a column called so where there is one, as CoNLL files with `-DOCSTART-` have.
        other_columns: Those that play another role.

    Raises:
        DataError: No split has the column that was named.
    """
    name = DOCUMENT if column is None else column
    if column is None and name in other_columns:
        return {}
    found = {split: dataset[name][:] for split, dataset in splits.items() if name in dataset.column_names}
    if column is not None and not found:
        names = splits["train"].column_names
        raise DataError(f"the data has no column '{name}' (the document); it has {listed(names)}{did_you_mean(name, names)}")
    return {split: np.unique([str(value) for value in values], return_inverse=True)[1] for split, values in found.items()}


def is_class_label(feature: Any) -> bool:
    """Say whether a column's feature names its classes: a `datasets.ClassLabel`."""
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)
