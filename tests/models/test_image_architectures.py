"""Every tuning on every kind of image backbone: what trains, what moves, the same model in a fresh process, merged, and cut into blocks."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    DeiTConfig,
    Dinov2Config,
    MobileNetV2Config,
    MobileNetV2ImageProcessorPil,
    MobileViTConfig,
    PretrainedConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

import hf_transfer as ht
from hf_transfer.disk import write_text
from hf_transfer.errors import CheckpointError, ConfigError
from hf_transfer.evidence.arms import build_arm, check_arm
from hf_transfer.evidence.study import check_reading
from hf_transfer.files import MODEL_FOLDER, RECIPE_FILE, cell_folder
from hf_transfer.models.build import Architecture, build_model, inspect, quiet_loading
from hf_transfer.models.checkpoint import is_adapter, open_checkpoint
from hf_transfer.models.saved import Sidecar, open_base, save_model
from hf_transfer.models.tuning import depths_of, find_blocks, freeze_unused, plain_name, set_training_mode
from hf_transfer.tasks import image_classification as images
from hf_transfer.tasks.items import Layout, item_losses, lay_out
from tests.conftest import save_tiny_bert
from tests.models.test_architectures import RELOAD, TUNINGS, logits_of

SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
# Where stages hold blocks, one holds more of them than there are stages.
CONFIGS: dict[str, PretrainedConfig] = {
    "vit": ViTConfig(**SHAPE, intermediate_size=32),
    "deit": DeiTConfig(**SHAPE, intermediate_size=32),
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[2, 4], num_heads=[2, 2], window_size=4),
    "dinov2": Dinov2Config(**SHAPE, mlp_ratio=2),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 3], num_stages=2, layer_scale_init_value=1.0),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 3], layer_type="basic"),
    "mobilenet_v2": MobileNetV2Config(image_size=32, depth_multiplier=0.1, output_stride=8, expand_ratio=2),
}
# The last two crop what they have resized, as those checkpoints' own do.
SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, Any] = dict.fromkeys(CONFIGS, ViTImageProcessorPil(size=SQUARE)) | {
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    "resnet": ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    "mobilenet_v2": MobileNetV2ImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE),
}
# The name that blocks share, and how many there are.
BLOCKS = {
    "vit": ("vit.layers", 2),
    "deit": ("deit.layers", 2),
    "swin": ("swin.encoder.layers", 2),
    "dinov2": ("dinov2.encoder.layer", 2),
    "convnext": ("convnext.encoder.stages", 2),
    "resnet": ("resnet.encoder.stages", 2),
    "mobilenet_v2": ("mobilenet_v2.layer", 16),
}
CONVOLUTIONAL = ("resnet", "mobilenet_v2")
CASES = [(name, tuning) for name in CONFIGS for tuning in TUNINGS]
TASK = ht.ImageClassification()
LABELS = ["cats", "dogs", "newts"]


def encoded(task: Any, processor: Any) -> Layout:
    """Encode a few images of noise, of several sizes; the fresh process calls it, too."""
    rng = np.random.default_rng(3)
    noise = [Image.fromarray(rng.integers(0, 256, (40 + 5 * index, 44, 3), dtype=np.uint8)) for index in range(6)]
    return lay_out(images.encode(processor, images.to_inputs(noise, task), task))


def look_at(folder: Path) -> Architecture:
    return inspect(open_checkpoint(str(folder), images.load_processor), images.AUTO_MODEL, LABELS)


def arm_of(tuning: str, **settings: Any) -> ht.Arm:
    return ht.Arm(tuning=tuning, learning_rate=1e-3, num_epochs=1, **(TUNINGS[tuning] | settings))


def build(architecture: Architecture, tuning: str) -> Any:
    return build_arm(architecture, arm_of(tuning), 0, images.PEFT_TASK_TYPE)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy every parameter and buffer, those that are not saved, too."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def norm_buffers(model: nn.Module) -> set[str]:
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return {f"{name}.{key}" for name in norms for key in ("running_mean", "running_var", "num_batches_tracked")}


@dataclass(frozen=True)
class Trained:
    """What training one case found; buffers, too, among what moved."""

    model: nn.Module
    trainable: set[str]
    unused: list[str]
    moved: set[str]
    logits: np.ndarray
    folder: Path
    base: str


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Architecture]:
    """Give a checkpoint of each backbone alone, as pretraining leaves it, with an image processor of its kind, and three labels."""
    root, found = tmp_path_factory.mktemp("images"), {}
    for name, config in CONFIGS.items():
        torch.manual_seed(5)
        with quiet_loading(), torch.no_grad():
            model = AutoModel.from_config(config)
            # Gives batch norms the statistics of images: with those of a new one MobileNetV2's features are all 0.
            model(torch.randn(16, 3, 32, 32))
            model.save_pretrained(root / name)
        PROCESSORS[name].save_pretrained(root / name)
        found[name] = look_at(root / name)
    return found


@pytest.fixture(scope="module")
def trained(architectures: dict[str, Architecture], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Trained]:
    """Train every case for three updates and save it where a run would: an adapter finds its base by the run's recipe."""
    root = tmp_path_factory.mktemp("trained")
    cases = {}
    for name, tuning in CASES:
        folder = cell_folder(root / name, tuning, "all", 0)
        folder.mkdir(parents=True)
        write_text(root / name / RECIPE_FILE, f"checkpoint: {architectures[name].checkpoint.name}\n")
        cases[name, tuning] = train_case(architectures[name], tuning, folder / MODEL_FOLDER)
    return cases


