"""Images as files hold them: found, checked once by decoding every one, and decoded again whenever one is read."""

import functools
import hashlib
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from hf_transfer.errors import DataError, first_line, listed

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""What is read, whatever a file is called. Pillow knows forty more; for EPS it starts another program."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
BACKGROUND = (255, 255, 255)
"""What shows through where an image is transparent."""
MANY = 2000
"""Images from which on a terminal is shown how far the check has come."""


MAX_FILE_BYTES = 2**30
"""What 89 million pixels, the most that are read, take uncompressed is less."""
LARGE_PIXELS = 2**24
"""Pixels from which on images are decoded one at a time, whatever the number of cores: one may take 2 GB."""


class PixelError(ValueError):
    """Pixels that mean nothing we know."""


class PathError(ValueError):
    """A path that leads where no row may."""


@dataclass(frozen=True)
class Picture:
    """An image that is read when it is needed; equal to another when their files are, byte for byte."""

    sha256: str
    """Of the encoded image, as hex digits."""
    name: str = field(compare=False, repr=False)
    """File or row, for a person to find it."""
    size: tuple[int, int] = field(compare=False, repr=False)
    """Width and height in pixels, as it is looked at."""
    read: Callable[[], bytes] = field(compare=False, repr=False)
    """Gives the encoded image."""

    def decode(self, num_channels: int) -> Image.Image:
        """Give the image, upright, in RGB (3 channels) or grey (1).

        Raises:
            DataError: It was there when it was checked, and cannot be read any more.
        """
        try:
            with refuse_bombs():
                return decode_image(self.read(), num_channels)
        except Exception as error:
            raise DataError(f"{self.name} could be read before and cannot any more: {first_line(error)}") from error


def decode_image(data: bytes, num_channels: int = 3) -> Image.Image:
    """Decode an image of any mode as a person sees it.

    Args:
        data: A file's bytes (PNG, JPEG, TIFF, WebP, ...); of several frames the first is taken.
        num_channels: 3 for RGB, 1 for grey.

    Raises:
        PixelError: Its pixels mean nothing we know (floats, or integers of more than 16 bits).
        Exception: What Pillow raises on a damaged file, of many kinds.
    """
    opened = Image.open(BytesIO(data), formats=FORMATS)
    with _ONE_LARGE_IMAGE if opened.width * opened.height > LARGE_PIXELS else nullcontext():
        return as_seen(opened, num_channels)


_ONE_LARGE_IMAGE = threading.Lock()


