"""scikit-learn's handwritten digits, as images: 1,797 real scans of 8 x 8 pixels that come with an ordinary dependency."""

from io import BytesIO

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

TEST_ROWS = 360


def read_digits() -> dict[str, Dataset]:
    """Give the digits' first 1,437 scans as train and the last 360 as test: `image` (a grey PNG) and `label` ("0" to "9").

    They stand writer by writer (13 writers), so a shuffled split would test on writers that training has seen; cut in order, at most one
    writer stands on both sides.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(name) for name in digits.target_names])})
    images = [{"bytes": _png(image), "path": None} for image in pixels]
    whole = Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)
    num_train = len(whole) - TEST_ROWS
    return {"train": whole.select(range(num_train)), "test": whole.select(range(num_train, len(whole)))}


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
