from typing import Any

import numpy as np
import pytest
import yaml

from hf_transfer.errors import ConfigError
from hf_transfer.recipe_files import load_recipe
from hf_transfer.run_settings import check_settings


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    found = check_settings(
        load_recipe("ner"),
        budgets=[np.int64(20), "30"],
        seeds=np.arange(2),
        max_test_rows=np.int32(5),
        search=np.int64(3),
        parallel=np.int8(2),
    )
    assert (found.budgets, found.seeds, found.max_test_rows, found.search, found.parallel) == ([20, 30], [0, 1], 5, 3, 2)
    assert yaml.safe_load(yaml.safe_dump(found.recorded())) == found.recorded()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_test_rows": True}, "max_test_rows must be a number of at least 1, found True"),
        ({"search": 1.0}, "search must be a number"),
        ({"parallel": None}, "parallel must be a number"),
        ({"parallel": np.array([1, 2])}, "parallel must be a number"),
        ({"seeds": [True]}, "a seed is a whole number from 0 to 4294967295, found True"),
        ({"budgets": ["9" * 5000]}, "a budget is a number of rows above 0"),
        ({"budgets": [2**70]}, "a budget is a number of rows above 0"),
        ({"budgets": [True]}, "a budget is a number of rows above 0"),
    ],
)
def test_what_is_no_whole_number_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(load_recipe("ner"), **asked)
