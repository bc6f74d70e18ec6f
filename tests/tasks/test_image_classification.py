import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PretrainedConfig, ViTConfig
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data.augmentation import random_crop
from hf_transfer.data.images import Picture
from hf_transfer.errors import CheckpointError, ConfigError, DataError
from hf_transfer.task_configs import AUGMENTATIONS, Augmentation, ImageClassification
from hf_transfer.tasks import image_classification as task
from hf_transfer.tasks.image_processor import PROCESSOR_FILE, ImageProcessor, load_image_processor
from hf_transfer.tasks.items import Draw, ImageWindow

TASK = ImageClassification()
SIZE = {"height": 24, "width": 32}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViTImageProcessorPil(size=SIZE),
    "convnext": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "cropping": lambda: ViTImageProcessorPil(size={"shortest_edge": 40}, do_center_crop=True, crop_size=SIZE),
    "grey": lambda: ViTImageProcessorPil(size=SIZE, image_mean=[0.4], image_std=[0.3]),
    "mobilevit": lambda: MobileViTImageProcessorPil(size={"shortest_edge": 40}, crop_size=SIZE),
    "efficientnet": lambda: EfficientNetImageProcessorPil(size=SIZE),
}


def saved(folder: Path, processor: Any, **config: object) -> ImageProcessor:
    processor.save_pretrained(folder)
    return load_image_processor(folder, "x", ViTConfig(patch_size=8, **config))


@pytest.fixture(scope="module", params=PROCESSORS)
def processor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageProcessor:
    folder = tmp_path_factory.mktemp("processors") / request.param
    return saved(folder, PROCESSORS[request.param](), num_channels=1 if request.param == "grey" else 3)


@pytest.fixture
def vit(tmp_path: Path) -> ImageProcessor:
    return saved(tmp_path / "vit", PROCESSORS["vit"]())


def photo(seed: int, size: tuple[int, int]) -> Image.Image:
    small = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


PHOTOS = [photo(seed, size) for seed, size in enumerate([(60, 40), (33, 70), (50, 50), (24, 32), (32, 24)])]


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def windows_of(images: list[Image.Image]) -> list[ImageWindow]:
    return [ImageWindow(Picture(str(index), "", image.size, io.BytesIO(encoded(image)).getvalue), 12) for index, image in enumerate(images)]


def draws_of(images: list[Image.Image], epoch: int = 0) -> list[Draw]:
    return [Draw(window, (7, epoch, index)) for index, window in enumerate(windows_of(images))]


