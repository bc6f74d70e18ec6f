from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hf_transfer.data.sources import load_source
from hf_transfer.errors import DataError
from hf_transfer.task_configs import ImageClassification
from hf_transfer.tasks.image_classification import read
from tests.conftest import write_csv

TASK = ImageClassification()


def fill(folder: Path, *names: str) -> Path:
    """Write an image of its own, or a word where the name ends otherwise, under every name; "a/" makes an empty folder."""
    for index, name in enumerate(names):
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".gif", ".tif"):
            Image.new("RGB", (3 + index, 4), (index, 0, 0)).save(path)
        elif not name.endswith("/"):
            path.write_text("word")
    return folder


def rows_of(folder: Path, split: str = "train") -> list[tuple[str, str]]:
    """Give (file in the folder, label name) of a split."""
    dataset = load_source(str(folder)).splits[split]
    names = dataset.features["label"].names
    return [(str((folder / row["image"]).relative_to(folder)), names[row["label"]]) for row in dataset]


def test_a_folder_a_class_is_read_whole(tmp_path: Path) -> None:
    source = load_source(str(fill(tmp_path, "dog/b.JPG", "cat/a.png", "dog/a.png", "10/x.gif", "2/x.tif")))
    assert list(source.splits) == ["train"] and source.root == tmp_path and source.notices == []
    names, examples = read(source, TASK.columns, None, TASK)
    assert names == ["10", "2", "cat", "dog"]
    train = examples["train"]
    assert train is not None
    assert [picture.name for picture in train.inputs] == ["10/x.gif", "2/x.tif", "cat/a.png", "dog/a.png", "dog/b.JPG"]
    assert [labels.tolist() for labels in train.labels] == [[0], [1], [2], [3], [3]]
    assert train.strata is not None and train.strata.tolist() == [0, 1, 2, 3, 3]
    assert train.row_ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("train", "validation", "test"), [("train", "validation", "test"), ("Train", "val", "Test"), ("TRAIN", "dev", "test")]
)
def test_folders_of_splits_share_their_classes(tmp_path: Path, train: str, validation: str, test: str) -> None:
    source = fill(tmp_path, f"{train}/cat/a.png", f"{train}/dog/a.png", f"{validation}/dog/a.png", f"{test}/cat/b.png", f"{test}/emu/b.png")
    assert rows_of(source) == [(f"{train}/cat/a.png", "cat"), (f"{train}/dog/a.png", "dog")]
    assert rows_of(source, "validation") == [(f"{validation}/dog/a.png", "dog")]
    assert rows_of(source, "test") == [(f"{test}/cat/b.png", "cat"), (f"{test}/emu/b.png", "emu")]
    assert [split.features["label"].names for split in load_source(str(source)).splits.values()] == [["cat", "dog", "emu"]] * 3


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_folders_inside_a_class_belong_to_it(tmp_path: Path, prefix: str) -> None:
    source = fill(tmp_path, f"{prefix}cat/2020/a.png", f"{prefix}cat/2021/a.png", f"{prefix}dog/2020/a.png")
    assert rows_of(source) == [(f"{prefix}{name}/a.png", name[:3]) for name in ("cat/2020", "cat/2021", "dog/2020")]


def test_a_folder_is_found_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "pictures/cat/a.png", "pictures/dog/a.png")
    write_csv(fill(tmp_path, "data/deep/a.png") / "data/train.csv", [{"image": "deep/a.png", "label": "cat"}])
    monkeypatch.chdir(tmp_path)
    for given in ("data", "./data", "data/train.csv", "pictures", "./pictures", "pictures/"):
        names, examples = read(load_source(given), TASK.columns, None, TASK)
        assert (names[0], len(examples["train"].inputs)) == ("cat", 1 if "data" in given else 2), given


def test_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    quiet = ["cat/.hidden", "cat/Thumbs.db", "desktop.ini", ".DS_Store", "cat/.a.png"]
    source = load_source(str(fill(tmp_path, "cat/a.png", "cat/notes.md", "README", "cat/deep/b.xml", *quiet)))
    assert source.notices == ["3 files are no image by name and not read: README, cat/deep/b.xml, cat/notes.md"]
    assert rows_of(tmp_path) == [("cat/a.png", "cat")]
    other = load_source(str(fill(tmp_path / "other", "train/cat/a.png", "train/list", "test/cat/a.png", "LICENSE")))
    assert other.notices == ["2 files are no image by name and not read: LICENSE, train/list"]