def train_case(architecture: Architecture, tuning: str, folder: Path) -> Trained:
    checkpoint = architecture.checkpoint
    check_arm(architecture, arm_of(tuning), ht.TrainingConfig(), images.PEFT_TASK_TYPE)
    model = build(architecture, tuning)
    before = state_of(model)
    layout = encoded(TASK, checkpoint.processor)
    arguments = images.collate(layout.windows, checkpoint.processor)
    unused = freeze_unused(model, images.collate(layout.windows[:1], checkpoint.processor))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    set_training_mode(model)
    # Without decay only a gradient moves anything; the rate keeps logits of the order of 1, where 1e-6 is above fp32's rounding.
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3, weight_decay=0)
    labels = torch.arange(layout.num_items) % len(LABELS)
    for _ in range(3):
        logits = images.item_logits(model(**arguments).logits, layout.windows)
        item_losses(logits, labels[np.concatenate(layout.items)]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in state_of(model).items() if not torch.equal(tensor, before[name])}
    sidecar = Sidecar(dataclasses.asdict(TASK), LABELS, checkpoint.base_id, checkpoint.revision, checkpoint.sha256)
    save_model(model, checkpoint.processor, sidecar, folder)
    return Trained(model, trainable, unused, moved, logits_of(model, TASK, layout, checkpoint.processor), folder, checkpoint.name)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_is_the_output_layer(architectures: dict[str, Architecture], name: str) -> None:
    layer = "classifier.1" if name == "resnet" else "classifier"
    assert architectures[name].output_layer == architectures[name].head == {f"{layer}.weight", f"{layer}.bias"}