def changed(draws: list[Draw], partners: list[Draw], processor: ImageProcessor, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    arguments, shares = task.collate_augmented(draws, partners, processor, Augmentation(**settings))
    assert set(arguments) == {"pixel_values"} and arguments["pixel_values"].dtype == torch.float32 and shares.dtype == np.float32
    return arguments["pixel_values"].numpy(), shares


def test_collate_gives_what_the_checkpoints_own_processor_gives(processor: ImageProcessor) -> None:
    given = task.collate(windows_of(PHOTOS), processor)
    if processor.num_channels == 3:
        expected = processor.processor(PHOTOS, return_tensors="pt")["pixel_values"]
    else:
        grey = [np.asarray(image.convert("L"))[None] for image in PHOTOS]
        expected = processor.processor(grey, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert list(given) == ["pixel_values"] and given["pixel_values"].dtype == torch.float32
    assert torch.equal(given["pixel_values"], expected.float())
    assert given["pixel_values"].shape == (5, processor.num_channels, processor.height, processor.width)


def test_an_augmentation_that_does_not_strike_gives_what_collate_gives(processor: ImageProcessor) -> None:
    draws = draws_of(PHOTOS)
    plain = task.collate([draw.window for draw in draws], processor)["pixel_values"].numpy()
    pixels, shares = changed(draws, draws, processor, flip=1e-12)
    # Half a step of 8 bits, after the normalisation.
    assert np.abs(pixels - plain).max() < 0.02 and shares.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "settings",
    [
        AUGMENTATIONS["photos"],
        AUGMENTATIONS["digits"] | {"erasing": 0.7},
        {"crop_scale": 0.3, "randaugment_ops": 2, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_rows_pixels_do_not_depend_on_the_other_rows(processor: ImageProcessor, settings: dict[str, float]) -> None:
    draws = draws_of(PHOTOS)
    partners = [draws[index] for index in (3, 0, 4, 3, 1)]
    pixels, shares = changed(draws, partners, processor, **settings)
    assert pixels.shape == (5, processor.num_channels, processor.height, processor.width)
    for order in ([4, 2, 0, 1, 3], [1, 4], [2], [3]):
        some, kept = changed([draws[index] for index in order], [partners[index] for index in order], processor, **settings)
        assert np.array_equal(some, pixels[order]) and np.array_equal(kept, shares[order])
    later, _ = changed(draws_of(PHOTOS, epoch=1), draws_of(PHOTOS, epoch=1), processor, **settings)
    assert (np.abs(later - pixels).max(axis=(1, 2, 3)) > 0).sum() >= 3, "another epoch, other images"
    if "mixup" not in settings and "cutmix" not in settings:
        assert shares.tolist() == [1.0] * 5
        assert np.array_equal(changed(draws, [], processor, **settings)[0], pixels), "nobody asks for partners"


def test_shares_and_partners_fit_the_pixels(vit: ImageProcessor) -> None:
    draws = draws_of([Image.fromarray(np.random.default_rng(seed).integers(256, size=(24, 32, 3), dtype=np.uint8)) for seed in range(30)])
    partners = draws[::-1]
    single, _ = changed(draws, draws, vit, flip=0.5)
    other = single[::-1]
    blended, shares = changed(draws, partners, vit, flip=0.5, mixup=1.0)
    assert np.allclose(blended, shares[:, None, None, None] * single + (1 - shares[:, None, None, None]) * other, atol=1e-5)
    pasted, shares = changed(draws, partners, vit, flip=0.5, cutmix=1.0)
    assert ((pasted == single) | (pasted == other)).all()
    assert np.allclose((pasted == single).all(axis=1).mean(axis=(1, 2)), shares)
    assert len(set(shares.tolist())) > 20
    assert np.allclose(changed(draws, draws, vit, flip=0.5, mixup=1.0)[0], single, atol=1e-5), "mixed with itself"


def test_a_crop_is_resized_by_the_processors_filter(tmp_path: Path) -> None:
    for number in (0, 2, 3):
        processor = saved(tmp_path / str(number), ViTImageProcessorPil(size=SIZE, resample=number))
        pixels, _ = changed(draws_of(PHOTOS[:1]), [], processor, crop_scale=0.5)
        crop = random_crop(PHOTOS[0], (32, 24), 0.5, number, np.random.default_rng([7, 0, 0, 0]))
        assert np.array_equal(pixels, processor.pixels([crop], is_sized=True)), f"filter {number}"


def test_no_augmentation_needs_no_augmenter(vit: ImageProcessor) -> None:
    assert task.augmenter(vit, TASK) is task.augmenter(vit, ImageClassification(augmentation="none")) is None
    augment = task.augmenter(vit, ImageClassification(augmentation="digits"))
    assert augment is not None
    expected, _ = changed(draws_of(PHOTOS), [], vit, **AUGMENTATIONS["digits"])
    assert np.array_equal(augment(draws_of(PHOTOS), [])[0]["pixel_values"].numpy(), expected)


def test_a_row_is_one_window_of_one_item(vit: ImageProcessor) -> None:
    pictures = [window.picture for window in windows_of(PHOTOS)]
    windows = [window for (window,) in task.encode(vit, pictures, TASK)]
    assert [(window.picture, window.num_tokens, *window.items.tolist()) for window in windows] == [(picture, 12, 0) for picture in pictures]
    assert task.describe_reach(vit, PretrainedConfig()) == ", reads 32 x 24 pixels (12 patches)"
    probe = task.probe_windows(vit, TASK, 3)
    assert task.collate(probe, vit)["pixel_values"].shape == (3, 3, 24, 32) and probe[0].num_tokens == 12


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (Image.new("RGB", (6, 4), (9, 8, 7)), (9, 8, 7)),
        (Image.new("RGBA", (6, 4), (9, 8, 7, 0)), (255, 255, 255)),
        (Image.new("RGB", (6, 4), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE), (9, 8, 7)),
        (Image.open(io.BytesIO(encoded(Image.new("P", (6, 4)), transparency=0))), (255, 255, 255)),
        (Image.fromarray(np.full((4, 6), 32768, np.uint16)), (128, 128, 128)),
        (Image.new("CMYK", (6, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (6, 4), (255, 128, 128)), (255, 255, 255)),
        (Image.new("HSV", (6, 4), (0, 255, 255)), (255, 0, 0)),
    ],
    ids=["RGB", "RGBA", "P", "P with transparency", "I;16", "CMYK", "YCbCr", "HSV"],
)
def test_a_pillow_image_is_predicted_as_its_file_would_be(image: Image.Image, color: tuple[int, ...]) -> None:
    (picture,) = task.to_inputs([image], TASK)
    assert (picture.size, picture.name) == ((6, 4), "the image at position 0")
    assert picture.decode(3).getpixel((1, 1)) == color


def test_every_way_to_give_an_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded(PHOTOS[0], "JPEG", exif=exif))
    given = task.to_inputs((value for value in (str(file), file, file.read_bytes(), Image.open(file))), TASK)
    assert [picture.name for picture in given] == [str(file), str(file), "the image at position 2", "the image at position 3"]
    assert given[0] == given[1] == given[2]
    assert [picture.size for picture in given] == [(40, 60)] * 4
    assert len({picture.decode(3).tobytes() for picture in given}) == 1
    assert task.to_inputs([], TASK) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("a.png", r"predict takes a list of images, found str: predict\(\[image\]\)"),
        (b"png", "found bytes"),
        (PHOTOS[0], "found Image"),
        ([PHOTOS[0], 7], "found int at position 1"),
        ([np.zeros((4, 4, 3), np.uint8)], "found ndarray at position 0"),
        ([None], "found NoneType at position 0"),
    ],
)
def test_what_is_no_list_of_images_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task.to_inputs(values, TASK)


