import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_transfer.disk import atomic_file, atomic_folder, held, holds_something, read_json, remove_folder, sweep, write_json
from hf_transfer.errors import RunFolderError
from hf_transfer.files import cell_folder, open_run_folder, run_folder_of


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


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000, "1" * 5000], ids=["cut", "latin-1", "deep", "long number"])
def test_json_that_cannot_be_read_is_told_of(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError, match="a.json is damaged and cannot be read"):
        read_json(tmp_path / "a.json")


def test_a_folder_that_fails_is_absent(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("whole")
    assert (tmp_path / "model/weights").read_text() == "whole"
    assert (tmp_path / "model/weights").stat().st_mode & 0o777 == 0o644


def claim_run_folder(folder: Path) -> None:
    with open_run_folder(folder):
        pass


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


def test_leftovers_are_nothing_and_are_swept(tmp_path: Path) -> None:
    assert not holds_something(tmp_path / "none")
    cell = cell_folder(tmp_path, "lora", 128, 0)
    (tmp_path / ".recipe.yaml.tmp-1").write_text("half")
    assert not holds_something(tmp_path)
    claim_run_folder(tmp_path)
    (cell / ".model.tmp-abc/deep").mkdir(parents=True)
    (cell / ".model.tmp-abc/.weights.tmp-1").write_text("half")
    (cell / "notes.tmp-1").write_text("keep")
    assert holds_something(tmp_path)
    sweep(tmp_path)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [Path("lora/budget-128/seed-0/notes.tmp-1")]
    remove_folder(cell)
    assert list(cell.parent.iterdir()) == []


def test_a_removed_folder_has_another_name_before_its_first_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell/result.json").write_text("{}")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        remove_folder(tmp_path / "cell")
    assert not (tmp_path / "cell").exists()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_by_one_until_its_block_ends(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(RunFolderError, match="another process is writing"), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_a_model_folder_knows_its_run(tmp_path: Path) -> None:
    model = cell_folder(tmp_path, "lora", 128, 0) / "model"
    model.mkdir(parents=True)
    assert run_folder_of(model) is None
    (tmp_path / "recipe.yaml").write_text("name: x")
    assert run_folder_of(model) == tmp_path.resolve()


def test_a_temporary_folder_goes_with_its_process_or_when_the_next_one_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, signal, sys; from hf_transfer.disk import temporary_folder; folder = temporary_folder(); "
        "(folder / 'weights').write_text('x'); print(folder, flush=True); "
        "sys.argv[1] == 'killed' and os.kill(os.getpid(), signal.SIGKILL); sys.argv[1] == 'waits' and sys.stdin.read()"
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def start(how: str) -> tuple[subprocess.Popen[str], Path]:
        command = [sys.executable, "-c", program, how]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    alive, of_alive = start("waits")
    killed, of_killed = start("killed")
    killed.communicate()
    assert of_alive.is_dir() and of_killed.is_dir()
    for folder in (of_alive, of_killed):
        # As if they were begun long ago.
        os.utime(folder, (0, 0))
    ended, of_ended = start("ends")
    ended.communicate()
    assert list(tmp_path.iterdir()) == [of_alive]
    assert (of_alive / "weights").is_file() and not of_ended.exists()
    alive.communicate("")
    assert list(tmp_path.iterdir()) == []
