"""Images on the command line: what is refused, in one sentence and before any training, and what `validate` says."""

import json
import re
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import Run, make_photos, refused, save_tiny_vit


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("tiny") / "vit")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 40)


def png_header(width: int, height: int) -> bytes:
    """Give a PNG that promises so many pixels and holds none of them."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "disc/0.jpg is empty"),
        (b"no image at all", "disc/0.jpg is no image of a kind that is read"),
        (png_header(30_000, 20_000), "disc/0.jpg is too large .more than 89,478,485 pixels: scale it down.: replace"),
        (png_header(12_000, 10_000), "disc/0.jpg is too large"),
    ],
)
def test_a_bad_image_is_named(run: Run, tiny: Path, photos: Path, content: bytes, message: str) -> None:
    (photos / "disc" / "0.jpg").write_bytes(content)
    said = refused(run("run", "image", "--dataset", photos, "--checkpoint", tiny))
    assert "1 of 40 train images cannot be read: " in said
    assert re.search(message, said), said


def test_a_truncated_image_is_named(run: Run, tiny: Path, photos: Path) -> None:
    whole = (photos / "stripes" / "1.jpg").read_bytes()
    (photos / "stripes" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    assert "stripes/1.jpg is damaged" in refused(run("validate", "image", "--dataset", photos, "--checkpoint", tiny))


def test_a_folder_of_one_class(run: Run, tiny: Path, photos: Path) -> None:
    shutil.rmtree(photos / "stripes")
    assert "at least two classes, every training row is 'disc'" in refused(run("run", "image", "--dataset", photos, "--checkpoint", tiny))


def test_a_class_missing_in_test_and_stray_files_are_told(run: Run, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_photos(data / "train", 40)
    make_photos(data / "test", 20)
    shutil.rmtree(data / "test" / "stripes")
    (data / "train" / "disc" / "notes.txt").write_text("mine")
    (data / "train" / "disc" / ".DS_Store").write_text("")
    code, out, _ = run("validate", "image", "--dataset", data, "--checkpoint", tiny)
    assert code == 0
    assert "note: 1 file is no image by name and not read: train/disc/notes.txt" in out
    assert "note: no test row has the label stripes" in out
    assert "images      median 40 x 32, smallest 40 x 32, largest 40 x 32 pixels; all are read as 16 x 16" in out
    assert "kernels" not in out, "images have one shape"


def test_a_class_missing_in_training_is_refused(run: Run, tiny: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "data" / "train", 40)
    make_photos(tmp_path / "data" / "test", 20, ("disc", "ring"))
    said = refused(run("run", "image", "--dataset", tmp_path / "data", "--checkpoint", tiny))
    assert "the test data has labels that training lacks: ring" in said


def test_a_label_column_of_file_names(run: Run, tiny: Path, photos: Path) -> None:
    files = sorted(path.relative_to(photos.parent) for path in photos.rglob("*.jpg"))
    (photos.parent / "list.csv").write_text("file,kind\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    columns = ("--columns", "image=kind", "label=file")
    said = refused(run("run", "image", "--dataset", photos.parent / "list.csv", "--checkpoint", tiny, *columns))
    assert "the label column 'file' holds names of files ('photos/disc/0.jpg')" in said
    code, out, _ = run(
        "validate", "image", "--dataset", photos.parent / "list.csv", "--checkpoint", tiny, "--columns", "image=file", "label=kind"
    )
    assert code == 0
    assert "disc 16, stripes 16" in out


def test_a_processor_and_a_checkpoint_that_disagree_in_size(run: Run, photos: Path, tmp_path: Path) -> None:
    folder = save_tiny_vit(tmp_path / "vit")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"size": {"height": 24, "width": 24}}))
    said = refused(run("run", "image", "--dataset", photos, "--checkpoint", folder))
    assert "cannot read what its image processor gives, 24 x 24 pixels" in said
    (folder / "preprocessor_config.json").unlink()
    said = refused(run("run", "image", "--dataset", photos, "--checkpoint", folder))
    assert "has no image processor: expected preprocessor_config.json, the folder holds config.json, model.safetensors" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-length", "3"], "--max-length is for texts, this recipe reads images"),
        (
            ["--set", "task.augmentation=photo"],
            "no augmentation 'photo', there are none, photos, digits, or give its fields; did you mean 'photos'?",
        ),
        (["--set", "task.augmentation.flip=2"], "task.augmentation.flip: expected a value less than or equal to 1, found 2"),
        (["--set", "task.augmentation.flop=1"], "task.augmentation.flop: unknown key; did you mean 'flip'?"),
        (["--set", "arms.head.layer_decay=0.9"], "layer_decay orders the blocks that train, with tuning 'head' none does"),
        (["--set", "arms.full.layer_decay=1.5"], "arms.full.layer_decay: expected a value less than or equal to 1, found 1.5"),
        (["--set", "arms.scratch.tuning=lora"], "tuning 'lora' adapts a checkpoint's weights, an arm from scratch has none"),
        (["--set", "arms.lora.l2_sp=1"], "l2_sp holds trained blocks near the checkpoint"),
        (["--set", "arms.scratch.l2_sp=1"], "l2_sp holds trained blocks near the checkpoint"),
        (["--set", "training.class_weights=balanced", "task.augmentation.mixup=1"], "a mixed image has two classes"),
        (["--set", "training.num_workers=-1"], "training.num_workers: expected a value greater than or equal to 0, found -1"),
    ],
)
def test_a_setting_that_cannot_be_meant(run: Run, tiny: Path, photos: Path, words: list[str], message: str) -> None:
    assert message in refused(run("run", "image", "--dataset", photos, "--checkpoint", tiny, *words))


def test_an_augmentation_by_name_gives_way_to_one_field(run: Run, tiny: Path, photos: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", tiny, "--arms", "full", "--epochs", "1", "--output-dir", tmp_path / "run"]
    code, _, err = run("run", "image", "--dataset", photos, *words, "--set", "task.augmentation=digits", "task.augmentation.mixup=0.2")
    assert code == 0, err
    augmentation = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["task"]["augmentation"]
    assert (augmentation["rotation"], augmentation["flip"], augmentation["mixup"]) == (10, 0, 0.2)


def test_the_embedded_digits_bring_an_augmentation_that_a_config_may_change(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: {augmentation: {zoom: 0.2}}")
    for words, expected in (([], (0, 0.1)), (["--config", tmp_path / "mine.yaml"], (0, 0.2))):
        folder = tmp_path / f"run-{len(words)}"
        limits = ["--arms", "head", "--epochs", "1", "--budgets", "40", "--max-test-rows", "10", "--output-dir", folder]
        code, _, err = run("run", "vit", "--embedded", *words, *limits)
        assert code == 0, err
        augmentation = yaml.safe_load((folder / "recipe.yaml").read_text())["task"]["augmentation"]
        assert (augmentation["flip"], augmentation["zoom"]) == expected


def test_embedded_rates_come_with_the_embedded_checkpoint_and_the_recipes_own_arms_only(run: Run, tiny: Path, tmp_path: Path) -> None:
    limits = ["--arms", "head", "--epochs", "1", "--budgets", "40", "--max-test-rows", "10"]
    (tmp_path / "mine.yaml").write_text("arms: {head: {tuning: head, learning_rate: 0.02, num_epochs: 1}}")
    for name, words, rate in (
        ("ours", [], 5e-2),
        ("other", ["--checkpoint", tiny], 5e-3),
        ("mine", ["--config", tmp_path / "mine.yaml"], 2e-2),
    ):
        code, _, err = run("run", "vit", "--embedded", *words, *limits, "--output-dir", tmp_path / name)
        assert code == 0, err
        assert yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())["arms"]["head"]["learning_rate"] == rate
    # A whole recipe of a run keeps its own rates.
    code, _, err = run("run", tmp_path / "mine" / "recipe.yaml", "--embedded", "--output-dir", tmp_path / "again")
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text())["arms"]["head"]["learning_rate"] == 2e-2


def test_a_run_whose_model_was_removed(run: Run, tiny: Path, photos: Path, tmp_path: Path) -> None:
    words = ["--checkpoint", tiny, "--arms", "head", "--epochs", "1", "--output-dir", tmp_path / "run"]
    assert run("run", "image", "--dataset", photos, *words)[0] == 0
    shutil.rmtree(tmp_path / "run/head/budget-all/seed-0/model")
    said = refused(run("run", "image", "--dataset", photos, "--checkpoint", tmp_path / "run"))
    assert "the run's recommended model is gone: expected " in said


def test_a_text_checkpoint_for_images_and_the_other_way_round(
    run: Run, tiny: Path, tiny_bert: Path, photos: Path, topics_folder: Path
) -> None:
    said = refused(run("run", "image", "--dataset", photos, "--checkpoint", tiny_bert))
    assert "has no image processor" in said
    said = refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", tiny))
    assert "tokenizer" in said


def test_an_image_that_cannot_be_predicted(run: Run, tiny: Path, photos: Path, tmp_path: Path) -> None:
    import hf_transfer as ht

    code, _, err = run(
        "run", "image", "--dataset", photos, "--checkpoint", tiny, "--arms", "head", "--epochs", "1", "--output-dir", tmp_path / "run"
    )
    assert code == 0, err
    model = ht.load(tmp_path / "run")
    for given, message in (
        ("photo.jpg", "predict takes a list of images, found str"),
        ([tmp_path / "gone.jpg"], "1 of 1 given images cannot be read: .*gone.jpg does not exist"),
        ([3], "found int at position 0"),
    ):
        with pytest.raises(ht.TransferError, match=message):
            model.predict(given)  # type: ignore[arg-type]
    assert len(model.predict([Image.new("RGBA", (5, 9)), photos / "disc" / "0.jpg"])) == 2
