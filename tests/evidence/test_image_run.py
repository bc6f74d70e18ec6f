"""Images end to end: the same weights whoever reads them, the textbook case, batch norms, chains."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.nn import functional

import hf_transfer as ht
from hf_transfer.disk import read_json
from hf_transfer.errors import ConfigError
from hf_transfer.evidence.arms import build_arm
from hf_transfer.evidence.study import prepare_study
from hf_transfer.models.checkpoint import is_adapter
from hf_transfer.models.saved import open_base
from hf_transfer.tasks import image_classification
from hf_transfer.training.batches import Batches, read_update
from hf_transfer.training.plan import UpdatePlan
from tests.conftest import make_photos, make_rows, save_tiny_bert, save_tiny_resnet, save_tiny_vit, write_csv

EVERY_AUGMENTATION = ht.Augmentation(
    crop_scale=0.4,
    flip=0.5,
    rotation=20,
    shear=10,
    zoom=0.1,
    shift=0.1,
    color_jitter=0.3,
    randaugment_ops=2,
    erasing=0.5,
    mixup=0.2,
    cutmix=1,
)


def recipe_for(data: Path, checkpoint: Path, **arm: Any) -> ht.Recipe:
    settings: dict[str, Any] = {"learning_rate": 3e-3, "num_epochs": 2} | arm
    return ht.Recipe(
        name="photos",
        task=ht.ImageClassification(augmentation=EVERY_AUGMENTATION),
        data=ht.DataConfig(str(data)),
        checkpoint=str(checkpoint),
        arms={"arm": ht.Arm(**settings)},
        training=ht.TrainingConfig(batch_size=8, precision="fp32"),
    )


def weights_of(run: Path, arm: str = "arm", budget: object = "all") -> dict[str, torch.Tensor]:
    return load_file(run / arm / f"budget-{budget}" / "seed-0" / "model" / "model.safetensors")


def test_zero_one_and_two_workers_give_the_same_weights_bit_for_bit(photos_folder: Path, tiny_vit: Path, tmp_path: Path) -> None:
    recipe = recipe_for(photos_folder, tiny_vit)
    for num_workers in (0, 1, 2):
        ht.run(recipe.override({"training.num_workers": num_workers}), output_dir=tmp_path / str(num_workers))
    none, one, two = (weights_of(tmp_path / str(num_workers)) for num_workers in (0, 1, 2))
    assert all(torch.equal(none[name], one[name]) and torch.equal(none[name], two[name]) for name in none)
    result = read_json(tmp_path / "2" / "arm/budget-all/seed-0/result.json")
    assert 0 <= result["cost"]["wait_seconds"] < result["cost"]["train_seconds"]
    other = recipe.override({"task.augmentation": "none"})
    ht.run(other, output_dir=tmp_path / "plain")
    assert not torch.equal(weights_of(tmp_path / "plain")["classifier.weight"], none["classifier.weight"])


def test_augmentation_is_off_for_head_and_top_unless_an_arm_asks_for_it(photos_folder: Path, tiny_vit: Path, tmp_path: Path) -> None:
    recipe = recipe_for(photos_folder, tiny_vit, tuning="head", num_epochs=1)
    ht.run(recipe, output_dir=tmp_path / "default")
    ht.run(recipe.override({"arms.arm.augment": False}), output_dir=tmp_path / "off")
    ht.run(recipe.override({"arms.arm.augment": True}), output_dir=tmp_path / "on")
    default, off, on = (weights_of(tmp_path / name)["classifier.weight"] for name in ("default", "off", "on"))
    assert torch.equal(default, off)
    assert not torch.equal(default, on)


def test_the_loss_of_mixed_images_is_that_of_both_their_labels(photos_folder: Path, tiny_vit: Path) -> None:
    """Read in three micro-batches, and by a loop that knows nothing of them."""
    recipe = recipe_for(photos_folder, tiny_vit).override({"training.micro_batch_tokens": 48})
    study = prepare_study(recipe, ["arm"], ["all"], [0], Accelerator(cpu=True))
    rows = study.train.take(np.arange(24))
    augment = image_classification.augmenter(study.architecture.checkpoint.processor, study.recipe.task)
    plan = UpdatePlan(rows.layout.lengths, np.ones(24), batch_size=8, num_epochs=2, max_tokens=48, seed=5)
    batches = Batches(
        rows.layout, rows.labels, np.ones(24, np.float32), study.collate, study.task.item_logits, rows.examples.row_ids, augment
    )
    model = build_arm(study.architecture, study.recipe.arms["arm"], 0, None).eval()
    read = read_update(4, plan, batches, 0)
    assert [len(one.micro_batch.windows) for one in read] == [3, 3, 2]
    found = {}
    for one in read:
        assert one.shares is not None and one.partners is not None
        with torch.no_grad():
            logits = model(**one.arguments).logits
        losses = [functional.cross_entropy(logits, labels, reduction="none") for labels in (one.labels, one.partners)]
        mixed = one.shares * losses[0] + (1 - one.shares) * losses[1]
        found |= dict(zip(one.micro_batch.windows.tolist(), mixed.tolist(), strict=True))
    whole = read_update(4, UpdatePlan(rows.layout.lengths, np.ones(24), batch_size=8, num_epochs=2, max_tokens=None, seed=5), batches, 0)
    assert len(whole) == 1 and whole[0].shares is not None and whole[0].partners is not None
    assert 0 < whole[0].shares.min() < whole[0].shares.max() <= 1
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(**whole[0].arguments).logits, 1)
    target = whole[0].shares[:, None] * functional.one_hot(whole[0].labels, 3)
    target = target + (1 - whole[0].shares[:, None]) * functional.one_hot(whole[0].partners, 3)
    expected = dict(zip(whole[0].micro_batch.windows.tolist(), (-(target * log_probabilities).sum(1)).tolist(), strict=True))
    assert found == {row: pytest.approx(loss, abs=1e-5) for row, loss in expected.items()}


@pytest.fixture(scope="module")
def trained_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small CNN with batch norms on three shapes, from nothing; give its `model/` folder."""
    folder = tmp_path_factory.mktemp("source")
    data = make_photos(folder / "data", 160, ("disc", "checks", "stripes"), seed=7)
    recipe = recipe_for(data, save_tiny_resnet(folder / "resnet"), init="scratch", num_epochs=6, learning_rate=1e-2)
    recipe = recipe.override({"task.augmentation": "photos", "training.batch_size": 16})
    comparison = ht.run(recipe, output_dir=folder / "run")
    assert comparison.values["arms"][0]["mean"] > 0.6
    statistics = {name: value for name, value in weights_of(folder / "run").items() if name.endswith("running_mean")}
    assert statistics and not any((value == 0).all() for value in statistics.values()), "trainable batch norms follow their input"
    return folder / "run" / "arm/budget-all/seed-0/model"


