"""A training image changed at random, by a generator that is its own: what comes out is a function of the image and the generator.

Images are changed at the model's size, in 8 bits and by Pillow, so a photo of any size costs the same; what mixes two images works on the
model's input. `hf_transfer.task_configs.Augmentation` says what each number means.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hf_transfer.task_configs import Augmentation

BILINEAR = Image.Resampling.BILINEAR
TRIES = 10
"""Rectangles drawn before the whole image is taken, as the evaluation of most processors takes it."""


def random_crop(image: Image.Image, size: tuple[int, int], least: float, resample: int, rng: np.random.Generator) -> Image.Image:
    """Cut a rectangle of between `least` and all of the area, 3:4 to 4:3, and resize it (Szegedy et al. 2015, section 6).

    Args:
        image: Of any size.
        size: Width and height to give.
        least: Share of the area.
        resample: Pillow's number of a filter.
        rng: Draws it.
    """
    width, height = image.size
    for _ in range(TRIES):
        area = width * height * rng.uniform(least, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return image.resize(size, Image.Resampling(resample), box=(int(left), int(top), int(left) + w, int(top) + h))
    return image.resize(size, Image.Resampling(resample))


def change_image(image: Image.Image, settings: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Mirror, turn, shear, zoom, shift and recolour an image, then RandAugment it; its size and mode stay."""
    if rng.random() < settings.flip:
        image = ImageOps.mirror(image)
    if settings.rotation or settings.shear or settings.zoom or settings.shift:
        angle, shear = (math.radians(rng.uniform(-most, most)) for most in (settings.rotation, settings.shear))
        zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
        image = _affine(image, angle, math.tan(shear), zoom, *rng.uniform(-settings.shift, settings.shift, 2))
    if settings.color_jitter:
        for position in rng.permutation(3):
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[position]
            image = enhance(image).enhance(1 + rng.uniform(-settings.color_jitter, settings.color_jitter))
    for _ in range(settings.randaugment_ops):
        operation = RANDAUGMENT[rng.integers(len(RANDAUGMENT))]
        strength = settings.randaugment_magnitude / 30
        image = operation(image, strength, 1.0 if rng.random() < 0.5 else -1.0)
    return image


def erase(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill a rectangle of 2 to 33 % of the area, 3:10 to 10:3, with noise (Zhong et al. 2017, https://arxiv.org/abs/1708.04896).

    Args:
        pixels: Normalised model input, (3 or 1, H, W) float32; changed in place.
        rng: Draws it.
    """
    channels, height, width = pixels.shape
    for _ in range(TRIES):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(10 / 3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            pixels[:, top : top + h, left : left + w] = rng.standard_normal((channels, h, w), dtype=np.float32)
            break
    return pixels


def mix(pixels: np.ndarray, other: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Blend an image with another (mixup), or paste a rectangle of the other (cutmix).

    Args:
        pixels: Model input, (C, H, W) float32.
        other: The partner's.
        settings: Whose `mixup` and `cutmix` say which; with both, either by lot.
        rng: Draws it.

    Returns:
        The mixed image, and what share of its label the first one has.
    """
    pastes = settings.cutmix > 0 and (settings.mixup == 0 or rng.random() < 0.5)
    alpha = settings.cutmix if pastes else settings.mixup
    share = float(rng.beta(alpha, alpha))
    if not pastes:
        return (share * pixels + (1 - share) * other).astype(np.float32), share
    _, height, width = pixels.shape
    h, w = (round(side * math.sqrt(1 - share)) for side in (height, width))
    # The rectangle's middle may lie anywhere; what sticks out is cut off, and the share is what is left.
    top, left = int(rng.integers(height)) - h // 2, int(rng.integers(width)) - w // 2
    rows, columns = slice(max(0, top), max(0, top + h)), slice(max(0, left), max(0, left + w))
    mixed = pixels.copy()
    mixed[:, rows, columns] = other[:, rows, columns]
    pasted = pixels[0, rows, columns].size
    return mixed, 1 - pasted / (height * width)


def _affine(image: Image.Image, angle: float, shear: float, zoom: float, shift_x: float, shift_y: float) -> Image.Image:
    """Turn by an angle in radians, shear, zoom and shift (in sides) about the middle; what comes in has the mean colour of the edges."""
    width, height = image.size
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    # Pillow asks where a pixel of the result lies in the source.
    a, b, d, e = cos, sin + cos * shear, -sin, cos - sin * shear
    x, y = width / 2 + shift_x * width, height / 2 + shift_y * height
    matrix = (a, b, width / 2 - a * x - b * y, d, e, height / 2 - d * x - e * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR, fillcolor=_edge_color(image))


def _shear_upright(image: Image.Image, shear: float) -> Image.Image:
    matrix = (1, 0, 0, shear, 1, -shear * image.width / 2)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR, fillcolor=_edge_color(image))


def _edge_color(image: Image.Image) -> int | tuple[int, ...]:
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    mean = np.round(edges.mean(axis=0)).astype(int)
    return int(mean) if mean.ndim == 0 else tuple(mean.tolist())


# RandAugment's operations with the ranges of its reference code (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719), (image, strength in
# 0 to 1, sign) -> image.
RANDAUGMENT: tuple[Callable[[Image.Image, float, float], Image.Image], ...] = (
    lambda image, strength, sign: image,
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
    lambda image, strength, sign: _affine(image, sign * math.radians(30 * strength), 0, 1, 0, 0),
    lambda image, strength, sign: ImageOps.solarize(image, round(256 * (1 - strength))),
    lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    lambda image, strength, sign: ImageEnhance.Color(image).enhance(1 + 0.9 * sign * strength),
    lambda image, strength, sign: ImageEnhance.Contrast(image).enhance(1 + 0.9 * sign * strength),
    lambda image, strength, sign: ImageEnhance.Brightness(image).enhance(1 + 0.9 * sign * strength),
    lambda image, strength, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * sign * strength),
    lambda image, strength, sign: _affine(image, 0, 0.3 * sign * strength, 1, 0, 0),
    lambda image, strength, sign: _shear_upright(image, 0.3 * sign * strength),
    lambda image, strength, sign: _affine(image, 0, 0, 1, 0.45 * sign * strength, 0),
    lambda image, strength, sign: _affine(image, 0, 0, 1, 0, 0.45 * sign * strength),
)
