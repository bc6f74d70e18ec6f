"""A disk that is full, broken or read-only: one sentence, nothing half-written, and --resume goes on when it is mended."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

import hf_transfer as ht
from hf_transfer import disk
from hf_transfer.disk import atomic_file, atomic_folder, make_folder, write_json
from hf_transfer.errors import DiskError, RunFolderError
from tests.conftest import Run, make_rows, write_csv
from tests.evidence.conftest import GRID, assert_is_whole, finished, stamps

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp-" in path.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(disk: Path, num_bytes: int) -> Path:
    """Fill a disk but for some bytes -> the file that fills it."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - num_bytes))
    return ballast


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_refuses_a_write_the_target_is_named_and_nothing_is_left(tmp_path: Path, fault: int) -> None:
    (tmp_path / "result.json").write_text("{}")

    def in_rust(*_: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(fault)} (os error {fault})")

    def in_python(*_: object) -> None:
        raise OSError(fault, os.strerror(fault))

    for refused in (in_rust, in_python):
        for write, name in ((atomic_file, "result.json"), (atomic_folder, "model")):
            with pytest.raises(DiskError) as told, write(tmp_path / name):
                refused()
            assert str(told.value).startswith(f"cannot write {tmp_path / name} ({os.strerror(fault)}): {disk.DISK_REMEDIES[fault]}; ")
            assert isinstance(told.value, RunFolderError) and isinstance(told.value, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "{}"


def test_a_full_disk_is_told_whoever_writes(small_disk: Path) -> None:
    """The real thing: what the system says through Python, safetensors, and a folder of files."""
    leave_free(small_disk, 8192)
    with pytest.raises(DiskError, match=r"cannot write .*big\.json \(No space left on device\): free some space on that disk"):
        write_json(small_disk / "big.json", "x" * 100_000)
    with pytest.raises(DiskError, match=r"cannot write .*model \(No space left"), atomic_folder(small_disk / "model") as temporary:
        save_file({"weights": torch.zeros(100_000)}, temporary / "model.safetensors")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_bug_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        (tmp_path / "gone").read_text()


@pytest.mark.parametrize("num_bytes", [0, 12_000, 60_000, 120_000, 180_000, 260_000])
def test_a_run_onto_a_full_disk_goes_on_when_there_is_room(
    topics_recipe: ht.Recipe, run: Run, small_disk: Path, tmp_path: Path, num_bytes: int
) -> None:
    config, folder = tmp_path / "asked.yaml", small_disk / "run"
    config.write_text(yaml.safe_dump(topics_recipe.to_dict() | {"run": {"arms": ["head"], "budgets": [30], "seeds": [0, 1]}}))
    ballast = leave_free(small_disk, num_bytes)
    asked = ["run", "--config", config, "--output-dir", folder]
    code, out, err = run(*asked)
    assert (code, out) == (2, ""), err
    told = [line for line in err.splitlines() if "error: " in line]
    assert len(told) == 1 and err.splitlines()[-1] == told[0]
    assert re.match(rf"error: cannot write (to output folder )?{folder}\S* ?\(No space left on device\): ", told[0]), told
    assert "Traceback" not in err
    assert leftovers(small_disk) == []
    before = {cell: stamps(cell) for cell in finished(folder)}
    ballast.unlink()
    assert run(*asked, "--resume")[0] == 0
    assert len(ht.Comparison(folder).cells()) == 2
    for cell, stamped in before.items():
        assert {name: stamp for name, stamp in stamped.items() if name != "README.md"}.items() <= stamps(cell).items()


def test_a_fault_at_every_write_leaves_what_was_finished_and_is_made_good_by_resume(
    whole: ht.Comparison, topics_recipe: ht.Recipe, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing that is flushed while a cell and the comparison are written is refused once; distinct states are gone on from."""
    shutil.rmtree(copied / "head/budget-30/seed-1")
    (copied / "comparison.json").unlink()
    flush = disk._flush_to_disk
    flushed: list[str] = []

    def go_on(folder: Path, refused: int | None) -> None:
        """Resume a run whose disk refuses the flush of that number."""
        count = -1

        def flushing(path: Path) -> None:
            nonlocal count
            count += 1
            if refused is None:
                flushed.append(re.sub("tmp-[^/]*", "tmp", str(path.relative_to(folder))))
            elif count == refused:
                raise OSError(FAULTS[refused % len(FAULTS)], os.strerror(FAULTS[refused % len(FAULTS)]))
            flush(path)

        with monkeypatch.context() as patch:
            patch.setattr(disk, "_flush_to_disk", flushing)
            ht.run(topics_recipe, output_dir=folder, resume=True, **GRID)

    go_on(shutil.copytree(copied, tmp_path / "counted"), None)
    # A folder is flushed for each file in it.
    moments = [number for number, path in enumerate(flushed) if path not in flushed[:number]]
    assert len(moments) >= 12
    states: dict[tuple[str, ...], Path] = {}
    for number in moments:
        folder = shutil.copytree(copied, tmp_path / f"refused-{number}")
        before = {cell: stamps(cell) for cell in finished(folder)}
        with pytest.raises(DiskError, match=rf"^cannot write {folder}.*: .*--resume"):
            go_on(folder, number)
        assert leftovers(folder) == [], flushed[number]
        for cell, stamped in before.items():
            assert stamped.items() <= stamps(cell).items()
        states.setdefault(tuple(sorted(stamps(folder))), folder)
    assert len(states) >= 5
    for folder in states.values():
        ht.run(topics_recipe, output_dir=folder, resume=True, **GRID)
        assert_is_whole(folder, whole)


def test_a_full_cache_stops_no_run(
    topics_recipe: ht.Recipe, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_free(small_disk, 4096)
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(small_disk / "cache"))
    monkeypatch.setattr("hf_transfer.evidence.cached_prefix.make_room", lambda *_: True)  # Another filled it since we looked.
    comparison = ht.run(topics_recipe, output_dir=tmp_path / "run", **GRID)
    assert (len(comparison.cells()), comparison.failed) == (4, [])
    told = [line for line in capsys.readouterr().err.splitlines() if "the frozen blocks are computed in every epoch" in line]
    assert len(told) == 2, "each training that has frozen blocks says it, once"
    assert all("cannot be written to (No space left on device)" in line for line in told)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_onto_a_full_disk(topics_model: Path, run: Run, small_disk: Path, tmp_path: Path, suffix: str) -> None:
    source = write_csv(tmp_path / "rows.csv", make_rows(900))
    leave_free(small_disk, 12_288)
    target = small_disk / f"out.{suffix}"
    code, out, err = run("predict", topics_model, "--input", source, "--output", target, "--columns", "text=text")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"error: cannot write {target}: No space left on device; no part of it was kept: make room, or name another file with --output"
    )
    assert "Traceback" not in err
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_folder_that_becomes_read_only(
    topics_recipe: ht.Recipe, run: Run, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = tmp_path / "asked.yaml", small_disk / "run"
    config.write_text(yaml.safe_dump(topics_recipe.to_dict() | {"run": {"arms": ["head"], "budgets": [30], "seeds": [0, 1]}}))

    def mount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    mount("ro")
    code, _, err = run("run", "--config", config, "--output-dir", folder)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: cannot write to output folder {folder} (Read-only file system): name another with --output-dir"
    )
    mount("rw")
    write = disk.write_json

    def write_the_first_result(path: Path, value: Any) -> None:
        write(path, value)
        if path.name == "result.json":
            mount("ro")

    with monkeypatch.context() as patch:
        patch.setattr("hf_transfer.evidence.cell.write_json", write_the_first_result)
        code, _, err = run("run", "--config", config, "--output-dir", folder)
    assert code == 2, err
    assert re.match(rf"error: cannot write {folder}/\S+ \(Read-only file system\): make that disk writable; ", err.splitlines()[-1])
    assert "Traceback" not in err
    code, _, err = run("run", "--config", config, "--output-dir", folder, "--resume")
    assert (code, "(Read-only file system): name another" in err) == (2, True), err
    mount("rw")
    (cell,) = finished(folder)
    before = stamps(cell)
    code, _, err = run("run", "--config", config, "--output-dir", folder, "--resume")
    assert code == 0, err
    assert before.items() <= stamps(cell).items()
    assert len(finished(folder)) == 2


def test_a_folder_is_made_or_its_disk_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "a/b")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskError, match=r"cannot write .*c \(No space left on device\)"):
        make_folder(tmp_path / "c")
