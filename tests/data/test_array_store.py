"""Arrays on disk: bit for bit, whatever the dtype, whoever writes, removes or damages files meanwhile."""

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_transfer.data import array_store
from hf_transfer.data.array_store import SUFFIX, ArrayStore, make_room

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int32, torch.uint8]


def key(name: object) -> bytes:
    return hashlib.blake2b(str(name).encode(), digest_size=array_store.KEY_BYTES).digest()


def made(num: int, dtype: torch.dtype = torch.float32, seed: int = 0, width: int = 5) -> dict[bytes, torch.Tensor]:
    """Make arrays of ragged lengths from random bits; of floats those are NaN and infinities, too."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [index % 7 for index in range(num)]
    return {
        key((seed, index)): torch.randint(0, 256, (size, width * dtype.itemsize), dtype=torch.uint8, generator=generator).view(dtype)
        for index, size in enumerate(sizes)
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    # One more: a tensor of one number has any stride.
    bits = [torch.cat([tensor.reshape(-1), tensor.new_zeros(1)]).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    arrays = made(20, dtype)
    store = ArrayStore(tmp_path / "a" / "store")
    assert key(0) not in store
    store.write(arrays.items())
    for reader in (store, ArrayStore(store.folder)):
        assert all(name in reader and same(reader[name], array) for name, array in arrays.items())
        assert key("other") not in reader
        with pytest.raises(KeyError):
            reader[key("other")]
    assert store.folder.stat().st_mode & 0o777 == 0o700, "hidden states of the user's texts are the user's"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (1, 1)])
def test_any_number_of_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    store, arrays = ArrayStore(tmp_path), {key(index): torch.full(shape, float(index)) for index in range(3)}
    # Views of something larger, too.
    arrays |= {key(f"view {index}"): torch.rand(*shape, 4)[..., 1] for index in range(2)}
    store.write(arrays.items())
    assert all(same(store[name], array) for name, array in arrays.items())


def test_nothing_to_write_leaves_no_file(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path / "store")
    store.write([])
    assert names(tmp_path) == set()


def test_an_array_written_twice_is_one(tmp_path: Path) -> None:
    store, arrays = ArrayStore(tmp_path), made(5)
    store.write([*arrays.items(), *arrays.items()])
    store.write(arrays.items())
    assert all(same(store[name], array) for name, array in arrays.items())
    assert all(same(ArrayStore(tmp_path)[name], array) for name, array in arrays.items())


def write_many(folder: Path, seed: int) -> None:
    store = ArrayStore(folder)
    for part in range(5):
        store.write(made(20, seed=10 * seed + part).items())


def test_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, seed)) for seed in (0, 0, 1)]
    for writer in writers:
        writer.start()
    reader = ArrayStore(tmp_path)
    while any(writer.is_alive() for writer in writers):
        reader.refresh()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    reader.refresh()
    for seed in (0, 1):
        for part in range(5):
            assert all(same(reader[name], array) for name, array in made(20, seed=10 * seed + part).items())
    assert len(names(tmp_path)) == 15
    assert all(name.endswith(SUFFIX) and not name.startswith(".") for name in names(tmp_path))


def test_damaged_and_foreign_files_are_as_good_as_none(tmp_path: Path) -> None:
    arrays = made(5)
    ArrayStore(tmp_path).write(arrays.items())
    (whole,) = tmp_path.iterdir()
    data = whole.read_bytes()
    for name, damaged in {"empty": b"", "head": data[:5], "half": data[: len(data) // 2], "cut": data[:-1], "text": b"hello" * 99}.items():
        (tmp_path / f"{name}{SUFFIX}").write_bytes(damaged)
    array_store.save_file({"weight": torch.zeros(3)}, tmp_path / f"model{SUFFIX}")
    (tmp_path / f"folder{SUFFIX}").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"link{SUFFIX}").symlink_to(tmp_path / "nowhere")
    store = ArrayStore(tmp_path)
    assert all(same(store[name], array) for name, array in arrays.items())
    whole.unlink()
    store = ArrayStore(tmp_path)
    assert not any(name in store for name in arrays)
    store.write(arrays.items())
    assert all(same(store[name], array) for name, array in arrays.items())


def test_what_somebody_removes_stays_readable_for_those_who_have_it(tmp_path: Path) -> None:
    arrays, store = made(200, width=500), ArrayStore(tmp_path)
    store.write(arrays.items())
    other = ArrayStore(tmp_path)
    assert make_room(tmp_path, 1000, 1000)
    assert names(tmp_path) == set()
    for reader in (store, other):
        reader.refresh()
        assert all(same(reader[name], array) for name, array in arrays.items())
    assert next(iter(arrays)) not in ArrayStore(tmp_path)


def test_files_are_split_where_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "FILE_BYTES", 1000)
    arrays = {key(index): torch.full((25,), float(index)) for index in range(32)}
    seen = []

    def come() -> Iterator[tuple[bytes, torch.Tensor]]:
        for name, array in arrays.items():
            seen.append(len(names(tmp_path)))
            yield name, array

    store = ArrayStore(tmp_path)
    store.write(come())
    # 100 bytes each: ten fill a file, which is written before the eleventh comes.
    assert seen == [index // 10 for index in range(32)]
    assert sorted(len(array_store.load_file(path)["starts"]) - 1 for path in tmp_path.iterdir()) == [2, 10, 10, 10]
    assert all(same(store[name], array) for name, array in arrays.items())


def test_an_error_in_the_middle_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_store, "FILE_BYTES", 100)
    arrays = list({key(index): torch.full((25,), float(index)) for index in range(9)}.items())

    def come() -> Iterator[tuple[bytes, torch.Tensor]]:
        yield from arrays[:3]
        raise ZeroDivisionError

    store = ArrayStore(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.write(come())
    assert len(names(tmp_path)) == 3
    real, calls = array_store.save_file, []

    def half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        real(tensors, path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(array_store, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        store.write(arrays[3:])
    assert len(names(tmp_path)) == 4
    assert all(name.endswith(SUFFIX) for name in names(tmp_path))
    assert sum(name in ArrayStore(tmp_path) for name, _ in arrays) == 4


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    store, limits = ArrayStore(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            store.write([(key(0), torch.zeros(1000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert error.value.errno in (errno.EIO, errno.EFBIG)
    assert names(tmp_path) == set()
    (tmp_path / "file").write_text("")
    blocked = ArrayStore(tmp_path / "file" / "store")
    with pytest.raises(OSError, match="file"):
        blocked.write([(key(0), torch.zeros(1000))])


def files_of_age(root: Path, ages: dict[str, int], size: int = 1000) -> None:
    """Write files of some bytes, used so many seconds ago."""
    for name, age in ages.items():
        path = root / f"{name}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (1e9 - age, 1e9 - age))


@pytest.mark.parametrize(
    ("wanted", "limit", "left"),
    [
        (0, 4000, "abcd"),
        (1000, 5000, "abcd"),
        (1001, 5000, "abd"),
        (2000, 5000, "abd"),
        (2001, 5000, "bd"),
        (5000, 5000, ""),
        (0, 3999, "abd"),
    ],
)
def test_room_is_made_of_what_was_used_longest_ago_and_no_more(tmp_path: Path, wanted: int, limit: int, left: str) -> None:
    # Over two stores; oldest first: c, a, d, b.
    files_of_age(tmp_path, {"one/a": 3, "one/b": 1, "two/c": 4, "two/d": 2})
    (tmp_path / "one" / "notes.txt").write_text("mine")
    assert make_room(tmp_path, wanted, limit)
    assert sorted(name.removesuffix(SUFFIX) for name in names(tmp_path) - {"notes.txt"}) == list(left)
    assert "notes.txt" in names(tmp_path)


def test_what_exceeds_the_limit_is_refused_and_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of_age(tmp_path, {"a": 1, "b": 2})
    assert not make_room(tmp_path, 5001, 5000)
    assert make_room(tmp_path / "not" / "yet", 10, 5000)
    assert not make_room(tmp_path, 2**60, 2**61), "no disk is that large"
    assert len(names(tmp_path)) == 2


def test_reading_makes_a_file_young(tmp_path: Path) -> None:
    ArrayStore(tmp_path / "old").write(made(5).items())
    ArrayStore(tmp_path / "new").write(made(5).items())
    for age, name in ((9, "old"), (5, "new")):
        (path,) = (tmp_path / name).iterdir()
        os.utime(path, (1e9 - age, 1e9 - age))
    size = path.stat().st_size
    ArrayStore(tmp_path / "old")
    assert make_room(tmp_path, size, 2 * size)
    assert names(tmp_path / "old")
    assert not names(tmp_path / "new")


def test_what_a_killed_writer_left_is_swept_away_after_an_hour(tmp_path: Path) -> None:
    old, new, theirs = tmp_path / ".a.safetensors.tmp-1", tmp_path / ".b.safetensors.tmp-2", tmp_path / ".other.tmp-3"
    for path in (old, new, theirs):
        path.write_bytes(b"half")
    for path in (old, theirs):
        os.utime(path, (time.time() - 2 * 3600,) * 2)
    assert array_store.make_room(tmp_path, 0, 100)
    assert [path.exists() for path in (old, new, theirs)] == [False, True, True]
