import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_transfer.data.augmentation import RANDAUGMENT, _affine, change_image, erase, mix, random_crop
from hf_transfer.task_configs import AUGMENTATIONS, Augmentation

SIDE = 61
MIDDLE = SIDE / 2
NEAREST = int(Image.Resampling.NEAREST)
IDENTITY, AUTOCONTRAST, EQUALIZE, ROTATE, SOLARIZE, POSTERIZE, COLOR = range(7)
CONTRAST, BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(7, 14)

SETTINGS = [
    *({field: value} for field, value in [("rotation", 30), ("shear", 20), ("zoom", 0.3), ("shift", 0.2), ("color_jitter", 0.4)]),
    {"randaugment_ops": 3, "randaugment_magnitude": 30},
    {"flip": 0.5, "rotation": 180, "shear": 89, "zoom": 0.99, "shift": 0.99, "color_jitter": 1, "randaugment_ops": 14},
    AUGMENTATIONS["photos"],
    AUGMENTATIONS["digits"],
]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(mode: str, size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    """Make a picture of smooth colours, dark ones and bright ones."""
    small = generator(seed).integers(30, 220, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def dot(x: float, y: float) -> Image.Image:
    """Put a bright spot at a place seen from the middle, in pixels to the right and down."""
    columns, rows = np.meshgrid(np.arange(SIDE) + 0.5 - MIDDLE, np.arange(SIDE) + 0.5 - MIDDLE)
    return Image.fromarray(np.round(255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)).astype(np.uint8))


def place_and_mass(image: Image.Image) -> tuple[np.ndarray, float]:
    """Give where the light's centre lies, seen from the middle, and how much light there is."""
    light = np.asarray(image, dtype=float)
    steps = np.arange(SIDE) + 0.5 - MIDDLE
    return np.array([light.sum(axis=0) @ steps, light.sum(axis=1) @ steps]) / light.sum(), light.sum()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(settings))
def test_size_and_mode_stay_and_the_generator_alone_decides(settings: dict[str, float], mode: str) -> None:
    image, config = photo(mode), Augmentation(**settings)
    before = image.tobytes()
    made = [change_image(image, config, generator(seed)) for seed in (*range(8), 3)]
    assert {(one.size, one.mode) for one in made} == {(image.size, mode)}
    assert made[3].tobytes() == made[8].tobytes()
    assert len({one.tobytes() for one in made}) > 3, "other seeds, other images"
    assert image.tobytes() == before


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("strength", [0, 9 / 30, 1])
@pytest.mark.parametrize("operation", range(14))
def test_every_randaugment_operation_keeps_size_and_mode(operation: int, strength: float, mode: str) -> None:
    image = photo(mode)
    made = {sign: RANDAUGMENT[operation](image, strength, sign) for sign in (1.0, -1.0)}
    assert {(one.size, one.mode) for one in made.values()} == {((40, 30), mode)}
    changes = any(one.tobytes() != image.tobytes() for one in made.values())
    can_change = operation != IDENTITY and not (operation == COLOR and mode == "L")
    assert changes == (can_change and (strength > 0 or operation in (AUTOCONTRAST, EQUALIZE)))
    is_signed = operation not in (AUTOCONTRAST, EQUALIZE, SOLARIZE, POSTERIZE)
    assert (made[1.0].tobytes() != made[-1.0].tobytes()) == (is_signed and can_change and strength > 0)


def test_no_augmentation_changes_nothing() -> None:
    assert len(RANDAUGMENT) == 14
    for mode, seed in itertools.product(["RGB", "L"], range(5)):
        assert change_image(photo(mode), Augmentation(), generator(seed)).tobytes() == photo(mode).tobytes()


def test_a_flip_mirrors_exactly_and_as_often_as_asked() -> None:
    image = photo("RGB")
    mirrored = ImageOps.mirror(image).tobytes()
    assert all(change_image(image, Augmentation(flip=1), generator(seed)).tobytes() == mirrored for seed in range(20))
    rng = generator()
    count = sum(change_image(image, Augmentation(flip=0.3), rng).tobytes() == mirrored for _ in range(1000))
    assert 250 < count < 350


