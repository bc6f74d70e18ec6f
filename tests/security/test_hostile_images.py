"""Hostile images: one sentence, bounded memory and time, no other program; in training and in predicting, from files and from Parquet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hf_transfer as ht
from hf_transfer.data import images
from hf_transfer.data.images import check_images
from hf_transfer.errors import DataError
from tests.conftest import Run, make_photos, refused, save_untrained, write_csv
from tests.security.hostile_images import DAMAGED, HOSTILE, READ, TOO_LARGE, UNKNOWN, png, saved

MOST_SECONDS = 20.0
"""Of one image; all take less than one on a quiet core."""
MOST_MEMORY = 2**30
"""Of the whole program, on all of them."""
Found = dict[str, tuple[str, float, int]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Give, for each hostile image, what was said of it, the seconds it took and the memory up to then."""
    folder = tmp_path_factory.mktemp("hostile")
    programs = tmp_path_factory.mktemp("programs")
    for program in ("gs", "gswin64c", "gswin32c", "inkscape", "rsvg-convert", "ffmpeg", "djpeg"):
        (programs / program).write_text(f"#!/bin/sh\ntouch {programs}/STARTED\n")
        (programs / program).chmod(0o755)
    for name, (make, _) in HOSTILE.items():
        (folder / name).write_bytes(make())
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.security.hostile_images", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2], timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (programs / "STARTED").exists(), "an image started another program"
    return {name: (said, seconds, memory) for name, said, seconds, memory in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_one_sentence_in_bounded_memory_and_time(found: Found, name: str) -> None:
    said, seconds, memory = found[name]
    expected = HOSTILE[name][1]
    assert (said == READ) if expected == READ else said.startswith(f"1 of 1 train images cannot be read: {name} {expected}"), said
    assert "\n" not in said and len(said) < 400
    assert seconds < MOST_SECONDS and memory < MOST_MEMORY


def test_the_largest_images_are_decoded_one_at_a_time() -> None:
    """On many cores a folder of them would fill the memory."""
    code = """
import io
from PIL import Image
from hf_transfer.data import images
from tests.security.hostile_images import peak_memory_bytes
file = io.BytesIO()
Image.new("RGB", (9400, 9400), (1, 2, 3)).save(file, "PNG")
data = file.getvalue()
images.num_cores = lambda: 4
before = peak_memory_bytes()
assert len(images.check_images("train", [(str(n), lambda: data) for n in range(4)])) == 4
print((peak_memory_bytes() - before) // 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    # Pillow holds 4 bytes a pixel: 340 MiB each; one may begin while another is let go.
    assert int(done.stdout) < 700


def test_a_device_a_pipe_and_an_endless_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    for name, said in (
        ("pipe.png", "holds no image: it is no regular file"),
        ("zero.png", "holds no image: it is no regular file"),
        ("folder.png", "is a folder"),
        ("sparse.png", "holds 1,099,511,627,776 bytes, an image has at most 1,073,741,824"),
    ):
        with pytest.raises(DataError, match=f"{name} {said}"):
            check_images("train", [(name, lambda name=name: images.read_image_file(tmp_path / name))])


@pytest.fixture(scope="module")
def shapes_model(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a model that classifies images; it knows nothing."""
    return save_untrained("image-classification", tiny_vit, ["disc", "stripes"], tmp_path_factory.mktemp("models") / "shapes")


WORST = [
    "60,000 x 60,000.png",
    "unfolding comment.png",
    "frame of 60,000 x 60,000.gif",
    "tile of 60,000 x 60,000.tif",
    "program.png",
    "cut.jpg",
]


@pytest.mark.parametrize("name", WORST)
def test_every_way_in_refuses_it(
    run: Run, tiny_vit: Path, shapes_model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = HOSTILE[name]
    photos = make_photos(tmp_path / "photos", 40)
    good = (photos / "disc" / "0.jpg").read_bytes()
    (photos / "disc" / name).write_bytes(make())
    assert f"disc/{name} {expected}" in refused(run("run", "image", "--dataset", photos, "--checkpoint", tiny_vit))

    rows = [{"image": str(path.relative_to(photos)), "label": path.parent.name} for path in sorted(photos.rglob("*.*"))]
    write_csv(photos / "train.csv", rows)
    assert f"disc/{name} {expected}" in refused(run("run", "image", "--dataset", photos / "train.csv", "--checkpoint", tiny_vit))

    held = [{"bytes": good, "path": None}] * 30 + [{"bytes": make(), "path": name}]
    pq.write_table(pa.table({"image": held, "label": [*"ab" * 15, "a"]}), tmp_path / "x.parquet")
    assert f"train row 30 {expected}" in refused(run("run", "image", "--dataset", tmp_path / "x.parquet", "--checkpoint", tiny_vit))

    model = ht.load(shapes_model)
    for given in (photos / "disc" / name, str(photos / "disc" / name), make()):
        with pytest.raises(DataError) as caught:
            model.predict([good, given])
        assert expected in str(caught.value)
    for table in (photos / "train.csv", tmp_path / "x.parquet"):
        code, _, err = run("predict", shapes_model, "--input", table, "--output", tmp_path / "out.csv")
        assert code == 2 and err.startswith("error: ") and expected in err and not (tmp_path / "out.csv").exists()


def test_the_kinds_that_are_read_are_read() -> None:
    for kind in images.FORMATS:
        assert images.decode_image(saved(kind)).size == (16, 16), kind
    assert images.decode_image(png(5, 7)).size == (5, 7)
    assert {TOO_LARGE, UNKNOWN, DAMAGED, READ} <= {expected for _, expected in HOSTILE.values()}