def test_a_given_image_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match="2 of 3 given images .*: gone.png does not exist; the image at position 2 is no image"):
        task.to_inputs(["gone.png", PHOTOS[0], b"no"], TASK)
    with pytest.raises(DataError, match="1 of 1 given images cannot be read: the image at position 0 is damaged"):
        task.to_inputs([Image.open(io.BytesIO(encoded(photo(0, (300, 300)))[:2000]))], TASK)


def test_sizes_are_measured_before_they_are_resized(vit: ImageProcessor) -> None:
    sizes = task.measure([Picture("", "", size, bytes) for size in ((10, 2000), (30, 20), (300, 4), (40, 1000))], vit, TASK)
    assert sizes == task.Sizes(median=(35, 510), smallest=(30, 20), largest=(40, 1000), read_as=(32, 24))
    text = "median 35 x 510, smallest 30 x 20, largest 40 x 1,000 pixels (of 4 rows); all are read as 32 x 24"
    assert sizes.lines(" (of 4 rows)") == [("images", text)]


def test_a_processor_is_loaded_with_what_it_gives(tmp_path: Path) -> None:
    loaded = saved(tmp_path / "a", PROCESSORS["cropping"]())
    assert (loaded.num_channels, loaded.width, loaded.height, loaded.num_patches) == (3, 32, 24, 12)
    assert load_image_processor(tmp_path / "a", "x", ViTConfig(patch_size=(4, 8))).num_patches == 24
    assert load_image_processor(tmp_path / "a", "x", PretrainedConfig()).num_patches == 2, "16 x 16 where a model knows none"
    loaded.save_pretrained(tmp_path / "b")
    again = load_image_processor(tmp_path / "b", "x", ViTConfig(patch_size=8))
    assert np.array_equal(again.pixels(PHOTOS), loaded.pixels(PHOTOS))


@pytest.mark.parametrize(
    ("processor", "num_channels", "message"),
    [
        (ViTImageProcessorPil(size={"shortest_edge": 32}), 3, r"gives images of several sizes \(43 x 32, 32 x 43\), a batch needs one"),
        (ViTImageProcessorPil(do_resize=False), 3, r"gives images of several sizes \(91 x 67, 67 x 91\)"),
        (ViTImageProcessorPil(size=SIZE), 1, "cannot read an image: mean must have 1 elements"),
        (ViTImageProcessorPil(size=SIZE, image_mean=[0.5], image_std=[0.5]), 3, "cannot read an image: mean must have 3 elements"),
        (ViTImageProcessorPil(size=SIZE, do_convert_rgb=True), 1, "checkpoint x reads images of 1 channels, its processor gives 3"),
        (ViTImageProcessorPil(size=SIZE), 4, r"checkpoint x reads images of 4 channels: 3 \(RGB\) and 1 \(grey\) are known"),
        (Siglip2ImageProcessorPil(), 3, "the image processor of checkpoint x "),
    ],
)
def test_a_processor_that_does_not_fit_is_refused(tmp_path: Path, processor: Any, num_channels: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        saved(tmp_path, processor, num_channels=num_channels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "^checkpoint x has no image processor: expected preprocessor_config.json, the folder holds config.json, other$"),
        ("{", "has no image processor that can be loaded: .* not a valid JSON"),
        ("[]", "has no image processor that can be loaded"),
        (json.dumps({"image_processor_type": "Nope"}), "has no image processor that can be loaded"),
    ],
)
def test_a_folder_without_a_processor_is_refused_in_a_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other").write_text("")
    if text is not None:
        (tmp_path / PROCESSOR_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_image_processor(tmp_path, "x", PretrainedConfig())
    assert len(str(caught.value)) < 500
