"""Recipes: what is trained on what, as plain frozen dataclasses with a YAML round trip.

Types and ranges are checked whenever one is built, and all problems come in one `ConfigError`. The string under a field says what it
means and its unit.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag

from hf_transfer.checked import Count, Fraction, Given, NonNegative, Positive, config
from hf_transfer.errors import ConfigError, did_you_mean, first_line, listed
from hf_transfer.task_configs import AUGMENTATIONS, ImageClassification, Task, TextClassification

# Both become folders: file systems end at 255 bytes a name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
# A folder of the run folder: without a dot it cannot be one of its files.
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]

# YAML reads a label called 1 as a number.
LabelName = Annotated[str, BeforeValidator(lambda name: str(name) if isinstance(name, int) else name)]

# Told apart before they are checked, so that a mistake is named once.
ClassWeights = Annotated[
    Annotated[Literal["none", "balanced"], Tag("literal[]")] | Annotated[dict[LabelName, Positive], Tag("dict[]")],
    Discriminator(lambda value: "dict[]" if isinstance(value, dict) else "literal[]"),
]

Init = Literal["pretrained", "scratch"]
Tuning = Literal["full", "head", "lora", "top"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]


@config
class DataConfig:
    """Where labelled rows come from."""

    source: Given | None = None
    """Hub id, file (CSV, TSV, JSONL, JSON, Parquet, CoNLL), folder of train / validation / test files, folder of images in a folder a
    class (or of such folders called train, validation and test), or `embedded:NAME`."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    revision: str | None = None
    """Revision of a Hub dataset."""
    columns: dict[str, Given] = dataclasses.field(default_factory=dict)
    """Role -> column, over the task's own. `label_name` is the role of a column that names integer labels."""
    label_names: list[str] | None = None
    """Names of the classes: of integer labels by position, or all string labels there may be."""
    drop_overlap: bool = False
    """Drop training rows whose input stands in test too, letter for letter."""


