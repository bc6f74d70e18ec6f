"""Peak memory of a training, each contender in a process of its own: what one leaves behind would count for the next."""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cases import CASES, MEMORY_CASE, MEMORY_TARGETS, OURS
from comparison import Settings, prepare_trainings
from hf_transfer.evidence.study import Rows
from hf_transfer.training.device import make_accelerator, peak_memory_bytes, process_memory_bytes, reset_peak_memory
from material import Material, lay_ground

NUM_TEST = 20


def compare_memory(material: Material, settings: Settings, folder: Path) -> dict[str, Any]:
    """Give each contender's peak over a short training, whole and above what its process held before, and ours as a share of each peer's.

    Args:
        material: Data and checkpoint.
        settings: How long a training is.
        folder: For what is temporary.
    """
    case = CASES[MEMORY_CASE].quickly() if settings.is_quick else CASES[MEMORY_CASE]
    ground = lay_ground(material, case, settings.batch_size)
    # The first rows of a draw hold every class.
    rows = ground.study.draw("all", 0)[0].take(np.arange(settings.num_rows))
    small = write_rows(rows, ground.study.labels, folder / "memory")
    peaks: dict[str, dict[str, int]] = {}
    for name in (OURS, *MEMORY_TARGETS):
        asked = {"contender": name, "dataset": str(small), "plain": str(material.plain), "settings": asdict(settings)}
        child = subprocess.run([sys.executable, __file__, json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = json.loads(child.stdout.splitlines()[-1])
    shares = {}
    for peer, target in MEMORY_TARGETS.items():
        whole, above = (peaks[OURS][key] / peaks[peer][key] for key in ("peak_bytes", "above_bytes"))
        shares[peer] = {"whole": whole, "above": above, "target": target, "met": whole <= target}
    return {"case": MEMORY_CASE, "peaks": peaks, "shares": shares}


def write_rows(rows: Rows, labels: list[str], folder: Path) -> Path:
    """Write rows as a data set of its own, so that a child holds no more text than it trains on."""
    folder.mkdir()
    lines = [
        json.dumps({"text": text, "label": labels[label]}) for text, label in zip(rows.examples.inputs, rows.labels.tolist(), strict=True)
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "test.jsonl").write_text("\n".join(lines[:NUM_TEST]) + "\n", encoding="utf-8")
    return folder


def measure_here(asked: dict[str, Any]) -> dict[str, int]:
    """Measure one contender in this process.

    Returns:
        `before_bytes`, with the model loaded; `peak_bytes`; `above_bytes`, their difference.
    """
    settings = Settings(**asked["settings"])
    case = CASES[MEMORY_CASE].quickly() if settings.is_quick else CASES[MEMORY_CASE]
    material = Material(asked["dataset"], asked["plain"], Path(asked["plain"]))
    with tempfile.TemporaryDirectory() as folder:
        ground = lay_ground(material, case, settings.batch_size)
        job = prepare_trainings(ground, case, Path(folder))[asked["contender"]](ground.rows)
        accelerator = make_accelerator("auto")
        reset_peak_memory(accelerator)
        before = int(torch.cuda.memory_allocated()) if settings.device == "cuda" else process_memory_bytes()
        job.run()
        peak = peak_memory_bytes(accelerator)
    return {"before_bytes": before, "peak_bytes": peak, "above_bytes": peak - before}


if __name__ == "__main__":
    print(json.dumps(measure_here(json.loads(sys.argv[1]))))
