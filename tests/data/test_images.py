import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from hf_transfer.data.images import Picture, check_images, decode_image, read_pictures
from hf_transfer.errors import DataError

WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def image_of(pixels: list[object], mode: str) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    if mode == "P":
        image.putpalette([*RED, *BLUE])
    return image


def noise(seed: int = 0, size: tuple[int, int] = (32, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8))


def promising(width: int, height: int) -> bytes:
    """Write a PNG of some 70 bytes whose header promises any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    body = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def read(folder: Path, files: dict[str, bytes | None]) -> list[Picture]:
    """Write files (None = leave it out) and read them as a column of paths."""
    for name, data in files.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return read_pictures("train", Dataset.from_dict({"image": list(files)}), folder)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(image_of([0, 200], "L")), [BLACK, (200, 200, 200)], id="grey"),
        pytest.param(encoded(image_of([0, 255], "1")), [BLACK, WHITE], id="1-bit"),
        pytest.param(encoded(image_of([0, 1], "P")), [RED, BLUE], id="palette"),
        pytest.param(encoded(image_of([0, 1], "P"), transparency=1), [RED, WHITE], id="palette, one colour transparent"),
        pytest.param(encoded(image_of([RED, BLUE], "RGB"), transparency=BLUE), [RED, WHITE], id="RGB, one colour transparent"),
        pytest.param(encoded(image_of([(*RED, 0), (*BLUE, 51)], "RGBA")), [WHITE, (204, 204, 255)], id="RGBA"),
        pytest.param(encoded(image_of([(10, 255), (0, 0)], "LA")), [(10, 10, 10), WHITE], id="LA"),
        pytest.param(encoded(image_of([(0, 255, 255, 0), (0, 0, 0, 255)], "CMYK"), "TIFF"), [RED, BLACK], id="CMYK"),
        pytest.param(encoded(Image.fromarray(np.array([[32768, 65535]], np.uint16))), [(128, 128, 128), WHITE], id="16-bit PNG"),
        pytest.param(encoded(Image.fromarray(np.array([[257, 65535]], ">u2")), "TIFF"), [(1, 1, 1), WHITE], id="16-bit big-endian"),
    ],
)
def test_an_image_of_any_mode_looks_as_a_person_sees_it(data: bytes, expected: list[tuple[int, ...]]) -> None:
    image = decode_image(data)
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == [list(color) for color in expected]
    grey = decode_image(data, num_channels=1)
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey, dtype=int) - np.asarray(image.convert("L"), dtype=int)).max() <= 1


def test_every_grey_of_16_bits_keeps_its_place() -> None:
    steps = np.arange(0, 65536, dtype=np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(steps.reshape(256, 256))), 1), dtype=int).ravel()
    assert np.abs(decoded - steps / 257).max() <= 0.5


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    assert np.allclose(decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8)), RED, atol=6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "turns", "mirrors"), [(1, 0, False), (2, 0, True), (3, 2, False), (6, -1, False), (8, 1, False)])
def test_an_image_stands_upright(tmp_path: Path, kind: str, orientation: int, turns: int, mirrors: bool) -> None:
    image = Image.new("RGB", (48, 32), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    upright = Image.fromarray(np.rot90(np.asarray(ImageOps.mirror(image) if mirrors else image), turns))
    assert upright.size == ((32, 48) if turns % 2 else (48, 32))
    assert np.abs(np.asarray(decode_image(data), dtype=int) - np.asarray(upright, dtype=int)).mean() < 6
    assert [picture.size for picture in read(tmp_path, {"image": data})] == [upright.size]


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode_image(data).getpixel((1, 1)) == RED


@pytest.mark.parametrize("exif", [b"Exif\0\0none", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_does_not_make_an_image_unreadable(tmp_path: Path, exif: bytes) -> None:
    (picture,) = read(tmp_path, {"image.jpg": encoded(Image.new("RGB", (16, 8), RED), "JPEG", exif=exif)})
    assert picture.size == picture.decode(3).size == (16, 8)


def test_pictures_are_equal_where_their_bytes_are(tmp_path: Path) -> None:
    one, two = encoded(noise(1)), encoded(noise(2))
    first, same, other, again = read(tmp_path, {"a.png": one, "b.png": one, "c.png": two, "d.png": encoded(noise(1), "BMP")})
    assert (first == same, hash(first) == hash(same)) == (True, True)
    assert len({first, same, other, again}) == 3, "the same pixels in another format are another file"
    assert [picture.name for picture in (first, same)] == ["a.png", "b.png"]
    assert str(tmp_path) not in repr(first) and "a.png" not in repr(first)


def test_every_way_to_hold_an_image_gives_the_same_pictures(tmp_path: Path) -> None:
    held = [encoded(noise(seed, (20 + seed, 9)), kind) for seed, kind in enumerate(["PNG", "JPEG", "BMP"])]
    for index, data in enumerate(held):
        (tmp_path / str(index)).write_bytes(data)
    absolute = [str(tmp_path / str(index)) for index in range(3)]
    feature = Features({"image": ImageFeature()})
    columns = {
        "as the Hub has it": (Dataset.from_dict({"image": [{"bytes": data, "path": "x.png"} for data in held]}, features=feature), None),
        "paths the Hub's way": (Dataset.from_dict({"image": absolute}, features=feature), tmp_path),
        "struct": (Dataset.from_dict({"image": [{"bytes": data, "path": "gone.png"} for data in held]}), tmp_path / "elsewhere"),
        "struct of paths": (Dataset.from_dict({"image": [{"bytes": None, "path": path} for path in "012"]}), tmp_path),
        "bytes": (Dataset.from_dict({"image": held}), None),
        "relative": (Dataset.from_dict({"image": list("012")}), tmp_path),
        "absolute": (Dataset.from_dict({"image": absolute}), tmp_path),
    }
    names = {}
    for way, (dataset, root) in columns.items():
        pictures = read_pictures("test", dataset, root)
        assert [picture.read() for picture in pictures] == held, way
        assert [picture.size for picture in pictures] == [(20, 9), (21, 9), (22, 9)], way
        assert np.array_equal(np.asarray(pictures[0].decode(3)), np.asarray(noise(0, (20, 9)))), way
        names[way] = pictures[1].name
    assert names["bytes"] == names["struct"] == names["as the Hub has it"] == "test row 1"
    assert names["relative"] == names["struct of paths"] == names["absolute"] == "1"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("corrupt.png", encoded(noise())[:60] + bytes(400), "corrupt.png is damaged or of an unknown kind"),
        ("empty.png", b"", "empty.png is empty"),
        ("half.jpg", encoded(noise(), "JPEG")[:700], "half.jpg is damaged or of an unknown kind .image file is truncated"),
        ("half.png", encoded(noise())[:1000], "half.png is damaged or of an unknown kind .image file is truncated"),
        ("text.jpg", b"I am no image.\n", "text.jpg is no image of a kind that is read .PNG, JPEG, "),
        ("missing.png", None, "missing.png does not exist"),
        ("bomb.png", promising(30_000, 30_000), r"bomb.png is too large \(more than 89,478,485 pixels: scale it down\)"),
        ("large.png", promising(9_500, 9_500), r"large.png is too large \(more than 89,478,485 pixels: scale it down\)"),
        ("larger.png", promising(13_300, 13_300), r"larger.png is too large \(more than 89,478,485 pixels: scale it down\)"),
        ("float.tif", encoded(Image.new("F", (3, 3), 0.5), "TIFF"), "pixels of mode F from 0.5 to 0.5, expected 8 or 16 bits"),
        ("deep.tif", encoded(Image.new("I", (3, 3), 70_000), "TIFF"), "pixels of mode I from 70000 to 70000, expected 8 or 16 bits"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_in_one_sentence(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    whole = rf"^1 of 2 train images cannot be read: [^\n]*{message}[^\n]*: replace or remove them$"
    with pytest.raises(DataError, match=whole) as caught:
        read(tmp_path, {"good.png": encoded(noise()), name: data})
    assert "good.png" not in str(caught.value)


def test_bad_images_are_counted_and_the_first_three_named() -> None:
    readers = [(f"row {index}", lambda index=index: encoded(noise()) if index % 4 == 0 else b"no") for index in range(8)]
    with pytest.raises(DataError, match=r"^6 of 8 old images .*: row 1 is .*; row 2 is .*; row 3 is [^;]* \(and 3 more\): replace"):
        check_images("old", readers)
    assert check_images("old", []) == []


HELD = {"bytes": encoded(noise()), "path": None}


@pytest.mark.parametrize("column", [[HELD, None], [HELD, {"bytes": None, "path": None}], [HELD["bytes"], None], ["a", None], ["a", ""]])
def test_a_row_without_an_image_is_named(column: list[object]) -> None:
    dataset = Dataset.from_dict({"image": column, "other": ["x", "y"]})
    for given in (dataset, dataset.cast_column("image", ImageFeature())):
        with pytest.raises(DataError, match=r"^train row 1 \(counted from 0\) has no image: fill it, or remove the row$"):
            read_pictures("train", given, None)


def test_a_column_of_something_else_is_refused() -> None:
    with pytest.raises(DataError, match="^test row 0: expected an image .* found int: name another column; there are image, other$"):
        read_pictures("test", Dataset.from_dict({"image": [7], "other": ["x"]}), None)


def test_sixteen_bits_are_scaled_alike_however_dark_the_image(tmp_path: Path) -> None:
    """A PGM of 16 bits opens as integers of 32, whose largest value says nothing of their range."""
    for largest, expected in ((200, 1), (300, 1), (65535, 255)):
        pixels = np.full((4, 4), largest, dtype=">u2")
        data = b"P5 4 4 65535\n" + pixels.tobytes()
        assert np.asarray(decode_image(data, 1)).max() == expected