@pytest.mark.parametrize(("name", "tuning"), CASES)
def test_only_what_should_train_trains_and_moves(
    architectures: dict[str, Architecture], trained: dict[Any, Trained], name: str, tuning: str
) -> None:
    case, head = trained[name, tuning], architectures[name].head
    every = {key for key, _ in case.model.named_parameters()}
    adapters = {key for key in every if ".lora_" in key}
    prefix, number = BLOCKS[name]
    last_block = {key for key in every if key.startswith(f"{prefix}.{number - 1}.")}
    mask = ["dinov2.embeddings.mask_token"] if (name, tuning) == ("dinov2", "full") else []
    expected = {"full": every - set(mask), "head": head, "top": head | last_block, "lora": head}[tuning]
    assert case.unused == mask
    assert adapters <= case.trainable
    assert bool(adapters) == (tuning == "lora")
    assert sorted(plain_name(key) for key in case.trainable - adapters) == sorted(expected)
    assert last_block or tuning == "lora"
    # Whatever else there is, the batch norms' own count of batches too, is bit-equal.
    assert case.moved == case.trainable | {key for key in norm_buffers(case.model) if f"{key.rpartition('.')[0]}.weight" in case.trainable}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_batch_norms_move_only_where_they_train(trained: dict[Any, Trained], name: str) -> None:
    moved = {tuning: norm_buffers(trained[name, tuning].model) & trained[name, tuning].moved for tuning in TUNINGS}
    assert moved["head"] == moved["lora"] == set()
    assert moved["full"] == norm_buffers(trained[name, "full"].model) > moved["top"] > set()


