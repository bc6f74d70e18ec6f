from pathlib import Path

import pytest

from hf_transfer.errors import RunFolderError
from hf_transfer.files import (
    atomic_file,
    atomic_folder,
    cell_folder,
    claim_run_folder,
    read_json,
    run_folder_of,
    write_json,
)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_is_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("whole")
    assert (tmp_path / "model/weights").read_text() == "whole"
    assert (tmp_path / "model/weights").stat().st_mode & 0o777 == 0o644


def test_a_run_folder_is_claimed_once(tmp_path: Path) -> None:
    claim_run_folder(tmp_path / "runs/x")
    claim_run_folder(tmp_path / "runs/x")
    for name, message in (("recipe.yaml", "already holds an unfinished run"), ("comparison.json", "already holds another run")):
        (tmp_path / "runs/x" / name).write_text("")
        with pytest.raises(RunFolderError, match=message):
            claim_run_folder(tmp_path / "runs/x")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="already holds other files"):
        claim_run_folder(tmp_path / "notes")
    with pytest.raises(RunFolderError, match="mine.txt is a file"):
        claim_run_folder(tmp_path / "notes/mine.txt")
    with pytest.raises(RunFolderError, match="cannot write to output folder .*Not a directory"):
        claim_run_folder(tmp_path / "notes/mine.txt/run")


def test_a_model_folder_knows_its_run(tmp_path: Path) -> None:
    model = cell_folder(tmp_path, "lora", 128, 0) / "model"
    model.mkdir(parents=True)
    assert run_folder_of(model) is None
    (tmp_path / "recipe.yaml").write_text("name: x")
    assert run_folder_of(model) == tmp_path.resolve()
