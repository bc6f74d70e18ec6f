"""Image classification: an image in, one of C labels out."""

import base64
import functools
import io
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, PretrainedConfig

from hf_transfer.data.augmentation import change_image, erase, mix, random_crop
from hf_transfer.data.images import IMAGE_SUFFIXES, PathError, Picture, as_seen, check_images, read_image_file, read_pictures, referred_file
from hf_transfer.data.roles import Examples
from hf_transfer.errors import ConfigError, DataError
from hf_transfer.task_configs import Augmentation, ImageClassification
from hf_transfer.tasks.classification import (
    check_labels,
    count_labels,
    decode,
    item_logits,
    item_shares,
    read_rows,
    to_answers,
    to_table,
    weights_by_class,
)
from hf_transfer.tasks.image_processor import ImageProcessor, load_image_processor
from hf_transfer.tasks.items import Draw, EncodedRow, ImageWindow

if TYPE_CHECKING:
    from hf_transfer.data.sources import Source

__all__ = ["check_labels", "count_labels", "decode", "item_logits", "item_shares", "to_answers", "to_table", "weights_by_class"]

AUTO_MODEL = AutoModelForImageClassification
PEFT_TASK_TYPE = None
MANY_ITEMS = False
READS_TEXTS_WHOLE = False
READS_FILES = True
LENGTH_UNIT = "pixels of the longer side"

THUMBNAIL = 96
"""Pixels of the longer side of what a person is shown."""


def choose_columns(columns: Mapping[str, str], found: Collection[str], task: ImageClassification) -> dict[str, str]:
    """Give the role -> column that the data fills: those named."""
    return dict(columns)


def read(
    source: "Source", columns: Mapping[str, str], label_names: Sequence[str] | None, task: ImageClassification
) -> tuple[list[str], dict[str, Examples | None]]:
    """Read images, each decoded once to see that it can be, and labels.

    Args:
        source: The data as loaded.
        columns: Role -> column.
        label_names: Names of the classes, or None to take the data's.
        task: Not asked here.

    Returns:
        Label names, (C,), and split -> examples, None for a split without labels. An input is a `Picture`.

    Raises:
        DataError: A column, an image or a label is missing or wrong; names the row or the file.
    """

    def check_names(names: Sequence[str]) -> None:
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
            raise DataError(
                f"the label column '{columns['label']}' holds names of files ('{names[0]}'), expected classes: name another with --columns "
                "label=COLUMN"
            )

    return read_rows(source, columns, label_names, lambda split, dataset: read_pictures(split, dataset, source.root), check_names)


def load_processor(folder: Path, name: str, config: PretrainedConfig) -> ImageProcessor:
    """Load a checkpoint's image processor.

    Raises:
        CheckpointError: There is none that gives images of one size.
    """
    return load_image_processor(folder, name, config)


def check_reach(processor: ImageProcessor, config: PretrainedConfig, task: ImageClassification, name: str) -> None:
    """Every image is resized to what the checkpoint reads."""


def describe_reach(processor: ImageProcessor, config: PretrainedConfig) -> str:
    """Say what the checkpoint reads."""
    return f", reads {processor.width} x {processor.height} pixels ({processor.num_patches:,} patches)"


def encode(processor: ImageProcessor, inputs: Sequence[Picture], task: ImageClassification) -> list[EncodedRow]:
    """Give one window a row, which is decoded when it is read."""
    return [(ImageWindow(picture, processor.num_patches),) for picture in inputs]


def collate(windows: Sequence[ImageWindow], processor: ImageProcessor) -> dict[str, torch.Tensor]:
    """Decode and process images as the checkpoint's processor says: `pixel_values`, (B, C, H, W) float32."""
    images = [window.picture.decode(processor.num_channels) for window in windows]
    return {"pixel_values": torch.from_numpy(processor.pixels(images))}


def augmenter(processor: ImageProcessor, task: ImageClassification) -> Callable[..., tuple[dict[str, torch.Tensor], np.ndarray]] | None:
    """Give what reads training images with the task's augmentation, or None where it changes nothing."""
    if task.augmentation == Augmentation():
        return None
    return functools.partial(collate_augmented, processor=processor, settings=task.augmentation)