def test_the_textbook_case_a_frozen_cnn_a_new_head_augmentation_and_early_stopping(trained_cnn: Path, tmp_path: Path) -> None:
    """Discs or rings: a CNN that was trained on other photos, frozen, under a new head; the best state is restored."""
    data = make_photos(tmp_path / "photos", 340, ("disc", "ring"), seed=3)
    recipe = recipe_for(data, trained_cnn, tuning="head", augment=True, learning_rate=0.03, num_epochs=60).override(
        {"task.augmentation": "photos", "training.early_stopping_patience": 3, "training.schedule": "constant"}
    )
    comparison = ht.run(recipe, output_dir=tmp_path / "run")
    result = read_json(tmp_path / "run/arm/budget-all/seed-0/result.json")
    assert result["stopped"] == "early"
    losses = [entry["validation"]["loss"] for entry in result["history"]]
    assert len(losses) < 60
    assert result["best_epoch"] == len(losses) - 3
    assert result["metrics"]["validation"]["loss"] == pytest.approx(min(losses), abs=1e-6), "the best state was restored"
    before, after = load_file(trained_cnn / "model.safetensors"), weights_of(tmp_path / "run")
    moved = {name for name in after if not torch.equal(after[name], before.get(name, torch.zeros(0)))}
    assert moved == {"classifier.1.weight", "classifier.1.bias"}, "the backbone and its batch-norm statistics are frozen"
    assert result["metrics"]["test"]["accuracy"] > 0.8
    photo = next((data / "disc").iterdir())
    answer = comparison.best().predict([photo, photo.read_bytes()])
    assert set(answer[0]["probabilities"]) == {"disc", "ring"}
    assert answer[0] == answer[1]
    assert [link["dataset"] for link in result["chain"]] == ["data", "photos"]
    assert [link["arm"] for link in result["chain"]] == ["arm", "arm"]
    assert result["chain"][0]["checkpoint"] is None, "the first link began from nothing"


def prepared(data: Path, checkpoint: Path, accelerator: Any, **changes: Any) -> Any:
    recipe = recipe_for(data, checkpoint).override({f"training.{name}": value for name, value in changes.items()})
    return prepare_study(recipe, ["arm"], ["all"], [0], accelerator)


class TwoProcesses:
    """What is asked of an Accelerator before any training, on two CPU processes."""

    num_processes, mixed_precision, device, is_fsdp2 = 2, "no", torch.device("cpu"), False