def test_a_fresh_process_gives_the_same_logits_and_label_names(trained: dict[Any, Trained]) -> None:
    folders = [(str(case.folder), case.base if tuning == "lora" else None) for (_, tuning), case in trained.items()]
    done = subprocess.run(
        [sys.executable, "-c", RELOAD.replace("test_architectures", "test_image_architectures"), json.dumps(folders)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(CASES)
    for key, case in trained.items():
        reloaded = found[str(case.folder)]
        assert np.abs(np.array(reloaded["logits"]) - case.logits).max() < 1e-6, key
        assert reloaded["labels"] == reloaded["config"] == LABELS


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_starts_as_the_base_model(architectures: dict[str, Architecture], name: str) -> None:
    architecture = architectures[name]
    processor = architecture.checkpoint.processor
    layout = encoded(TASK, processor)
    adapted = logits_of(build(architecture, "lora"), TASK, layout, processor)
    assert np.abs(adapted - logits_of(build_model(architecture, "pretrained", 0), TASK, layout, processor)).max() < 1e-6


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_lora_adapts_every_ungrouped_convolution_and_no_other(trained: dict[Any, Trained], name: str) -> None:
    modules = dict(trained[name, "full"].model.named_modules())
    convolutions = {key: module.groups for key, module in modules.items() if isinstance(module, nn.Conv2d)}
    adapted = {plain_name(key).partition(".lora_")[0] for key in trained[name, "lora"].trainable if ".lora_" in key}
    assert adapted == {key for key, groups in convolutions.items() if groups == 1}
    assert any(groups > 1 for groups in convolutions.values()) == (name == "mobilenet_v2")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_merged_adapter_is_a_checkpoint_of_its_own(
    architectures: dict[str, Architecture], trained: dict[Any, Trained], name: str
) -> None:
    case, architecture = trained[name, "lora"], architectures[name]
    checkpoint = open_base(str(case.folder), images.load_processor)
    assert not is_adapter(checkpoint.folder)
    merged = build_model(inspect(checkpoint, images.AUTO_MODEL, LABELS), "pretrained", seed=0)
    found = logits_of(merged, TASK, encoded(TASK, checkpoint.processor), checkpoint.processor)
    assert np.abs(found - case.logits).max() < 1e-5
    before, after = (state_of(model) for model in (build_model(architecture, "pretrained", 0), merged))
    adapted = {plain_name(key).partition(".lora_")[0] + ".weight" for key in case.trainable if ".lora_" in key}
    assert before.keys() == after.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == adapted | architecture.head
    first = checkpoint.sha256
    assert open_base(str(case.folder), images.load_processor).sha256 == first
    assert open_base(case.base, images.load_processor).sha256 != first


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_are_stages_where_there_are_stages(architectures: dict[str, Architecture], name: str) -> None:
    prefix, blocks = find_blocks(build_model(architectures[name], "scratch", 0))
    assert (prefix, len(blocks)) == BLOCKS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_more_blocks_than_there_are(architectures: dict[str, Architecture], name: str) -> None:
    prefix, number = BLOCKS[name]
    with pytest.raises(CheckpointError) as error:
        check_arm(architectures[name], arm_of("top", num_blocks=17), ht.TrainingConfig(), images.PEFT_TASK_TYPE)
    assert str(error.value) == f"tuning 'top' with 17 blocks: this architecture has {number} ({prefix})"


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_depth_rises_from_the_embeddings_to_the_head(architectures: dict[str, Architecture], name: str, tuning: str) -> None:
    head = architectures[name].head
    depths = depths_of(check_arm(architectures[name], arm_of(tuning), ht.TrainingConfig(), images.PEFT_TASK_TYPE), head)
    prefix, number = BLOCKS[name]
    for key, depth in depths.items():
        if plain_name(key).startswith(f"{prefix}."):
            assert depth == 1 + int(plain_name(key).removeprefix(f"{prefix}.").partition(".")[0]), key
        else:
            assert depth == (0 if any(part in key for part in (".embeddings.", ".embedder.", ".conv_stem.")) else number + 1), key
    assert {depths[key] for key in depths if plain_name(key) in head} == {max(depths.values())} == {number + 1}
    assert list(depths.values()) == sorted(depths.values())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_batch_norms_of_a_frozen_backbone_run_as_at_inference(architectures: dict[str, Architecture], name: str) -> None:
    model = build(architectures[name], "head").train()
    set_training_mode(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(module.training for module in norms)


def test_what_stands_before_all_that_trains_drops_nothing(architectures: dict[str, Architecture]) -> None:
    """MobileNetV2's head drops four features of five: a probe of a frozen backbone is better off without."""
    model = build(architectures["mobilenet_v2"], "head").train()
    set_training_mode(model)
    assert model.classifier.training
    assert not model.dropout.training


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("convnext", ["dwconv"], r"matches the grouped convolution .*dwconv, whose adapter could not be merged"),
        ("resnet", ["convolutoin"], r"Conv2d modules are called .*convolution.*; did you mean 'convolution'\?"),
        ("resnet", [], r"target_modules is empty: name modules \(Conv2d modules are called"),
        ("vit", ["q_prj"], r"Linear modules are called .*did you mean 'q_proj'\?"),
    ],
)
def test_a_lora_target_that_cannot_be_meant(architectures: dict[str, Architecture], name: str, targets: list[str], message: str) -> None:
    arm = ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=1, lora=ht.LoRA(target_modules=targets))
    with pytest.raises(CheckpointError, match=message):
        check_arm(architectures[name], arm, ht.TrainingConfig(), None)


def test_a_processor_of_another_size_than_the_model_is_refused(architectures: dict[str, Architecture], tmp_path: Path) -> None:
    for architecture in architectures.values():
        check_reading(architecture, TASK)
    folder = Path(shutil.copytree(architectures["vit"].checkpoint.folder, tmp_path / "vit"))
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"cannot read what its image processor gives, 48 x 48 pixels \(.*32\*32.*\): set size") as error:
        check_reading(look_at(folder), TASK)
    assert "\n" not in str(error.value)


def test_a_model_that_reads_no_images_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "bert")
    PROCESSORS["vit"].save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"model type bert\) cannot do this task: .*ImageClassification") as error:
        look_at(folder)
    assert "\n" not in str(error.value)


def test_stages_of_several_kinds_are_blocks_as_well() -> None:
    """MobileViT mixes two kinds of stages; the transformer inside one of them is no end of the network."""
    config = MobileViTConfig(hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 4, 8, 8, 12, 16, 32], num_attention_heads=2, image_size=64)
    with torch.device("meta"):
        name, blocks = find_blocks(AutoModelForImageClassification.from_config(config))
    assert (name, len(blocks)) == ("mobilevit.encoder.layer", 5)
