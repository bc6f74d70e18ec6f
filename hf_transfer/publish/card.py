"""The card of a trained model, from its cell's folder: what it was trained on, chained from what, how it scores, how to use it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_transfer.data.hub import is_local_checkpoint, is_local_dataset
from hf_transfer.disk import read_json, write_text
from hf_transfer.errors import listed
from hf_transfer.escaping import markdown_code, markdown_text
from hf_transfer.files import CARD_FILE, MODEL_FOLDER, RESULT_FILE, SIDECAR_FILE

EXAMPLES = {
    "text-classification": '["a text"]',
    "token-classification": '["a sentence"]',
    "image-classification": '["photo.jpg"]',
}


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
"""What may stand in a card's head; a path or a made-up name may hold anything."""


def write_card(cell: Path) -> None:
    """Write `README.md` into the `model/` folder of a finished cell, unless it says all that already, or the model was removed."""
    if not (cell / MODEL_FOLDER / SIDECAR_FILE).is_file():
        return
    result, sidecar = read_json(cell / RESULT_FILE), read_json(cell / MODEL_FOLDER / SIDECAR_FILE)
    path, card = cell / MODEL_FOLDER / CARD_FILE, render_card(result, sidecar)
    if not path.is_file() or path.read_text(encoding="utf-8") != card:
        write_text(path, card)


def render_card(result: Mapping[str, Any], sidecar: Mapping[str, Any]) -> str:
    """Give a card as the Hub reads it: YAML about the model, then text for people.

    Args:
        result: What the cell's `result.json` holds.
        sidecar: What its `hf_transfer.json` holds.
    """
    chain, kind, labels = result["chain"], sidecar["task"]["kind"], sidecar["labels"]
    last = chain[-1]
    data = ModelCardData(
        library_name="peft" if last["tuning"] == "lora" else "transformers",
        pipeline_tag=kind,
        base_model=_hub_id(last["checkpoint"], is_local_checkpoint),
        datasets=[found for link in chain if (found := _hub_id(link["dataset"], is_local_dataset))] or None,
        metrics=[name for name in result["metrics"]["test"] if not name.startswith("loss")],
        tags=["transfer-learning", "hf-transfer-recipes"],
    )
    shown = [{key: _shown(value) for key, value in link.items()} for link in chain]
    links = "\n".join(
        f"| {number} | {link['checkpoint']} | {link['dataset']} | {link['num_labels']} | {link['train_rows']} | "
        f"{link['arm']} ({link['tuning']}) |"
        for number, link in enumerate(shown, 1)
    )
    scores = "\n".join(
        f"| {markdown_text(name)} | {value:.4f} |"
        for name, value in result["metrics"]["test"].items()
        if value is not None and name != "loss_standard_error"
    )
    cost = result["cost"]
    base = ""
    if last["tuning"] == "lora":
        weights = markdown_code(last["checkpoint_sha256"][:12])
        base = f"It is an adapter: it needs the weights of {shown[-1]['checkpoint']} (sha256 {weights}) beside its own.\n"
    return f"""---
{data.to_yaml()}
---

# {shown[-1]["arm"]} on {shown[-1]["dataset"]}

A {shown[-1]["architecture"]} model for {kind.replace("-", " ")} into {len(labels)} labels: {markdown_text(listed(labels, 50))}.
{base}
## How it came about

| training | started from | data | labels | rows | arm (tuning) |
|---|---|---|---|---|---|
{links}

The last training took {cost["train_seconds"]:.1f} s ({cost["updates"]:,} updates, seed {result["seed"]}, budget {result["budget"]},
{cost["trainable_parameters"]:,} of {cost["total_parameters"]:,} parameters) on {markdown_text(result["environment"]["device"])}.

## Scores on {result["data"]["test_rows"]:,} test rows, read once

| metric | value |
|---|---|
{scores}

One training of one seed. Whether transfer helped, against the same architecture from random weights, stands in the run's comparison.

## Use

```python
import hf_transfer as ht

print(ht.load("FOLDER_OR_ID").predict({EXAMPLES[kind]}))
```
"""


def _shown(value: Any) -> str:
    """Give markdown for what a link of the chain says; another's checkpoint may bring links that hold anything."""
    if value is None:
        return "random weights"
    return f"{value:,}" if isinstance(value, int) else markdown_text(str(value))


def _hub_id(name: str | None, is_local: Any) -> str | None:
    """Give a name that the Hub knows, or None."""
    return name if name and HUB_ID.fullmatch(name) and not is_local(name) else None
