import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_transfer.data.images import IMAGE_SUFFIXES
from hf_transfer.data.sources import SPLIT_NAMES, load_source
from hf_transfer.errors import DataError
from tests.fuzz.strategies import delimited, json_lines, result_or_sentence, wild_texts

WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    ".csv": lambda rows: delimited({"text": rows}, ","),
    ".tsv": lambda rows: delimited({"text": rows}, "\t"),
    ".jsonl": lambda rows: json_lines([{"text": row} for row in rows]),
    ".json": lambda rows: json.dumps([{"text": row} for row in rows]).encode(),
}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folders")


def fresh(parent: Path) -> Path:
    folder = parent / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


rows = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4)
split_files = st.fixed_dictionaries(
    {"train": st.tuples(st.just("train"), st.lists(rows, min_size=1, max_size=3), st.sampled_from([*WRITERS, ".parquet"]))},
    optional={
        "validation": st.tuples(
            st.sampled_from(["validation", "valid", "val", "dev"]), st.lists(rows, min_size=1, max_size=2), st.sampled_from(list(WRITERS))
        ),
        "test": st.tuples(st.just("test"), st.lists(rows, min_size=1, max_size=3), st.sampled_from(list(WRITERS))),
    },
)


@given(
    splits=split_files,
    others=st.lists(
        st.sampled_from(["README.md", "train_small.csv", "labels.txt", ".train.csv", "notes.json", "train.csv.bak"]), max_size=2
    ),
)
def test_shards_of_a_split_come_back_in_order(parent: Path, splits: dict[str, Any], others: list[str]) -> None:
    folder = fresh(parent)
    for name, shards, suffix in splits.values():
        for number, shard in enumerate(shards):
            path = folder / (f"{name}{suffix}" if len(shards) == 1 else f"{name}-{number:05d}-of-{len(shards):05d}{suffix}")
            if suffix == ".parquet":
                pq.write_table(pa.table({"text": shard}), path)
            else:
                path.write_bytes(WRITERS[suffix](shard))
    for other in others:
        (folder / other).write_text("not data")
    found = load_source(str(folder)).splits
    assert {split: dataset["text"][:] for split, dataset in found.items()} == {
        split: [row for shard in shards for row in shard] for split, (_, shards, _) in splits.items()
    }


file_names = st.builds(
    "{}{}{}".format,
    st.sampled_from([*SPLIT_NAMES, "TRAIN", "train ", "tr"]),
    st.sampled_from(["", "-00000-of-00002", "-00001-of-00002", "-0-of-0", "-1-of-1", "-00000-of-00001-0a1b", "-x"]),
    st.sampled_from([".csv", ".jsonl", ".CSV", ".txt", ".parquet", ".md", "", ".gz"]),
)


@given(
    files=st.dictionaries(
        file_names, st.sampled_from([b"", b"text\na\n", b"text,more\na,b\n", b'{"text": 3}', b"a O\n", b"\xff"]), max_size=4
    ),
    folders=st.lists(st.sampled_from(["train", "test", ".git", "a"]), max_size=2, unique=True),
)
def test_any_folder_is_read_or_refused(parent: Path, files: dict[str, bytes], folders: list[str]) -> None:
    folder = fresh(parent)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for name in folders:
        if not (folder / name).exists():
            (folder / name).mkdir()
    found = result_or_sentence(lambda: load_source(str(folder)))
    assert found is None or "train" in found.splits
    for name in files:
        result_or_sentence(lambda: load_source(str(folder / name)))  # noqa: B023


classes = st.sampled_from(["cats", "dogs", "a b", "é", "trains", "train", "test", "0", "10", "9", "-x"])
pictures = st.dictionaries(
    st.lists(classes, min_size=0, max_size=3).map("/".join),
    st.lists(
        st.sampled_from(["a", "b", ".hidden", "c d", "\u202e", "é"]).flatmap(
            lambda stem: st.sampled_from([*IMAGE_SUFFIXES, ".JPG", ".txt", ".csv", ".d"]).map(lambda suffix: stem + suffix)
        ),
        max_size=3,
        unique=True,
    ),
    max_size=6,
)


@given(tree=pictures)
def test_image_folders_are_read_whole_or_refused(parent: Path, tree: dict[str, list[str]]) -> None:
    folder = fresh(parent)
    for place, files in tree.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in files:
            if not (folder / place / name).is_dir():
                (folder / place / name).write_bytes(b"")
    found = result_or_sentence(lambda: load_source(str(folder)))
    if found is None or "image" not in found.splits["train"].column_names:
        return
    read = [path for dataset in found.splits.values() for path in dataset["image"][:]]
    written = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    }
    assert len(read) == len(set(read)) and set(read) == written, "every image once"
    for dataset in found.splits.values():
        names = dataset.features["label"].names
        for path, label in zip(dataset["image"][:], dataset["label"][:], strict=True):
            assert names[label] in Path(path).parts[:-1], "a class is a folder the image lies in"


@given(
    source=wild_texts
    | st.sampled_from(["a" * 5000, "~nobody-here/x", ".", "..", "embedded:", "embedded:../x", "hub/id", "\x00.csv", "x\x00"]),
    config=st.none() | wild_texts,
)
def test_any_name_of_data_is_read_or_refused(parent: Path, source: str, config: str | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(fresh(parent))
        # What else this machine holds is another matter.
        assume(not Path(os.path.expanduser(source)).is_absolute())
        with pytest.raises(DataError) as error:
            load_source(source, config, local_files_only=True)
    assert len(str(error.value).splitlines()) == 1
    str(error.value).encode()
