"""A checkpoint's image processor, and what it makes of an image: size, channels, patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, PretrainedConfig
from transformers.utils import logging as transformers_logging

from hf_transfer.errors import CheckpointError, first_line, listed

PROCESSOR_FILE = "preprocessor_config.json"
REFERENCE_PATCH = 16
"""Side of the patches by which an image costs, for models that have none or see them for a part of their depth."""
UNSCALED = {"do_rescale": False, "do_normalize": False, "include_top": False, "do_flip_channel_order": False}
"""For an image that stays one of 8 bits and is processed again: EfficientNet scales twice, MobileViT turns RGB about."""
SIZED = {"do_resize": False, "do_center_crop": False}
"""For an image that has the model's size already."""


@dataclass(frozen=True)
class ImageProcessor:
    """transformers' processor, with what it gives."""

    processor: Any
    num_channels: int
    height: int
    """Of the model's input, in pixels."""
    width: int
    num_patches: int
    """What an image costs."""

    def pixels(self, images: Sequence[Image.Image], is_sized: bool = False) -> np.ndarray:
        """Give model input, (B, C, H, W) float32.

        Args:
            images: (B,) in the processor's mode; of any size, unless `is_sized`.
            is_sized: They have the model's size: neither resize nor crop.
        """
        prepared = [_as_array(image) for image in images] if self.num_channels == 1 else list(images)
        return np.asarray(self.processor(prepared, return_tensors="np", **(SIZED if is_sized else {}))["pixel_values"], dtype=np.float32)

    def resized(self, image: Image.Image) -> Image.Image:
        """Resize and crop an image to the model's size, still in 8 bits."""
        prepared = _as_array(image) if self.num_channels == 1 else image
        settings = {name: value for name, value in UNSCALED.items() if hasattr(self.processor, name)}
        made = self.processor([prepared], return_tensors="np", **settings)["pixel_values"][0]
        pixels = np.clip(np.round(made), 0, 255).astype(np.uint8)
        return Image.fromarray(pixels[0] if self.num_channels == 1 else pixels.transpose(1, 2, 0))

    @property
    def resample(self) -> int:
        """Pillow's number of the filter it resizes with."""
        number = getattr(self.processor, "resample", None)
        return int(Image.Resampling.BILINEAR if number is None else number)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything it does to an image."""
        return self.processor.to_dict()

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the processor as transformers does."""
        self.processor.save_pretrained(folder)


def load_image_processor(folder: Path, name: str, config: PretrainedConfig) -> ImageProcessor:
    """Load a folder's image processor and try it on an image.

    Raises:
        CheckpointError: There is none, or it does not give images of one size.
    """
    if not any((folder / name).is_file() for name in (PROCESSOR_FILE, "processor_config.json")):
        found = listed(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(f"checkpoint {name} has no image processor: expected {PROCESSOR_FILE}, the folder holds {found}")
    verbosity = transformers_logging.get_verbosity()
    # It says at each load that torchvision is not there, which is so on purpose.
    transformers_logging.set_verbosity_error()
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(f"checkpoint {name} has no image processor that can be loaded: {first_line(error)[:300]}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    num_channels = getattr(config, "num_channels", 3)
    if num_channels not in (1, 3):
        raise CheckpointError(f"checkpoint {name} reads images of {num_channels} channels: 3 (RGB) and 1 (grey) are known")
    shapes = set()
    for size in ((91, 67), (67, 91)):
        tried = ImageProcessor(processor, num_channels, 0, 0, 0)
        try:
            shapes.add(tried.pixels([Image.new("RGB" if num_channels == 3 else "L", size)]).shape[1:])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"the image processor of checkpoint {name} cannot read an image: {first_line(error)}") from None
    if len(shapes) > 1:
        found = listed(f"{width} x {height}" for _, height, width in sorted(shapes))
        raise CheckpointError(
            f"the image processor of checkpoint {name} gives images of several sizes ({found}), a batch needs one: set size to a height "
            f"and a width in its {PROCESSOR_FILE}"
        )
    shape = shapes.pop()
    if len(shape) != 3:
        raise CheckpointError(f"the image processor of checkpoint {name} gives no images but an array of {len(shape)} dimensions")
    channels, height, width = shape
    if channels != num_channels:
        raise CheckpointError(f"checkpoint {name} reads images of {num_channels} channels, its processor gives {channels}")
    return ImageProcessor(processor, num_channels, height, width, _count_patches(config, height, width))


def _as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[None]


def _count_patches(config: PretrainedConfig, height: int, width: int) -> int:
    # Stages that shrink the image (Swin, ConvNeXt, MobileViT) see their small patches at the beginning only.
    has_stages = hasattr(config, "depths") or hasattr(config, "hidden_sizes")
    patch = (None if has_stages else getattr(config, "patch_size", None)) or REFERENCE_PATCH
    patch_height, patch_width = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    return max(1, (height // patch_height) * (width // patch_width))
