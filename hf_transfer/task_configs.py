"""Tasks as a recipe names them: which columns are read, and how."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from hf_transfer.checked import Fraction, Given, NonNegative, Probability, config
from hf_transfer.errors import did_you_mean, listed

DOCUMENT = "document"
"""Role of every task, optional: rows of one document are no independent draws."""


@config
class TextClassification:
    """One label for a text, or for a pair of texts."""

    kind: Literal["text-classification"] = "text-classification"
    text: str = "text"
    """Column that holds the text."""
    text_pair: str | None = None
    """Column that holds a second text; null = `text_pair` where the data has a column of that name, else none; "" = none."""
    label: str = "label"
    """Column that holds the label: a ClassLabel, an integer or a string."""
    max_length: Annotated[int, Field(ge=4)] = 256
    """Tokens a text (or a pair together) is cut to, special tokens included."""
    keep: Literal["head", "tail", "both"] = "head"
    """What stays of a longer text: its head, its tail, or both ends (a quarter head, three quarters tail, as in Sun et al. 2019)."""
    replace: dict[Given, str] = dataclasses.field(default_factory=dict)
    """What is replaced in every text, letter for letter, in training and in prediction: `{"<br />": " "}`."""

    @property
    def columns(self) -> dict[str, str]:
        """Role -> column."""
        return {"text": self.text, "label": self.label} | ({"text_pair": self.text_pair} if self.text_pair else {})

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role there is, optional ones too."""
        return ("text", "text_pair", "label", "label_name", DOCUMENT)


@config
class TokenClassification:
    """A tag for every word: named entities."""

    kind: Literal["token-classification"] = "token-classification"
    tokens: str = "tokens"
    """Column that holds the words: a list of strings."""
    ner_tags: str = "ner_tags"
    """Column that holds a tag a word: BIO, IOB1 or BIOES, as names or as integers."""
    text: str | None = None
    """Column that holds plain text, for data with spans instead of words; null = `text` where the data has no words."""
    spans: str | None = None
    """Column that holds its entities: a list of `{"start", "end", "label"}`, in characters."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of a window, special tokens included. A longer row is read in several that overlap by half: no word is lost."""
    loss_per: Literal["word", "row"] = "word"
    """What counts the same in the loss: every word, or every row, so that a long document does not drown the others."""

    @property
    def columns(self) -> dict[str, str]:
        """Role -> column."""
        if self.text is not None and self.spans is not None:
            return {"text": self.text, "spans": self.spans}
        return {"tokens": self.tokens, "ner_tags": self.ner_tags}

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role there is."""
        return ("tokens", "ner_tags", "text", "spans", DOCUMENT)

    def __post_init__(self) -> None:
        if (self.text is None) != (self.spans is None):
            raise ValueError("text and spans belong together: name both columns, or neither for data with tokens and ner_tags")


@config
class Augmentation:
    """How a training image is changed each time it is read, in this order; every draw is a function of (seed, epoch, row id)."""

    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least share of the area a random crop keeps, resized to the model's size (Szegedy et al. 2015, section 6); 1 = no crop."""
    flip: Probability = 0.0
    """Probability of a mirror image, left and right."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Most degrees to either side."""
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    """Most degrees to either side."""
    zoom: Fraction = 0.0
    """Most that the scale differs from 1."""
    shift: Fraction = 0.0
    """Most shares of the width and of the height to either side."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Most that brightness, contrast and saturation differ from 1."""
    randaugment_ops: Annotated[int, Field(ge=0, le=14)] = 0
    """Operations of RandAugment an image gets (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719)."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """How strong they are, of 30."""
    erasing: Probability = 0.0
    """Probability that a rectangle is filled with noise (Zhong et al. 2017, https://arxiv.org/abs/1708.04896)."""
    mixup: NonNegative = 0.0
    """Alpha of the Beta that blends two images and their labels (Zhang et al. 2017, https://arxiv.org/abs/1710.09412); 0 = never."""
    cutmix: NonNegative = 0.0
    """Alpha of the Beta that pastes a rectangle of another image (Yun et al. 2019, https://arxiv.org/abs/1905.04899); 0 = never. With
    mixup, each image draws one of the two."""


AUGMENTATIONS: dict[str, dict[str, float]] = {
    "none": {},
    "photos": {"crop_scale": 0.5, "flip": 0.5, "color_jitter": 0.2},
    "digits": {"rotation": 10, "shear": 5, "zoom": 0.1, "shift": 0.08},
}
"""Name -> fields. A mirrored digit is another sign, and a crop may cut a 7 to a 1; a photo of a cat is one from either side."""


def _augmentation(value: Any) -> Any:
    """Give the fields an augmentation's name stands for."""
    if not isinstance(value, str):
        return value
    if value not in AUGMENTATIONS:
        raise ValueError(
            f"no augmentation '{value}', there are {listed(AUGMENTATIONS)}, or give its fields{did_you_mean(value, AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[value]


@config
class ImageClassification:
    """One label for an image."""

    kind: Literal["image-classification"] = "image-classification"
    image: str = "image"
    """Column that holds the image: encoded as in a file (PNG, JPEG, ...), or the path of a file in the table's own folder or below."""
    label: str = "label"
    """Column that holds the label: a ClassLabel, an integer or a string."""
    augmentation: Annotated[Augmentation, BeforeValidator(_augmentation)] = dataclasses.field(default_factory=Augmentation)
    """What training images go through: "none", "photos", "digits", or fields of one's own. Arms say whether (`augment`)."""

    @property
    def columns(self) -> dict[str, str]:
        """Role -> column."""
        return {"image": self.image, "label": self.label}

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role there is."""
        return ("image", "label", "label_name", DOCUMENT)


TASKS: dict[str, type[Any]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "image-classification": ImageClassification,
}
"""Kind -> task config."""


def _kind_of(value: Any) -> str:
    """Give the kind of a task config, or of the mapping that should become one; without a kind, text classification."""
    kind = value.get("kind", "text-classification") if isinstance(value, dict) else getattr(value, "kind", "text-classification")
    return kind if isinstance(kind, str) and kind in TASKS else "unknown"


Task = Annotated[
    Annotated[TextClassification, Tag("text-classification")]
    | Annotated[TokenClassification, Tag("token-classification")]
    | Annotated[ImageClassification, Tag("image-classification")],
    Discriminator(_kind_of),
]
"""Any task config, told apart by `kind`."""


def task_from_dict(values: Mapping[str, Any]) -> Any:
    """Build the task config that a mapping holds: what `dataclasses.asdict` gave, newer or older."""
    return TASKS[_kind_of(dict(values))](**values)