def test_batch_norms_that_train_take_an_update_as_one_micro_batch(photos_folder: Path, tmp_path: Path) -> None:
    resnet = save_tiny_resnet(tmp_path / "resnet")
    study = prepared(photos_folder, resnet, Accelerator(cpu=True), batch_size=64, micro_batch_tokens=64)
    assert study.notices == [
        "arm arm trains batch norms: each update is one micro-batch, whatever micro_batch_tokens says",
        "training images are augmented for arm",
    ]
    assert study.max_tokens == 64, "another arm is cut as without this one"
    with pytest.raises(ConfigError, match="need 2 rows a process: take a batch_size of 2 or more, found 1"):
        prepared(photos_folder, resnet, Accelerator(cpu=True), batch_size=1)
    with pytest.raises(ConfigError, match="cannot synchronise over 2 CPU processes: run one, or leave the arm out"):
        prepared(photos_folder, resnet, TwoProcesses())


def test_the_micro_batch_changes_nothing_where_batch_norms_train(photos_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(photos_folder, save_tiny_resnet(tmp_path / "resnet"), num_epochs=1)
    for tokens in (4, 400):
        ht.run(recipe.override({"training.micro_batch_tokens": tokens}), output_dir=tmp_path / str(tokens))
    small, large = (weights_of(tmp_path / str(tokens)) for tokens in (4, 400))
    assert all(torch.equal(small[name], large[name]) for name in small)


@pytest.mark.parametrize(("num_rows", "batch_size", "sizes"), [(17, 8, [8, 9]), (18, 8, [8, 8, 2]), (3, 8, [3]), (16, 8, [8, 8])])
def test_an_epoch_leaves_no_row_alone(num_rows: int, batch_size: int, sizes: list[int]) -> None:
    plan = UpdatePlan(np.full(num_rows, 4), np.ones(num_rows), batch_size, num_epochs=2, max_tokens=None, seed=0, least_rows=2)
    assert [len(plan.rows_of(update)) for update in range(plan.num_updates)] == sizes * 2
    for epoch in range(2):
        first = epoch * plan.updates_per_epoch
        rows = np.concatenate([plan.rows_of(first + update) for update in range(plan.updates_per_epoch)])
        assert sorted(rows) == list(range(num_rows))
    assert all(len(plan.micro_batches(update, 0)) == 1 for update in range(plan.num_updates))


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_any_arm_is_a_checkpoint_for_the_next_run(kind: str, tmp_path: Path) -> None:
    """Three links: a LoRA arm on a LoRA arm on a full one; new labels get a new head, the same ones keep it."""
    if kind == "images":
        base = save_tiny_vit(tmp_path / "base")
        data = [make_photos(tmp_path / name, 60, kinds, seed) for seed, (name, kinds) in enumerate(PHOTOS.items())]
        recipe = recipe_for(data[0], base, num_epochs=1).override({"task.augmentation": "none"})
    else:
        base = save_tiny_bert(tmp_path / "base")
        data = [write_csv(tmp_path / f"{name}.csv", make_rows(60, seed, topics)) for seed, (name, topics) in enumerate(TOPICS.items())]
        recipe = recipe_for(data[0], base, num_epochs=1)
        recipe = ht.Recipe("texts", ht.TextClassification(max_length=16), recipe.data, str(base), recipe.arms, recipe.training)
    lora = {"arms.arm": {"tuning": "lora", "learning_rate": 1e-2, "num_epochs": 1}}
    ht.run(recipe, output_dir=tmp_path / "first")
    second = recipe.override({"data.source": str(data[1]), "checkpoint": str(tmp_path / "first/arm/budget-all/seed-0/model"), **lora})
    ht.run(second, output_dir=tmp_path / "second")
    third = recipe.override({"data.source": str(data[1]), "checkpoint": str(tmp_path / "second"), **lora})
    ht.run(third, output_dir=tmp_path / "third")

    model = tmp_path / "third/arm/budget-all/seed-0/model"
    chain = read_json(model / "hf_transfer.json")["chain"]
    assert chain == read_json(model.parent / "result.json")["chain"]
    assert [(link["tuning"], link["num_labels"], link["dataset"]) for link in chain] == [
        ("full", 2, data[0].name),
        ("lora", 3, data[1].name),
        ("lora", 3, data[1].name),
    ]
    assert [link["checkpoint"] for link in chain] == ["base", "first-arm-budget-all-seed-0", "second-arm-budget-all-seed-0"]
    assert str(tmp_path) not in json.dumps(chain)

    loaded = ht.load(model)
    inputs: list[Any] = [make_photos(tmp_path / "new", 2, ("ring", "checks"), 9) / "ring" / "0.jpg"] if kind == "images" else ["an anchor"]
    assert loaded.predict(inputs) == ht.load(model).predict(inputs)
    checkpoint = open_base(str(model), lambda folder, name, config: None)
    assert checkpoint.origin == model
    assert checkpoint.config.id2label == dict(enumerate(loaded.labels))
    found = {"architecture": checkpoint.config.model_type, "adapter": is_adapter(checkpoint.folder)}
    assert found == {"architecture": "vit" if kind == "images" else "bert", "adapter": False}
    expected, answers = (
        [answer["probabilities"] for answer in one.predict(inputs, precision="fp32")] for one in (loaded, ht.load(checkpoint.folder))
    )
    assert answers == [pytest.approx(one, abs=1e-6) for one in expected]


def test_a_chain_that_was_moved_together_is_still_found(tmp_path: Path) -> None:
    base, data = save_tiny_vit(tmp_path / "base"), make_photos(tmp_path / "data", 40)
    lora = {"arms.arm": {"tuning": "lora", "learning_rate": 1e-2, "num_epochs": 1}}
    first = recipe_for(data, base, num_epochs=1)
    ht.run(first, output_dir=tmp_path / "runs" / "first")
    second = first.override({"checkpoint": str(tmp_path / "runs" / "first"), **lora})
    ht.run(second, output_dir=tmp_path / "runs" / "second")
    photo = next((data / "disc").iterdir())
    expected = ht.load(tmp_path / "runs" / "second").predict([photo])
    half = tmp_path / "runs" / "broken" / "arm/budget-all/seed-0/model"
    half.mkdir(parents=True)
    (half / "adapter_config.json").touch()
    (half / "hf_transfer.json").touch()
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    model = ht.load(tmp_path / "elsewhere" / "second")
    assert model.predict([photo]) == expected
    assert repr(model) == "Model(image-classification, disc, stripes, arm on data)"
    shutil.rmtree(tmp_path / "elsewhere" / "first")
    with pytest.raises(ht.TransferError, match="it was trained on first-arm-budget-all-seed-0 .* move that run beside this one, or"):
        ht.load(tmp_path / "elsewhere" / "second")


def test_a_run_says_what_it_starts_from_and_whether_it_keeps_the_output_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data = save_tiny_vit(tmp_path / "base"), make_photos(tmp_path / "data", 40)
    other = make_photos(tmp_path / "other", 40, ("disc", "ring"), seed=4)
    first = recipe_for(data, base, tuning="head", num_epochs=1)
    ht.run(first, output_dir=tmp_path / "first")
    assert "trained before" not in capsys.readouterr().err
    for source, kept in ((data, True), (other, False)):
        second = first.override({"data.source": str(source), "checkpoint": str(tmp_path / "first")})
        ht.run(second, output_dir=tmp_path / f"second-{kept}")
        told = capsys.readouterr().err
        assert "note: the checkpoint was trained before: arm on data (26 rows)" in told
        assert ("note: the checkpoint's labels are the data's: its output layer is kept, but for scratch" in told) is kept
        assert "note: training images are not augmented for arm (arms.arm.augment)" in told
    with pytest.raises(ht.TransferError, match="is a part of a run: give the whole run, or one model of it .*budget-all/seed-0/model"):
        ht.run(first.override({"checkpoint": str(tmp_path / "first" / "arm")}), output_dir=tmp_path / "third")


def test_an_adapter_trained_anew_in_its_old_place_is_merged_anew(photos_folder: Path, tiny_vit: Path, tmp_path: Path) -> None:
    recipe = recipe_for(photos_folder, tiny_vit, tuning="lora", num_epochs=1)
    opened = []
    for rate in (1e-3, 1e-2):
        ht.run(recipe.override({"arms.arm.learning_rate": rate}), output_dir=tmp_path / "run")
        checkpoint = open_base(str(tmp_path / "run"), image_classification.load_processor)
        opened.append((checkpoint.sha256, load_file(checkpoint.folder / "model.safetensors")["classifier.weight"]))
        shutil.rmtree(tmp_path / "run")
    assert opened[0][0] != opened[1][0]
    assert not torch.equal(opened[0][1], opened[1][1])


PHOTOS = {"two": ("disc", "stripes"), "three": ("disc", "ring", "checks")}
TOPICS = {"two": ("boats", "bread"), "three": ("boats", "bread", "chess")}


def test_a_chain_that_cannot_be_followed_says_what_is_missing(photos_folder: Path, tmp_path: Path) -> None:
    base = save_tiny_vit(tmp_path / "base")
    recipe = recipe_for(photos_folder, base, tuning="lora", num_epochs=1)
    ht.run(recipe, output_dir=tmp_path / "first")
    base.rename(tmp_path / "elsewhere")
    again = recipe.override({"checkpoint": str(tmp_path / "first/arm/budget-all/seed-0/model")})
    with pytest.raises(ht.TransferError, match="cannot find the base of adapter .*it was trained on base"):
        ht.run(again, output_dir=tmp_path / "second")
    assert not (tmp_path / "second").exists()