@pytest.mark.parametrize("settings", [{"rotation": 180}, {"shear": 45}, {"zoom": 0.5}, {"rotation": 90, "shear": 30, "zoom": 0.4}])
def test_the_middle_pixel_stays(settings: dict[str, float]) -> None:
    image = photo("RGB", (SIDE, 41))
    for seed in range(20):
        made = change_image(image, Augmentation(**settings), generator(seed))
        assert np.allclose(made.getpixel((SIDE // 2, 20)), image.getpixel((SIDE // 2, 20)), atol=1)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (10, 0), (0, -9), (-7, 6)])
@pytest.mark.parametrize("angle", [0, 90, -40])
@pytest.mark.parametrize("zoom", [1, 1.5, 0.8])
@pytest.mark.parametrize("shear", [0, 0.3])
@pytest.mark.parametrize("shift", [(0, 0), (0.1, -0.05)])
def test_a_dot_lands_where_geometry_says(x: float, y: float, angle: float, zoom: float, shear: float, shift: tuple[float, float]) -> None:
    place, mass = place_and_mass(_affine(dot(x, y), math.radians(angle), shear, zoom, *shift))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = np.array([cos * x - sin * y, sin * x + cos * y])
    expected = zoom * np.array([turned[0] - shear * turned[1], turned[1]]) + SIDE * np.array(shift)
    assert np.allclose(place, expected, atol=0.15)
    assert mass == pytest.approx(zoom**2 * place_and_mass(dot(x, y))[1], rel=0.03)


def test_what_comes_in_has_the_colour_of_the_edges() -> None:
    for mode, edge in (("RGB", (10, 20, 30)), ("L", 77)):
        image = Image.new(mode, (20, 20), edge)
        image.paste("white", (8, 8, 12, 12))
        made = _affine(image, 0.5, 0.1, 0.7, 0.3, 0)
        assert {made.getpixel(corner) for corner in ((0, 0), (19, 0), (0, 19), (19, 19))} == {edge}


def test_randaugments_extremes() -> None:
    grey = photo("L")
    pixels = np.asarray(grey)
    assert np.array_equal(RANDAUGMENT[SOLARIZE](grey, 1, 1), 255 - pixels)
    assert np.array_equal(RANDAUGMENT[POSTERIZE](grey, 1, 1), pixels & 0xF0)
    assert np.allclose(RANDAUGMENT[BRIGHTNESS](grey, 1, -1), 0.1 * pixels, atol=1)
    for operation, start, end in (
        (ROTATE, (10, 0), (10 * math.cos(math.pi / 6), 5)),
        (SHEAR_X, (0, 10), (-3, 10)),
        (SHEAR_Y, (10, 0), (10, -3)),
        (TRANSLATE_X, (-10, 0), (0.45 * SIDE - 10, 0)),
        (TRANSLATE_Y, (0, -10), (0, 0.45 * SIDE - 10)),
    ):
        assert np.allclose(place_and_mass(RANDAUGMENT[operation](dot(*start), 1, 1))[0], end, atol=0.15)


@pytest.mark.parametrize("least", [0.08, 0.5, 0.9])
@pytest.mark.parametrize("size", [(200, 150), (180, 210), (250, 200)])
def test_a_random_crop_keeps_area_and_shape_in_bounds(size: tuple[int, int], least: float) -> None:
    width, height = size
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    # Where each pixel comes from is written into it.
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1))
    shares, ratios, wholes, corners = [], [], 0, set()
    rng = generator()
    for _ in range(150):
        made = random_crop(image, (256, 260), least, NEAREST, rng)
        assert (made.size, made.mode) == ((256, 260), "RGB")
        (left, right), (top, bottom) = ((int(lowest), int(highest) + 1) for lowest, highest in made.getextrema()[:2])
        if (right - left, bottom - top) == size:
            wholes += 1
            continue
        shares.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
        corners.add((left, top))
    # A side is rounded to whole pixels.
    assert min(shares) >= least - 0.01 and max(shares) <= 1
    assert min(ratios) >= 0.74 and max(ratios) <= 1.35
    assert len(corners) > 10
    if least < 0.5:
        assert min(shares) < 0.2 and min(ratios) < 0.8 and max(ratios) > 1.25 and wholes < 5


def test_erasing_fills_one_rectangle_with_noise() -> None:
    shares = []
    for seed in range(200):
        pixels = np.full((3, 100, 80), np.inf, dtype=np.float32)
        assert erase(pixels, generator(seed)) is pixels
        erased = np.isfinite(pixels)
        assert (erased == erased[0]).all(), "the same place in every channel"
        rows, columns = np.flatnonzero(erased[0].any(axis=1)), np.flatnonzero(erased[0].any(axis=0))
        assert erased[0].sum() == len(rows) * len(columns) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.28 < len(rows) / len(columns) < 3.6
        shares.append(erased[0].mean())
        assert len(np.unique(pixels[erased])) > erased.sum() / 2
    assert 0.018 < min(shares) < 0.06 and 0.28 < max(shares) < 0.335


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_mixup_is_the_convex_blend(alpha: float) -> None:
    first, other = (generator(seed).standard_normal((3, 9, 7), dtype=np.float32) for seed in (1, 2))
    shares = []
    for seed in range(200):
        mixed, share = mix(first, other, Augmentation(mixup=alpha), generator(seed))
        assert mixed.dtype == np.float32 and 0 <= share <= 1
        assert np.allclose(mixed, share * first + (1 - share) * other, atol=1e-6)
        shares.append(share)
    # Beta(a, a): the mean is 1/2, the variance 1 / (4 (2a + 1)).
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 7, 50), (3, 1, 1)])
def test_cutmix_gives_the_share_of_the_pixels_that_stay(channels: int, height: int, width: int) -> None:
    first, other = (np.full((channels, height, width), value, dtype=np.float32) for value in (1, 2))
    shares = []
    for seed in range(200):
        mixed, share = mix(first, other, Augmentation(cutmix=1.0), generator(seed))
        assert set(np.unique(mixed)) <= {1, 2} and (mixed == mixed[0]).all()
        assert share == pytest.approx((mixed[0] == 1).mean())
        shares.append(share)
    assert (first == 1).all() and (other == 2).all(), "neither is changed"
    assert min(shares) < 0.3 and max(shares) > 0.9


def test_with_both_each_image_draws_one() -> None:
    first, other = (np.full((1, 20, 20), value, dtype=np.float32) for value in (0, 1))
    mixed = [mix(first, other, Augmentation(mixup=1, cutmix=1), generator(seed))[0] for seed in range(400)]
    blended = sum(not set(np.unique(one)) <= {0, 1} for one in mixed)
    assert 160 < blended < 240