@pytest.mark.parametrize(
    "hidden", [".cache/x.png", "__MACOSX/cat/a.png", "cat/.ipynb_checkpoints/a.png", "cat/__MACOSX/a.png", "._cat.png"]
)
def test_what_is_hidden_is_not_read(tmp_path: Path, hidden: str) -> None:
    source = fill(tmp_path, "cat/a.png", "dog/a.png", hidden)
    assert rows_of(source) == [("cat/a.png", "cat"), ("dog/a.png", "dog")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "cat/a.png"], r"images lie in .* itself \(a.png\).* in no class's folder: expected .*/CLASS/image.png"),
        (["train/a.png", "train/b.png", "train/cat/a.png"], r"images lie in .*train itself \(a.png, b.png\)"),
        (["train/cat/a.png", "test/cat/a.png", "a.png"], r"a\.png"),
        (["cat/a.png", "dog/"], "class folder .*dog holds no image"),
        (["cat/a.png", "dog/notes.txt"], "class folder .*dog holds no image"),
        (["train/cat/a.png", "cat/a.png", "dog/a.png"], r"has folders of splits \(train\) and others \(cat, dog\): keep one kind"),
        (["test/cat/a.png"], "has no folder train: it has test"),
        (["train/cat/a.png", "val/cat/a.png", "dev/cat/a.png"], "several folders for one split: dev, train, val; keep one"),
    ],
)
def test_a_folder_that_is_not_laid_out_so(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_source(str(fill(tmp_path, *names)))


def test_a_table_beside_images_is_what_counts(tmp_path: Path) -> None:
    fill(tmp_path, "pictures/a.png", "pictures/b.png", "c.png")
    files = ["pictures/b.png", "c.png", str(tmp_path / "pictures/a.png")]
    write_csv(tmp_path / "train.csv", [{"image": name, "label": label} for name, label in zip(files, "xyx", strict=True)])
    for given in (tmp_path, tmp_path / "train.csv"):
        source = load_source(str(given))
        assert source.splits["train"]["image"][:] == files and source.root == tmp_path
        names, examples = read(source, TASK.columns, None, TASK)
        assert names == ["x", "y"]
        assert [picture.size for picture in examples["train"].inputs] == [(4, 4), (5, 4), (3, 4)]
        assert [picture.name for picture in examples["train"].inputs] == ["pictures/b.png", "c.png", "pictures/a.png"]
    write_csv(tmp_path / "test.csv", [{"image": "gone.png"}])
    assert read(load_source(str(tmp_path)), TASK.columns, None, TASK)[1]["test"] is None, "without labels it is not opened"
    with pytest.raises(DataError, match=r"the label column 'image' holds names of files \('.*'\), expected classes: name another"):
        read(source, {"image": "label", "label": "image"}, None, TASK)


def test_the_embedded_digits_are_scikit_learns() -> None:
    source = load_source("embedded:vit")
    assert {split: len(dataset) for split, dataset in source.splits.items()} == {"train": 1437, "test": 360}
    names, examples = read(source, TASK.columns, None, TASK)
    assert names == list("0123456789")
    pictures = [*examples["train"].inputs, *examples["test"].inputs]
    digits = load_digits()
    assert [int(labels[0]) for labels in [*examples["train"].labels, *examples["test"].labels]] == digits.target.tolist()
    assert {picture.size for picture in pictures} == {(8, 8)}
    for row in (0, 1436, 1437, 1796):
        assert np.abs(np.asarray(pictures[row].decode(1)) - digits.images[row] * 255 / 16).max() <= 0.5


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    """Vehicles, and parts that passed or failed: a folder of images is a class."""
    for folder, classes in (("vehicles", ["bus", "car", "train"]), ("parts", ["invalid", "valid"])):
        fill(tmp_path / folder, *(f"{name}/a.png" for name in classes))
        assert "is read as a class, beside" in load_source(str(tmp_path / folder)).notices[0]
        assert load_source(str(tmp_path / folder)).splits["train"].features["label"].names == classes


def test_a_table_beside_an_image_is_no_image_folder(tmp_path: Path) -> None:
    fill(tmp_path, "plot.png")
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n")
    with pytest.raises(DataError, match="has no train file"):
        load_source(str(tmp_path))


def test_folders_inside_a_class_are_told_and_a_wrapping_folder_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "nested", "a/round/1.png", "a/2.png", "b/square/3.png")
    assert load_source(str(tmp_path / "nested")).notices == ["images in folders inside a class's folder count to that class: a, b"]
    fill(tmp_path / "wrap", "photos/cat/1.png", "photos/dog/2.png")
    with pytest.raises(DataError, match=r"holds one folder, photos, .*\(cat, dog\): did you mean --dataset .*wrap/photos\?"):
        load_source(str(tmp_path / "wrap"))


def test_loose_images_in_folders_called_like_splits_are_no_classes(tmp_path: Path) -> None:
    """Cats and dogs as Kaggle gives them: train/cat.0.jpg and test1/1.jpg."""
    fill(tmp_path, "train/cat.0.png", "train/dog.0.png", "test1/1.png")
    with pytest.raises(DataError, match="folders of splits"):
        load_source(str(tmp_path))