def collate_augmented(
    draws: Sequence[Draw], partners: Sequence[Draw], processor: ImageProcessor, settings: Augmentation
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Read images, each changed as its own draw says, and mix them with their partners.

    Args:
        draws: (B,) windows and what their random numbers begin with.
        partners: (B,) the other image of each mixture; asked for only where images are mixed.
        processor: The checkpoint's.
        settings: What to do.

    Returns:
        `pixel_values`, (B, C, H, W) float32, and the share of its own label that each keeps, (B,) float32; the rest is its partner's.
    """
    mixes = settings.mixup > 0 or settings.cutmix > 0
    # An image that is another's partner as well is read once.
    wanted = {draw.key: draw for draw in ([*draws, *partners] if mixes else draws)}
    images = {key: _changed(draw, processor, settings) for key, draw in wanted.items()}
    pixels = dict(zip(images, processor.pixels(list(images.values()), is_sized=True), strict=True))
    if settings.erasing:
        for key, values in pixels.items():
            rng = np.random.default_rng([*key, 1])
            if rng.random() < settings.erasing:
                pixels[key] = erase(values.copy(), rng)
    shares = np.ones(len(draws), dtype=np.float32)
    made = [pixels[draw.key] for draw in draws]
    if mixes:
        for index, (draw, partner) in enumerate(zip(draws, partners, strict=True)):
            made[index], shares[index] = mix(made[index], pixels[partner.key], settings, np.random.default_rng([*draw.key, 2]))
    return {"pixel_values": torch.from_numpy(np.stack(made))}, shares


def _changed(draw: Draw, processor: ImageProcessor, settings: Augmentation) -> Image.Image:
    rng = np.random.default_rng([*draw.key, 0])
    image = draw.window.picture.decode(processor.num_channels)
    if settings.crop_scale < 1:
        image = random_crop(image, (processor.width, processor.height), settings.crop_scale, processor.resample, rng)
    else:
        image = processor.resized(image)
    return change_image(image, settings, rng)


def probe_windows(processor: ImageProcessor, task: ImageClassification, num_windows: int) -> list[ImageWindow]:
    """Give windows of a grey image."""
    file = io.BytesIO()
    Image.new("RGB", (processor.width, processor.height), (128, 128, 128)).save(file, "PNG")
    return [
        ImageWindow(Picture("", "a grey image", (processor.width, processor.height), file.getvalue), processor.num_patches)
    ] * num_windows


def describe_misfit(task: ImageClassification, processor: ImageProcessor, reason: str) -> str:
    """Say why a model cannot read `probe_windows`, and what to do."""
    return (
        f"cannot read what its image processor gives, {processor.width} x {processor.height} pixels ({reason}): "
        "set size in preprocessor_config.json to what the model was trained with (image_size in config.json)"
    )


@dataclass(frozen=True)
class Sizes:
    """Sizes of images as they are, in pixels."""

    median: tuple[int, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    read_as: tuple[int, int]
    """Width and height that the model reads."""

    def lines(self, sample: str) -> list[tuple[str, str]]:
        """Give what a person reads; `sample` says of how many rows, where not of all."""
        median, smallest, largest, read_as = (
            f"{width:,} x {height:,}" for width, height in (self.median, self.smallest, self.largest, self.read_as)
        )
        return [("images", f"median {median}, smallest {smallest}, largest {largest} pixels{sample}; all are read as {read_as}")]


def measure(inputs: Sequence[Picture], processor: ImageProcessor, task: ImageClassification) -> Sizes:
    """Measure images before they are resized."""
    sizes = [picture.size for picture in inputs]
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    width, height = (int(np.median(sides)) for sides in zip(*sizes, strict=True))
    return Sizes((width, height), by_area[0], by_area[-1], (processor.width, processor.height))


def to_text(value: Picture) -> None:
    """An image says nothing that words could be compared with."""


def show(value: Picture) -> dict[str, Any]:
    """Give what a person looks at of an input: `image`, a thumbnail as a data URI."""
    image = value.decode(num_channels=3)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return {"image": f"data:image/png;base64,{base64.b64encode(_encoded(image)).decode()}"}


def length_of(value: Picture) -> int:
    """Give the pixels of an image's longer side, before it is resized."""
    return max(value.size)


def to_inputs(values: Iterable[Any], task: ImageClassification) -> list[Picture]:
    """Check what a user wants predicted: paths, encoded images, or Pillow images.

    Raises:
        ConfigError: It is no list of those.
        DataError: An image cannot be read; names it.
    """
    if isinstance(values, (str, bytes, Path, Image.Image)) or not isinstance(values, Iterable):
        raise ConfigError(f"predict takes a list of images, found {type(values).__name__}: predict([image])")
    return check_images("given", [_reader(index, value) for index, value in enumerate(values)])


def input_roles(task: ImageClassification, columns: Mapping[str, str], found: Collection[str]) -> dict[str, str]:
    """Give the role -> column of a table to predict: the column of the training."""
    return {"image": task.image}


def from_columns(columns: Mapping[str, list[Any]], first_row: int, root: Path) -> list[Any]:
    """Give what `to_inputs` takes from the columns of a table.

    Args:
        columns: Role -> values, (B,): encoded images, `{"bytes", "path"}` as `datasets` writes them, or paths.
        first_row: Where they begin in the table, for messages.
        root: Folder that paths start from, and that none leaves.

    Raises:
        DataError: A row has no image, or names one elsewhere; names the row.
    """
    images: list[Any] = []
    for row, value in enumerate(columns["image"], first_row):
        image = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
        if not isinstance(image, (str, bytes)) or not image:
            raise DataError(
                f"given row {row} has no image ({value!r}): expected one (encoded, or the path of its file); fill it, or remove the row"
            )
        try:
            images.append(referred_file(image, root) if isinstance(image, str) else image)
        except PathError as error:
            raise DataError(f"given row {row}: {value if isinstance(value, str) else value['path']} {error}") from None
    return images


def _reader(index: int, value: Any) -> tuple[str, Callable[[], bytes]]:
    if isinstance(value, (str, Path)):
        return str(value), functools.partial(read_image_file, Path(os.path.expanduser(value)))
    if isinstance(value, bytes):
        return f"the image at position {index}", functools.partial(bytes, value)
    if isinstance(value, Image.Image):
        return f"the image at position {index}", functools.partial(_encoded, value)
    raise ConfigError(
        f"predict takes a list of images (paths, encoded images or Pillow images), found {type(value).__name__} at position {index}"
    )


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    as_seen(image).save(file, "PNG")
    return file.getvalue()
