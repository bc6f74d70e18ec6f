"""A cell's `predictions.parquet`: what a model said of every test row, and back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_transfer.disk import atomic_file, damaged
from hf_transfer.evaluation.metrics import Predictions


def write_predictions(path: Path, row_ids: np.ndarray, predicted: Predictions, clusters: np.ndarray, as_lists: bool) -> None:
    """Write `row_id`, `reference`, `prediction`, `probabilities` and `cluster`, a row each; lists over words where rows have several items.

    Rows of one cluster, which are no independent draws, hold the same number.
    """
    probabilities = pa.FixedSizeListArray.from_arrays(pa.array(predicted.probabilities.ravel()), len(predicted.labels))
    columns = {"reference": pa.array(predicted.references), "prediction": pa.array(predicted.predictions), "probabilities": probabilities}
    if as_lists:
        offsets = pa.array(predicted.first_item.astype(np.int32))
        columns = {name: pa.ListArray.from_arrays(offsets, values) for name, values in columns.items()}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table({"row_id": row_ids, **columns, "cluster": clusters}), temporary)


def read_predictions(path: Path, labels: Sequence[str]) -> tuple[Predictions, np.ndarray]:
    """Read what `write_predictions` wrote, its items in one count; and the cluster of each row, (B,).

    Raises:
        RunFolderError: The file is damaged.
    """
    try:
        return _read(path, labels)
    # Arrow says of damage that it is an ArrowInvalid, which is a ValueError, or an OSError.
    except (OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from None


def _read(path: Path, labels: Sequence[str]) -> tuple[Predictions, np.ndarray]:
    table = pq.read_table(path).combine_chunks()
    columns = {name: table[name].combine_chunks() for name in ("reference", "prediction", "probabilities")}
    first_item = np.arange(table.num_rows + 1)
    if pa.types.is_list(columns["reference"].type):
        first_item = np.concatenate([[0], np.cumsum(columns["reference"].value_lengths().to_numpy())]).astype(np.int64)
        columns = {name: column.flatten() for name, column in columns.items()}
    predicted = Predictions(
        labels,
        columns["reference"].to_numpy(),
        columns["prediction"].to_numpy(),
        columns["probabilities"].flatten().to_numpy().reshape(-1, len(labels)),
        first_item,
    )
    return predicted, table["cluster"].to_numpy()
