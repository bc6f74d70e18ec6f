"""Paths in rows, checkpoints, run folders and names: none leads out of the data's or the run's folder, and nothing waits for a pipe."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset

import hf_transfer as ht
from hf_transfer.data.images import read_pictures
from hf_transfer.data.sources import load_source
from hf_transfer.errors import CheckpointError, ConfigError, DataError, RunFolderError
from hf_transfer.models.checkpoint import open_checkpoint
from tests.conftest import Run, make_photos, make_rows, refused, save_untrained, write_csv, write_jsonl

OUTSIDE = "lies outside the data's folder"
REFERENCES = {
    "../secret.png": OUTSIDE,
    "disc/../../secret.png": OUTSIDE,
    "../data-of-another/secret.png": OUTSIDE,
    "/etc/passwd": OUTSIDE,
    "//etc/passwd": OUTSIDE,
    "/proc/self/environ": OUTSIDE,
    "/dev/zero": OUTSIDE,
    "disc/../../data/../secret.png": OUTSIDE,
    "~/secret.png": "does not exist",
    "file:///etc/passwd": "is an address: only files are read, download it first",
    "http://127.0.0.1:9/x.png": "is an address",
    "zip://x.png::http://127.0.0.1:9/x.zip": "is an address",
    "disc/0.jpg\0.png": "can be no path: it holds a NUL character",
    "disc/0.jpg\n": "does not exist",
    "disc/\x1b[2J.jpg": "does not exist",
    "x" * 5000: "File name too long",
    "x/" * 5000 + "x": "File name too long",
    ".": "is a folder",
    "pipe.png": "holds no image: it is no regular file",
    "zero.png": "holds no image: it is no regular file",
}
"""What a row names -> what is said of it."""


@pytest.fixture(scope="module")
def shapes_model(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a model that classifies images; it knows nothing."""
    return save_untrained("image-classification", tiny_vit, ["disc", "stripes"], tmp_path_factory.mktemp("models") / "shapes")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Give a folder of photos beside a secret one, with a pipe and a device in it."""
    folder = make_photos(tmp_path / "data", 40)
    shutil.copy(folder / "disc" / "0.jpg", tmp_path / "secret.png")
    (tmp_path / "data-of-another").mkdir()
    shutil.copy(folder / "disc" / "0.jpg", tmp_path / "data-of-another" / "secret.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    return folder


def rows_of(folder: Path, *more: str) -> list[dict[str, str]]:
    found = [{"image": str(path.relative_to(folder)), "label": path.parent.name} for path in sorted(folder.rglob("*.jpg"))]
    return found + [{"image": reference, "label": "disc"} for reference in more]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: repr(reference)[:40])
def test_a_row_names_files_of_its_folder_only(run: Run, tiny_vit: Path, shapes_model: Path, data: Path, reference: str) -> None:
    said = REFERENCES[reference]
    write_jsonl(data / "train.jsonl", rows_of(data, reference))
    message = refused(run("run", "image", "--dataset", data / "train.jsonl", "--checkpoint", tiny_vit))
    assert message.startswith("error: 1 of 41 train images cannot be read: ") and said in message
    assert said != OUTSIDE or f"train row 40: {reference} {OUTSIDE} ({data}): put the image, or a link to its folder, in there" in message

    (data / "train.jsonl").rename(data / "rows.jsonl")
    code, _, err = run("predict", shapes_model, "--input", data / "rows.jsonl", "--output", data / "out.jsonl")
    assert code == 2 and err.count("\n") == 1 and said in err, err
    assert not (data / "out.jsonl").exists()

    table = pa.table(
        {"image": [{"bytes": None, "path": row["image"]} for row in rows_of(data, reference)], "label": ["a", "b"] * 20 + ["a"]}
    )
    pq.write_table(table, data / "x.parquet")
    assert said in refused(run("run", "image", "--dataset", data / "x.parquet", "--checkpoint", tiny_vit))
    # Without a folder of its own, as from the Hub, a table names what the libraries have fetched, and nothing else.
    with pytest.raises(DataError, match="outside the data's folder|is an address|NUL|cannot be read"):
        read_pictures("train", Dataset.from_dict({"image": [reference]}), None)


def test_a_row_may_be_absolute_or_go_through_a_link_of_the_users(data: Path, tmp_path: Path, tiny_vit: Path, run: Run) -> None:
    (data / "linked").symlink_to(tmp_path / "data-of-another")
    write_jsonl(data / "train.jsonl", rows_of(data, str(data / "disc" / "0.jpg"), "linked/secret.png", "disc/../stripes/1.jpg"))
    code, _, err = run("validate", "image", "--dataset", data / "train.jsonl", "--checkpoint", tiny_vit)
    assert code == 0, err


def test_a_row_may_name_the_folder_by_another_name(data: Path, tmp_path: Path) -> None:
    (tmp_path / "home").symlink_to(data)
    for root, named in ((tmp_path / "home", data), (data, tmp_path / "home")):
        dataset = Dataset.from_dict({"image": [str(named / "disc" / "0.jpg")]})
        assert [picture.name for picture in read_pictures("train", dataset, root)] == ["disc/0.jpg"]
        with pytest.raises(DataError, match=OUTSIDE):
            read_pictures("train", Dataset.from_dict({"image": [str(named / ".." / "secret.png")]}), root)


def test_a_link_back_has_no_end(data: Path, run: Run, tiny_vit: Path) -> None:
    (data / "pipe.png").unlink()
    (data / "zero.png").unlink()
    (data / "disc" / "again").symlink_to(data)
    said = refused(run("run", "image", "--dataset", data, "--checkpoint", tiny_vit))
    assert "is a link back to a folder it stands in" in said


def test_links_that_lead_out_of_an_image_folder_are_told(data: Path, tmp_path: Path) -> None:
    (data / "pipe.png").unlink()
    (data / "zero.png").unlink()
    assert load_source(str(data)).notices == []
    (data / "disc" / "a.png").symlink_to(tmp_path / "secret.png")
    assert load_source(str(data)).notices == ["1 image is a link that leads out of the folder: disc/a.png"]
    (data / "ring").symlink_to(tmp_path / "data-of-another")
    (data / "disc" / "b.jpg").symlink_to(data / "stripes" / "1.jpg")
    assert load_source(str(data)).notices == ["2 images are links that lead out of the folder: disc/a.png, ring/secret.png"]


def test_what_cannot_be_read_in_an_image_folder_is_named(data: Path, run: Run, tiny_vit: Path) -> None:
    for name in ("pipe.png", "zero.png"):
        (data / name).rename(data / "disc" / name)
    (data / "disc" / "gone.png").symlink_to(data / "nowhere")
    said = refused(run("run", "image", "--dataset", data, "--checkpoint", tiny_vit))
    assert "3 of 43 train images cannot be read: disc/gone.png does not exist; disc/pipe.png holds no image" in said


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet", "train.conll"])
def test_nobody_waits_for_a_pipe(run: Run, tiny_bert: Path, topics_model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / name)
    for source in (tmp_path / "data" / name, tmp_path / "data"):
        assert "expected a regular file" in refused(run("run", "text", "--dataset", source, "--checkpoint", tiny_bert, "--max-length", 32))
    assert refused(run("run", "text", "--dataset", "/dev/zero", "--checkpoint", tiny_bert, "--max-length", 32))
    code, _, err = run("predict", topics_model, "--input", tmp_path / "data" / name, "--output", tmp_path / "out.csv")
    assert code == 2 and err.startswith("error: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "notes.txt"])
def test_a_checkpoint_holds_no_pipe(run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "checkpoint"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", folder))
    assert f"holds {name}, which is no regular file" in said


def test_a_tokenizer_reads_nothing_outside_its_folder(run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "checkpoint"))
    other = json.loads((folder / "tokenizer.json").read_text())
    other["model"]["vocab"] = {f"SECRET{word}": index for word, index in other["model"]["vocab"].items()}
    (tmp_path / "other.json").write_text(json.dumps(other))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_file": str(tmp_path / "other.json"), "vocab_file": "../other.json", "name_or_path": str(tmp_path)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    words = ["--max-length", 32, "--arms", "head", "--epochs", 1, "--output-dir", "out"]
    code, _, err = run("run", "text", "--dataset", topics_folder, "--checkpoint", folder, *words)
    assert code == 0, err
    assert all(b"SECRET" not in path.read_bytes() for path in Path("out").rglob("*") if path.is_file())


@pytest.mark.parametrize("base", ["/{}", "../{}", "~/{}", "x/../../{}"])
def test_a_sidecar_names_no_path(adapter: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    """Whoever gives a model away must not make it read folders of the one who loads it."""
    sidecar = json.loads((adapter / "hf_transfer.json").read_text())
    monkeypatch.chdir(tiny_bert.parent)
    alone = Path(shutil.copytree(adapter, adapter.parents[3] / "given away"))
    (alone / "hf_transfer.json").write_text(json.dumps(sidecar | {"base_checkpoint": base.format(str(tiny_bert).lstrip("/"))}))
    with pytest.raises(CheckpointError, match="cannot find the base of adapter"):
        ht.load(alone)
    assert ht.load(alone, base=str(tiny_bert)).predict(["anchor"])[0]["label"], "the user may say where it is"


@pytest.mark.parametrize(
    "change",
    [
        {"chain": [{"arm": "x"}]},
        {"chain": [7]},
        {"chain": 7},
        {"chain": None},
        {"more": 1},
        {"chain": [{"train_rows": "<b>"}]},
        {"task": "text"},
        {"labels": 5},
        {"labels": [[]]},
        {"base_sha256": None},
    ],
    ids=str,
)
def test_a_sidecar_of_another_form_is_one_sentence(run: Run, adapter: Path, topics_folder: Path, change: dict[str, object]) -> None:
    path = adapter / "hf_transfer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    words = ["--dataset", topics_folder, "--checkpoint", adapter.parents[3], "--max-length", 32, "--arms", "head", "--epochs", 1]
    said = refused(run("run", "text", *words))
    assert "hf_transfer.json" in said


@pytest.mark.parametrize(
    "change", [{"dataset": ["x"]}, {"num_labels": "<b>"}, {"checkpoint": 5}, {"arm": None}, {"train_rows": None}], ids=str
)
def test_a_chain_names_texts_and_numbers(tiny_bert: Path, tmp_path: Path, change: dict[str, object]) -> None:
    good = {"checkpoint": None, "architecture": "bert", "dataset": "x", "num_labels": 2, "train_rows": 3, "arm": "full", "tuning": "full"}
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "checkpoint"))
    checkpoint = open_checkpoint(str(folder), lambda *_: None)
    (folder / "hf_transfer.json").write_text(json.dumps({"chain": [good]}))
    assert checkpoint.chain == [good]
    (folder / "hf_transfer.json").write_text(json.dumps({"chain": [good, good | change]}))
    with pytest.raises(CheckpointError, match="no list of trainings"):
        _ = checkpoint.chain


@pytest.mark.parametrize("comparison", [[], {}, {"recommendation": None}, {"recommendation": {"arm": 5, "budget": 1, "seed": 0}}], ids=str)
def test_a_comparison_of_another_form_is_one_sentence(adapter: Path, comparison: object) -> None:
    (adapter.parents[3] / "comparison.json").write_text(json.dumps(comparison))
    with pytest.raises(RunFolderError, match="recommends no arm, budget and seed"):
        ht.load(adapter.parents[3])


@pytest.mark.parametrize("change", [{"target_parameters": 5}, {"use_bdlora": "x"}, {"trainable_token_indices": [5]}], ids=str)
def test_an_adapter_config_that_cannot_be_meant_is_one_sentence(adapter: Path, change: dict[str, object]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        ht.load(adapter)


@pytest.mark.parametrize("arm", ["../../../elsewhere", "/etc", "lora/../../.."])
def test_a_run_recommends_no_model_outside_its_folder(adapter: Path, arm: str) -> None:
    folder = adapter.parents[3]
    comparison = json.loads((folder / "comparison.json").read_text())
    comparison["recommendation"]["arm"] = arm
    (folder / "comparison.json").write_text(json.dumps(comparison))
    with pytest.raises(RunFolderError, match="recommends a model outside the run's folder"):
        ht.load(folder)


NAMES = ["../up", "a/b", "..", ".hidden", "a\0b", "a\nb", "\x1b[2J", "a b", "ä", "", "C:x", "a\\b", "-x", "x" * 300]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:20])
def test_names_that_become_folders(run: Run, tiny_bert: Path, topics_folder: Path, tmp_path: Path, name: str) -> None:
    arm = {"learning_rate": 1e-3, "num_epochs": 1, "tuning": "head"}
    task = {"kind": "text-classification", "max_length": 32}
    whole = {"name": "good", "task": task, "data": {"source": str(topics_folder)}, "checkpoint": str(tiny_bert), "arms": {"good": arm}}
    for changed in (whole | {"name": name}, whole | {"arms": {name: arm}}):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(changed))
        said = refused(run("run", tmp_path / "x.yaml"))
        assert "expected a name of letters" in said or "expected at most 100 characters, found 300" in said or "must not be empty" in said


def test_labels_may_be_called_anything(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    """A label never becomes a path."""
    labels = {"boats": "../../../EXECUTED", "bread": "/etc/x\n\x1b[2J\u202e", "chess": "y" * 5000}
    rows = [row | {"label": labels[row["label"]]} for row in make_rows(60)]
    before = set(tmp_path.rglob("*"))
    words = ["--max-length", 32, "--arms", "head", "--epochs", 1, "--output-dir", "out", "--tracker", "tensorboard"]
    code, out, err = run("run", "text", "--dataset", write_csv(tmp_path / "x.csv", rows), "--checkpoint", tiny_bert, *words)
    assert code == 0, err
    made = set(tmp_path.rglob("*")) - before - {tmp_path / "x.csv"}
    assert made and all(path.is_relative_to(tmp_path / "work" / "out") for path in made)
    assert not any("EXECUTED" in path.name or len(path.name) > 100 for path in made)
    assert ht.load("out").labels == sorted(labels.values())
    assert "\x1b" not in out + err and "\u202e" not in out + err


def test_a_recipe_file_is_code_by_design(run: Run, tmp_path: Path) -> None:
    """`NAME.py` is the user's own program, as `python NAME.py` would be; nothing else that is given is."""
    (tmp_path / "mine.py").write_text("raise RuntimeError('I ran')\n")
    assert "I ran" in refused(run("validate", tmp_path / "mine.py"))
    for flag in ("--dataset", "--checkpoint", "--config"):
        said = refused(run("validate", "newsgroups", "--embedded", flag, tmp_path / "mine.py"))
        assert "I ran" not in said
    with pytest.raises(ConfigError):
        ht.load_recipe("mine")
