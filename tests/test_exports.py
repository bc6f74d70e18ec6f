"""What `import hf_transfer` offers, and what it does not load."""

import subprocess
import sys
from pathlib import Path

import pytest

import hf_transfer as ht


def test_every_exported_name_exists() -> None:
    for name in ht.__all__:
        assert getattr(ht, name) is not None
    assert set(ht.__all__) <= set(dir(ht))
    assert sorted(ht._HOME) == sorted(ht.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Recipes'"):
        ht.Recipes  # noqa: B018


@pytest.mark.parametrize(
    "code",
    [
        "import hf_transfer as ht; ht.Recipe; ht.Arm; ht.TransferError",
        "import hf_transfer as ht; ht.load_recipe('newsgroups')",
        "import hf_transfer.cli as cli\ntry:\n    cli.run_cli(['run', '--help'])\nexcept SystemExit as end:\n    assert not end.code",
    ],
)
def test_light_things_load_no_torch(code: str) -> None:
    ending = "import sys\nheavy = {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ending}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_predicts_without_what_only_training_needs(topics_model: Path, names_model: Path) -> None:
    code = f"""
import sys, hf_transfer as ht
for folder in {[str(topics_model), str(names_model)]}:
    ht.load(folder).predict(["sail"])
heavy = {{"datasets", "peft", "sklearn", "pandas", "pyarrow", "evaluate"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