def read_image_file(path: Path) -> bytes:
    """Give what an image's file holds.

    Raises:
        PixelError: It is a device, a pipe or the like, which may never end, or larger than any image.
        OSError: It is not there, is a folder, or may not be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise PixelError("no image: it is no regular file")
    if found.st_size > MAX_FILE_BYTES:
        raise PixelError(f"{found.st_size:,} bytes, an image has at most {MAX_FILE_BYTES:,}")
    return path.read_bytes()


def referred_file(reference: str, root: Path) -> Path:
    """Give the file that a row of a table names, without asking whether it is there.

    What a row says comes from whoever wrote the table, so it leads no further than the data's own folder. What lies in that folder is
    the user's: a link there is followed, wherever it leads.

    Args:
        reference: A path, from the data's folder or absolute.
        root: The data's folder.

    Raises:
        PathError: It leads out of that folder, or can be no path at all.
    """
    # Normalised as text: `link/..` is not where the system would go.
    folder = Path(os.path.abspath(root))
    path = Path(os.path.normpath(folder / reference))
    if "\0" in reference:
        raise PathError("can be no path: it holds a NUL character")
    if "://" in reference:
        raise PathError("is an address: only files are read, download it first")
    if not path.is_relative_to(folder):
        # The same file by another name: one of the two goes through a link above the folder, as homes and /tmp often do.
        real, real_folder = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
        if real.is_relative_to(real_folder):
            return folder / real.relative_to(real_folder)
        raise PathError(f"lies outside the data's folder ({folder}): put the image, or a link to its folder, in there")
    return path


def as_seen(opened: Image.Image, num_channels: int = 3) -> Image.Image:
    """Give an image of any mode as a person sees it: upright by its EXIF, transparent parts on white, 16 bits scaled down to 8.

    Args:
        opened: Loaded or not.
        num_channels: 3 for RGB, 1 for grey.

    Raises:
        PixelError: Its pixels mean nothing we know.
    """
    opened.load()
    # Upright already, it would be copied: a large one takes 350 MB.
    is_upright = opened.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9)
    image: Image.Image = opened if is_upright else ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):
        # A PGM of 16 bits opens like integers of 32; from any other file those may be 8 bits written by a program that knows no fewer.
        image = _to_eight_bits(image, may_be_eight=image.mode == "I" and opened.format != "PPM")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    mode = "RGB" if num_channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image, may_be_eight: bool) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise PixelError(f"pixels of mode {image.mode} from {pixels.min():g} to {pixels.max():g}, expected 8 or 16 bits")
    divisor = 1 if may_be_eight and pixels.max() <= 255 else 257
    return Image.fromarray(np.round(pixels / divisor).astype(np.uint8))


def read_pictures(split: str, dataset: "Dataset", root: Path | None) -> list[Picture]:
    """Read and check the column `image` of a split: every image is decoded once.

    Args:
        split: For messages.
        dataset: Its column `image` holds encoded images, `{"bytes", "path"}`, or paths.
        root: Folder that relative paths start from and that no path leaves; None = where the Hub's files are kept.

    Raises:
        DataError: The column holds something else, or images that are missing, empty, damaged, enormous or elsewhere; names them.
    """
    from datasets import Image as ImageFeature

    feature = dataset.features["image"]
    if isinstance(feature, ImageFeature):
        dataset = dataset.cast_column("image", ImageFeature(decode=False))
    return check_images(split, [_named_reader(split, dataset, row, root) for row in range(len(dataset))])


def check_images(what: str, readers: Sequence[tuple[str, Callable[[], bytes]]]) -> list[Picture]:
    """Decode every image once.

    Args:
        what: Whose images, for messages.
        readers: (name, what gives the encoded image).

    Raises:
        DataError: Some cannot be read; names them.
    """
    with refuse_bombs(), ThreadPoolExecutor(num_cores()) as pool:
        checked = list(
            tqdm(
                pool.map(lambda reader: _check(*reader), readers),
                total=len(readers),
                desc=f"checking the {what} images",
                disable=None if len(readers) >= MANY else True,
                leave=False,
            )
        )
    bad = [problem for problem in checked if isinstance(problem, str)]
    if bad:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise DataError(f"{len(bad)} of {len(checked)} {what} images cannot be read: {'; '.join(bad[:3])}{more}: replace or remove them")
    return [picture for picture in checked if isinstance(picture, Picture)]


def num_cores() -> int:
    """Give the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def refuse_bombs() -> Iterator[None]:
    """While the block runs, make Pillow raise where a header promises more than 89 million pixels, as a decompression bomb's does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Damaged EXIF or TIFF tags do not make an image unreadable.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def _check(name: str, read: Callable[[], bytes]) -> Picture | str:
    """Give the picture, or a sentence on why there is none."""
    try:
        data = read()
        if not data:
            return f"{name} is empty"
        size = decode_image(data).size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"{name} is too large (more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down)"
    except Image.UnidentifiedImageError:
        return f"{name} is no image of a kind that is read ({listed(FORMATS)})"
    except FileNotFoundError:
        return f"{name} does not exist"
    except IsADirectoryError:
        return f"{name} is a folder"
    except PixelError as error:
        return f"{name} holds {error}"
    except PathError as error:
        return f"{name} {error}"
    except Exception as error:
        # Pillow's decoders raise what their formats' libraries do: OSError, SyntaxError, ValueError, struct.error, ...
        return f"{name} is damaged or of an unknown kind ({first_line(error)})"
    return Picture(hashlib.sha256(data).hexdigest(), name, size, read)


def _named_reader(split: str, dataset: "Dataset", row: int, root: Path | None) -> tuple[str, Callable[[], bytes]]:
    value = dataset[row]["image"]
    path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
    held = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(held, bytes):
        return f"{split} row {row}", functools.partial(_bytes_of, dataset, row)
    if not isinstance(path, str) or not path:
        if value in (None, "") or (isinstance(value, dict) and {"bytes", "path"} & set(value)):
            raise DataError(f"{split} row {row} (counted from 0) has no image: fill it, or remove the row")
        raise DataError(
            f"{split} row {row}: expected an image (encoded, or the path of its file) in the image column, found {type(value).__name__}: "
            f"name another column; there are {listed(dataset.column_names)}"
        )
    # What the Hub's datasets name lies where the libraries put it.
    roots = _library_folders() if root is None else [root]
    for folder in roots:
        try:
            file = referred_file(path, folder)
        except PathError as error:
            refusal = error
        else:
            shown = file if root is None else file.relative_to(os.path.abspath(folder))
            return str(shown), functools.partial(read_image_file, file)
    return f"{split} row {row}: {path}", functools.partial(_refuse, refusal)


def _refuse(error: Exception) -> bytes:
    raise error


def _library_folders() -> list[Path]:
    """Give the folders that the Hub's files are kept in."""
    import datasets.config
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(folder) for folder in (HF_HUB_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.HF_DATASETS_CACHE)]


def _bytes_of(dataset: "Dataset", row: int) -> bytes:
    value: Any = dataset[row]["image"]
    return value["bytes"] if isinstance(value, dict) else value