@config
class LoRA:
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685); names as in `peft.LoraConfig`."""

    r: Count = 16
    lora_alpha: Positive = 32
    lora_dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
    """"all-linear" (every Linear outside the head), names of modules, or one regular expression over full names."""
    use_dora: bool = False
    use_rslora: bool = False


@config
class Arm:
    """One way of training."""

    learning_rate: Positive
    """Peak, after warmup."""
    num_epochs: Count
    init: Init = "pretrained"
    tuning: Tuning = "full"
    num_blocks: Count | None = None
    """Blocks trained by tuning "top", counted from the last."""
    lora: LoRA = dataclasses.field(default_factory=LoRA)
    keep_head: bool = False
    """Keep the checkpoint's output layer even where its label names are not the data's; for init "pretrained"."""
    weight_decay: NonNegative = 0.01
    augment: bool | None = None
    """Train on augmented images; null = with tuning full and lora, not with head and top, which have little to overfit with."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each block to the one before it, the head's being `learning_rate` (Howard & Ruder 2018, section 3.2,
    https://arxiv.org/abs/1801.06146; in this form Clark et al. 2020, https://arxiv.org/abs/2003.10555); null = one rate for all."""
    gradual_unfreezing: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the updates over which blocks begin to train, the last first, the head from the start (Howard & Ruder 2018, section 3.3,
    https://arxiv.org/abs/1801.06146); null = all from the start."""
    l2_sp: Positive | None = None
    """Decay of the backbone towards the checkpoint's weights instead of towards 0 (L2-SP, Xuhong et al. 2018,
    https://arxiv.org/abs/1802.01483), decoupled from the gradient as AdamW's; null = `weight_decay`."""

    def __post_init__(self) -> None:
        if self.l2_sp is not None and (self.init == "scratch" or self.tuning not in ("full", "top")):
            raise ValueError("l2_sp holds trained blocks near the checkpoint: it belongs to init 'pretrained' with tuning 'full' or 'top'")
        for field in ("layer_decay", "gradual_unfreezing"):
            if getattr(self, field) is not None and self.tuning == "head":
                raise ValueError(f"{field} orders the blocks that train, with tuning 'head' none does")
        if self.keep_head and self.init == "scratch":
            raise ValueError("keep_head keeps a checkpoint's output layer, an arm from scratch has none to keep")
        if self.tuning == "lora" and self.init == "scratch":
            raise ValueError("tuning 'lora' adapts a checkpoint's weights, an arm from scratch has none: take tuning 'full'")
        if (self.tuning == "top") != (self.num_blocks is not None):
            raise ValueError("num_blocks belongs to tuning 'top', which needs it (how many of the last blocks train)")


@config
class TrainingConfig:
    """How every arm of a recipe trains."""

    batch_size: Count = 16
    """Rows per update, over all processes."""
    micro_batch_tokens: Count | None = None
    """Padded tokens (of images: patches) one forward and backward may hold; null = by the device, and written to the run's recipe.yaml."""
    warmup_fraction: Fraction = 0.1
    """Share of the updates over which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warmup."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (betas 0.9, 0.999), or SGD with momentum 0.9."""
    max_grad_norm: Positive | None = 1.0
    """The gradient is scaled down to this norm; null = never."""
    dropout: Fraction | None = None
    """Probability for every dropout of the backbone and head; null = the checkpoint's own."""
    label_smoothing: Fraction = 0.0
    """Share of a label's weight that is spread over all classes (Szegedy et al. 2016, section 7)."""
    focal_gamma: NonNegative = 0.0
    """How much less a label counts the better it is predicted: its loss times (1 - p)^gamma (focal loss, Lin et al. 2017,
    https://arxiv.org/abs/1708.02002); 0 = cross-entropy."""
    class_weights: ClassWeights = "none"
    """Weight of a label's loss by its class: "balanced" = labels / (classes x labels of the class), or by label name (others 1)."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """What an epoch holds: every row once, or as many rows in all, each class the same number (rare ones repeated)."""
    early_stopping_patience: Count | None = None
    """Epochs without a better validation loss before an arm stops; null = run all epochs."""
    num_workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes beside each training process that read its input ahead; null = none for texts, for images by the number of cores. The
    trained weights do not depend on it."""
    activation_checkpointing: bool = False
    """Keep only what enters each block for the backward, and compute the rest again there: less memory, about a third more time."""
    compile: bool = False
    """Compile the blocks that train (torch.compile, block by block): a minute or more at the start of every arm."""
    precision: Precision = "auto"
    """"auto" = bf16 where the hardware multiplies it, else fp32."""
    save_every: Count | None = None
    """Updates from one saved state of a training to the next; null = by the clock alone."""
    save_minutes: Positive | None = 10
    """Minutes from one saved state to the next; null = by updates alone."""

    def __post_init__(self) -> None:
        if self.class_weights == "balanced" and self.sampling == "balanced":
            raise ValueError("class_weights 'balanced' and sampling 'balanced' make up for rare classes twice: take one of them")


HOW_COMPUTED = ("micro_batch_tokens", "num_workers", "activation_checkpointing", "compile", "save_every", "save_minutes")
"""Fields of `TrainingConfig` that say how an update is computed, or its state saved, not which update it is: a run may be gone on with by
others, and its results compared."""


def default_arms(kind: str = "text-classification") -> dict[str, Arm]:
    """Give the four standard arms of a kind of task, with the recipes' rates: for a small text encoder, or a ViT-base."""
    # A head of one Linear, as token and image classifiers have, takes a higher rate than one with a pooler.
    head_rate = 1e-3 if kind == "text-classification" else 5e-3
    # Images are seen anew in every epoch.
    scratch_epochs, epochs, full_rate = (30, 10, 1e-4) if kind == "image-classification" else (10, 6, 2e-4)
    return {
        "scratch": Arm(init="scratch", tuning="full", learning_rate=3e-4, num_epochs=scratch_epochs),
        "head": Arm(tuning="head", learning_rate=head_rate, num_epochs=10),
        "lora": Arm(tuning="lora", learning_rate=1e-3, num_epochs=epochs),
        "full": Arm(tuning="full", learning_rate=full_rate, num_epochs=epochs),
    }


DEFAULT_ARMS = ("scratch", "head", "lora", "full")
"""The arms a run trains where none are named; a recipe may hold more."""


@config
class Recipe:
    """A named task + data + checkpoint + arms + training settings."""

    name: Name
    task: Task = dataclasses.field(default_factory=TextClassification)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    checkpoint: Given = "answerdotai/ModernBERT-base"
    """Hub id, local folder, or `embedded:NAME`."""
    arms: dict[ArmName, Arm] = dataclasses.field(default_factory=dict)
    """Name -> arm; none = the four standard ones of the task."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not self.arms:
            object.__setattr__(self, "arms", default_arms(self.task.kind))
        mixes = isinstance(self.task, ImageClassification) and (self.task.augmentation.mixup or self.task.augmentation.cutmix)
        if mixes and self.training.class_weights != "none":
            raise ValueError("class_weights with mixup or cutmix: a mixed image has two classes; take sampling 'balanced' instead")
        roles = self.task.roles
        if unknown := [role for role in self.data.columns if role not in roles]:
            raise ValueError(f"data.columns: unknown role '{unknown[0]}', roles are {listed(roles)}{did_you_mean(unknown[0], roles)}")

    @property
    def columns(self) -> dict[str, str]:
        """Role -> column: the task's own, then what `data.columns` changes."""
        return self.task.columns | self.data.columns

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe from what `to_dict` gives, every problem raised at once as a `ConfigError`."""
        return cls(**{str(key): value for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Give nested dicts, lists and plain values: what YAML holds."""
        return dataclasses.asdict(self)

    def override(self, changes: Mapping[str, Any]) -> Self:
        """Give a copy with fields changed, named by dotted path: `{"arms.lora.lora.r": 16}`.

        Raises:
            ConfigError: A path leads nowhere, or a value cannot be meant.
        """
        values = self.to_dict()
        for path, value in changes.items():
            _set_at(values, path, value)
        return self.from_dict(values)

    def merge(self, changes: Mapping[str, Any]) -> Self:
        """Give a copy with the nested `changes` laid over it, key by key."""
        return self.from_dict(_merged(self.to_dict(), changes))


class _Dumper(yaml.SafeDumper):
    """Writes letters as they are, but for line ends that PyYAML takes for plain letters on its way out and folds on its way in."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if set(text) & set("\x85\u2028\u2029") else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Give nested plain values as YAML that reads back as they are, in their order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: The file is missing, is no YAML in UTF-8, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config file {path} is not UTF-8: save it as UTF-8") from None
    values = parse_yaml(text, f"config file {path}")
    if not isinstance(values, dict):
        raise ConfigError(
            f"config file {path} must hold a mapping of recipe fields, found {'nothing' if values is None else type(values).__name__}"
        )
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Give the value that YAML text holds.

    Args:
        text: The text.
        where: Begins the message.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"{where} is no YAML:{line} {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{where} is no YAML that can be read: lists or mappings stand too deep in each other") from None
    except Exception as error:
        # A value that is none of its tag (a date 2026-99-99, `!!bool 3`) meets whatever Python raises there.
        raise ConfigError(f"{where} is no YAML: {first_line(error)}") from None


def _set_at(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path, in place. The last key may be new: the dataclass then says whether it knows it."""
    *parents, last = path.split(".")
    here: Any = values
    for depth, key in enumerate(parents):
        if not isinstance(here, dict) or key not in here:
            known = list(here) if isinstance(here, dict) else []
            where = ".".join(parents[:depth]) or "the recipe"
            raise ConfigError(f"cannot set {path}: {where} has no '{key}', it has {listed(known) or 'no keys'}{did_you_mean(key, known)}")
        here = here[key]
    if not isinstance(here, dict):
        raise ConfigError(f"cannot set {path}: {'.'.join(parents)} is a plain value")
    # A name for some fields gives way to the fields, so that the next change may set one of them.
    is_name = last == "augmentation" and isinstance(value, str) and value in AUGMENTATIONS
    here[last] = dict(AUGMENTATIONS[value]) if is_name else value


WHOLE_MAPPINGS = ("replace", "class_weights")
"""Fields whose keys are a user's own: laid over another, they take its place, or an emptied one could not be written down."""


def _merged(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict) and key not in WHOLE_MAPPINGS
        merged[key] = _merged(merged[key], value) if both else value
    return merged
