"""Two runs started on one output folder: one has it, the other is refused, whenever it comes."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import hf_transfer as ht
from hf_transfer import files
from hf_transfer.errors import RunFolderError
from tests.evidence.conftest import GRID, assert_is_whole, stamps, untimed


def after_another(monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
    """Let another run come and go while this one is about to take its folder."""
    check_writable = files.check_writable

    def checked(folder: Path) -> None:
        monkeypatch.setattr(files, "check_writable", check_writable)
        check_writable(folder)
        other()

    monkeypatch.setattr(files, "check_writable", checked)


def test_a_run_that_found_the_folder_empty_does_not_write_over_one_that_was_quicker(
    whole: ht.Comparison, topics_recipe: ht.Recipe, tmp_path: Path, warm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(warm_cache))
    folder = tmp_path / "run"
    before: dict[str, tuple[int, bytes]] = {}

    def other() -> None:
        ht.run(topics_recipe, output_dir=folder, **GRID)
        before.update(stamps(folder))

    after_another(monkeypatch, other)
    with pytest.raises(RunFolderError, match="already holds another run: go on with it"):
        ht.run(topics_recipe, output_dir=folder, **GRID | {"seeds": [5]})
    assert stamps(folder) == before
    assert_is_whole(folder, whole)


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_run_resumed_from_what_is_no_longer_there_is_refused(
    topics_recipe: ht.Recipe, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    """It would write a recipe without the arm that the other has added."""
    folder = copied if is_begun else tmp_path / "new"
    after_another(
        monkeypatch, lambda: ht.run(topics_recipe, arms=["head", "full"], budgets=[30], seeds=[0], output_dir=folder, resume=True)
    )
    with pytest.raises(RunFolderError, match="another process has gone on with the run in .* meanwhile: start again"):
        ht.run(topics_recipe, arms=["head"], budgets=[30], seeds=[0], output_dir=folder, resume=True)
    assert "full" in yaml.safe_load((folder / "recipe.yaml").read_text())["run"]["arms"]
    assert ht.Comparison(folder).failed == []


@pytest.mark.parametrize("flags", [(), ("--resume",)])
@pytest.mark.parametrize("attempt", [0, *[pytest.param(number, marks=pytest.mark.slow) for number in range(1, 6)]])
def test_of_two_processes_on_one_folder_one_has_it(
    whole: ht.Comparison,
    background: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    warm_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    attempt: int,
) -> None:
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(warm_cache))
    folder = tmp_path / "run"
    first = background(folder, *flags)
    time.sleep(random.Random(attempt).uniform(0, 1.5))
    second = background(folder, *flags)
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in (first, second)]
    codes = sorted(code for _, code in ended)
    # One that comes late resumes what is finished by then.
    assert codes == [0, 2] or (flags and codes == [0, 0]), ended
    for err, code in ended:
        assert "Traceback" not in err
        if code:
            told = ("another process is writing", "already holds", "another process has gone on")
            assert err.splitlines()[-1].startswith("error: ") and any(words in err.splitlines()[-1] for words in told), err
    assert untimed(ht.Comparison(folder).values) == untimed(whole.values)
    assert sorted(stamps(folder)) == sorted(stamps(whole.folder))
