"""The card of a model: the Hub can read its head, and a person the chain it comes from."""

from pathlib import Path

import yaml

import hf_transfer as ht
from hf_transfer.publish.card import render_card
from tests.conftest import make_photos


def test_the_card_of_a_chained_model_names_every_link(tiny_vit: Path, photos_folder: Path, tmp_path: Path) -> None:
    arms = {"full": ht.Arm(learning_rate=1e-3, num_epochs=1), "lora": ht.Arm(tuning="lora", learning_rate=1e-3, num_epochs=1)}
    first = ht.Recipe("shapes", ht.ImageClassification(), ht.DataConfig(str(photos_folder)), str(tiny_vit), arms)
    ht.run(first, arms=["full"], output_dir=tmp_path / "first")
    data = make_photos(tmp_path / "more photos", 40)
    second = first.override({"data.source": str(data), "checkpoint": str(tmp_path / "first")})
    ht.run(second, arms=["full", "lora"], output_dir=tmp_path / "second")
    for arm, library in (("full", "transformers"), ("lora", "peft")):
        card = (tmp_path / "second" / arm / "budget-all/seed-0/model/README.md").read_text()
        _, head, body = card.split("---\n", 2)
        values = yaml.safe_load(head)
        assert values["library_name"] == library
        assert values["pipeline_tag"] == "image-classification"
        assert "base_model" not in values, "a local folder is nothing the Hub knows"
        assert f"| 1 | tiny-vit | {photos_folder.name} | 3 | 72 | full (full) |" in body
        assert f"| 2 | first-full-budget-all-seed-0 | more photos | 2 | 26 | {arm} ({arm}) |" in body
        assert "into 2 labels: disc, stripes" in body
        assert str(tmp_path) not in card


def test_names_of_the_hub_stand_in_the_head() -> None:
    link = {"architecture": "vit", "num_labels": 2, "arm": "full", "tuning": "full", "train_rows": 80}
    result = {
        "chain": [
            link | {"checkpoint": None, "dataset": "uoft-cs/cifar10"},
            link | {"checkpoint": "google/vit-base", "dataset": "embedded:vit"},
        ],
        "metrics": {"test": {"loss": 0.5, "loss_standard_error": None, "accuracy": 0.75}},
        "cost": {"train_seconds": 3.2, "updates": 10, "trainable_parameters": 5, "total_parameters": 7},
        "environment": {"device": "cpu"},
        "data": {"test_rows": 31},
        "seed": 0,
        "budget": 100,
    }
    card = render_card(result, {"task": {"kind": "image-classification"}, "labels": ["a", "b"]})
    values = yaml.safe_load(card.split("---\n", 2)[1])
    assert values["base_model"] == "google/vit-base"
    assert values["datasets"] == ["uoft-cs/cifar10"]
    assert values["metrics"] == ["accuracy"]
    assert "| 1 | random weights | uoft-cs/cifar10 | 2 | 80 | full (full) |" in card
    assert "| accuracy | 0.7500 |" in card
