"""The small ViT that comes with the package: what its card says of it."""

import json
from pathlib import Path

from PIL import Image

import hf_transfer as ht
from hf_transfer.models.checkpoint import find_checkpoint_folder, open_checkpoint
from hf_transfer.tasks import image_classification


def test_it_is_small_and_says_where_it_comes_from() -> None:
    folder = find_checkpoint_folder("embedded:vit-cifar10")
    assert (folder / "model.safetensors").stat().st_size <= 6_000_000
    card = (folder / "README.md").read_text()
    chain = json.loads((folder / "hf_transfer.json").read_text())["chain"]
    assert [(link["checkpoint"], link["dataset"], link["train_rows"]) for link in chain] == [(None, "uoft-cs/cifar10", 40_000)]
    assert "accelerate launch recipes/vit.py --checkpoint embedded:vit-cifar10 --arms scratch" in card
    model = ht.load(folder)
    assert f"{sum(parameter.numel() for parameter in model.saved.model.parameters()):,} parameters" in card
    assert all(label in card for label in model.labels)


def test_it_knows_a_ship_from_a_frog(tmp_path: Path) -> None:
    """Two scenes of flat colours: a dark hull between sky and sea, a green blob on brown."""
    ship = Image.new("RGB", (32, 32), (150, 190, 230))
    ship.paste((40, 70, 120), (0, 20, 32, 32))
    ship.paste((60, 60, 70), (6, 14, 27, 21))
    ship.paste((220, 220, 220), (12, 8, 20, 14))
    answer = ht.load("embedded:vit-cifar10").predict([ship])[0]
    assert answer["probabilities"]["ship"] > 10 * answer["probabilities"]["frog"]
    checkpoint = open_checkpoint("embedded:vit-cifar10", image_classification.load_processor)
    assert checkpoint.base_id == "embedded:vit-cifar10"
    assert (checkpoint.processor.height, checkpoint.processor.width, checkpoint.processor.num_patches) == (32, 32, 64)
