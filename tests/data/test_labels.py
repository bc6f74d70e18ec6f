import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_transfer.data.labels import read_labels
from hf_transfer.errors import DataError


def splits(train: list, test: list | None = None, **more: list) -> dict[str, Dataset]:
    made = {"train": Dataset.from_dict({"label": train, **more})}
    return made if test is None else made | {"test": Dataset.from_dict({"label": test})}


def test_strings_sort_by_name_or_as_numbers() -> None:
    names, ids = read_labels(splits(["b", "a", "b"], ["a"]))
    assert names == ["a", "b"]
    assert ids["train"].tolist() == [1, 0, 1]
    assert ids["test"].tolist() == [0]
    assert read_labels(splits(["10", "9", "9.5"]))[0] == ["9", "9.5", "10"]
    assert read_labels(splits(["no", "yes"]), ["yes", "no"])[1]["train"].tolist() == [1, 0]


def test_integers_take_names_from_a_list_a_column_or_their_digits() -> None:
    assert read_labels(splits([0, 2, 0]), ["x", "y", "z"])[0] == ["x", "y", "z"]
    names, ids = read_labels(splits([7, 3, 7], label_name=["seven", "three", "seven"]))
    assert names == ["three", "seven"]
    assert ids["train"].tolist() == [1, 0, 1]
    assert read_labels(splits([10, 9, 10]))[0] == ["9", "10"]
    assert read_labels(splits([1.0, 2.0]))[0] == ["1", "2"]
    assert read_labels(splits([True, False]))[0] == ["False", "True"]


def test_digits_of_a_csv_are_integers_where_they_are_named() -> None:
    names, ids = read_labels(splits(["0", "1", "0"], ["1"]), ["neg", "pos"])
    assert names == ["neg", "pos"]
    assert (ids["train"].tolist(), ids["test"].tolist()) == ([0, 1, 0], [1])
    made = splits(["4", "2"], ["2"], label_name=["four", "two"])
    names, ids = read_labels(made)
    assert names == ["two", "four"]
    assert (ids["train"].tolist(), ids["test"].tolist()) == ([1, 0], [0]), "test needs no name column"
    assert read_labels(splits(["1", "2"]), ["2", "1"])[1]["train"].tolist() == [1, 0], "names that are digits are names"


def test_the_order_of_names_is_one_for_every_process() -> None:
    assert read_labels(splits(["1.0", "01", "1"]))[0] == ["01", "1", "1.0"]
    assert read_labels(splits(["nan", "2", "10"]))[0] == ["10", "2", "nan"]


def test_a_class_label_keeps_its_names_and_order() -> None:
    features = Features({"label": ClassLabel(names=["z", "a"])})
    names, ids = read_labels({"train": Dataset.from_dict({"label": [0, 1]}, features=features)})
    assert names == ["z", "a"]
    assert ids["train"].tolist() == [0, 1]


def test_a_csv_split_whose_labels_are_empty_has_none() -> None:
    assert read_labels(splits(["a", "b"], ["", ""]))[1]["test"] is None


@pytest.mark.parametrize("values", [[-1, -1], [None, None]])
def test_a_split_without_labels_is_none(values: list) -> None:
    made = splits([0, 1]) | {"test": Dataset.from_dict({"label": values}, features=Features({"label": Value("int64")}))}
    assert read_labels(made)[1]["test"] is None
    assert read_labels(splits([0, 1]) | {"test": Dataset.from_dict({"text": ["a"]})})[1]["test"] is None


def test_a_class_label_is_renamed_whole_or_not_at_all() -> None:
    features = Features({"label": ClassLabel(names=["0", "1"])})
    made = {"train": Dataset.from_dict({"label": [0, 1]}, features=features)}
    assert read_labels(made, ["neg", "pos"])[0] == ["neg", "pos"]
    assert read_labels(made, ["0", "1"])[0] == ["0", "1"]
    for wrong in (["1", "0"], ["a", "b", "c"], ["0", "x"]):
        with pytest.raises(DataError, match=r"names its classes itself \(0, 1\): leave label_names out"):
            read_labels(made, wrong)


@pytest.mark.parametrize(
    ("made", "names", "message"),
    [
        (splits([0, 5]), ["x", "y"], r"train row 1 has label 5, label_names names 2 classes \(0 to 1\)"),
        (splits(["cat", "dgo"]), ["cat", "dog"], "train row 1 has label 'dgo', .* did you mean 'dog'"),
        (splits([0, 1]), ["x", "x"], "label names must differ"),
        (splits(["a", None]), None, "train row 1 has no label"),
        (splits(["a", ""]), None, "train row 1 has no label"),
        (splits(["a", " "]), None, "train row 1 has no label"),
        (splits(["a", "b"], ["a", ""]), None, "test row 1 has no label"),
        (splits(["0", "9" * 21]), ["x", "y"], "train row 1 has label 9+, which is beyond 64 bits"),
        (splits([1e30, 1.0]), None, "train row 0 has label .* beyond 64 bits"),
        (splits([0.5, 1.0]), None, "labels must be integers or strings, train row 0 has 0.5"),
        (splits([[1], [2]]), None, "labels must be integers, strings or a ClassLabel"),
        (
            splits([0, 0, 1], label_name=["a", "b", "c"]),
            None,
            "train row 1 names label 0 'b', an earlier row named it 'a'",
        ),
    ],
)
def test_bad_labels(made: dict[str, Dataset], names: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(made, names)


def test_ids_are_int64() -> None:
    assert read_labels(splits(["a", "b"]))[1]["train"].dtype == np.int64
