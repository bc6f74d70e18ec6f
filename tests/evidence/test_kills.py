"""A run that is killed in mid-training, and while it saves, ends with the same bits as one that nobody killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_transfer as ht
from tests.conftest import make_photos, save_tiny_vit
from tests.evidence.conftest import finished, untimed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a recipe with all on that could go wrong: dropout, bf16, several micro-batches, augmentation, early stopping, the best state."""
    folder = tmp_path_factory.mktemp("killed")
    for seed, (split, num_photos) in enumerate((("train", 260), ("test", 31))):
        make_photos(folder / "photos" / split, num_photos, ("disc", "stripes", "ring"), seed)
    recipe = ht.Recipe(
        name="photos",
        task=ht.ImageClassification(augmentation=ht.Augmentation(crop_scale=0.6, flip=0.5, mixup=0.2)),
        data=ht.DataConfig(str(folder / "photos")),
        checkpoint=str(save_tiny_vit(folder / "vit")),
        arms={
            "full": ht.Arm(learning_rate=3e-3, num_epochs=8, gradual_unfreezing=0.3, l2_sp=0.1, layer_decay=0.9),
            "lora": ht.Arm(tuning="lora", learning_rate=1e-2, num_epochs=8, lora=ht.LoRA(lora_dropout=0.1)),
        },
        training=ht.TrainingConfig(
            batch_size=16,
            dropout=0.1,
            precision="bf16",
            micro_batch_tokens=100,
            early_stopping_patience=1,
            save_every=5,
            num_workers=0,
        ),
    )
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict() | {"run": {"arms": ["full", "lora"], "seeds": [0]}}))
    return path


def killed(config: Path, folder: Path, kills: int, processes: int, seconds: float, seed: int) -> dict[str, Any]:
    """Run with kills -> what the killer did."""
    command = [sys.executable, "-m", "tests.evidence.killing", "--config", config, "--folder", folder, "--kills", kills]
    command += ["--processes", processes, "--seconds", seconds, "--seed", seed]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def uninterrupted(config: Path, folder: Path, processes: int) -> tuple[Path, float]:
    """Run without a kill -> the run folder, and the seconds it took."""
    started = time.monotonic()
    done = killed(config, folder, 0, processes, 1.0, 0)
    assert done["codes"] == [0] * processes, (folder.parent / f"{folder.name}.log").read_text()
    return folder, time.monotonic() - started


def assert_same_bits(run: Path, whole: Path) -> None:
    found, expected = (untimed(json.loads((folder / "comparison.json").read_text())) for folder in (run, whole))
    assert found == expected
    for cell in finished(whole):
        other = run / cell.relative_to(whole)
        for path in (cell / "predictions.parquet", *(cell / "model").glob("*.safetensors")):
            assert (run / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
        results = [json.loads((folder / "result.json").read_text()) for folder in (cell, other)]
        for name in ("history", "metrics", "best_epoch", "stopped"):
            assert results[0][name] == results[1][name], name
        for name in ("updates", "rows_seen", "tokens_seen"):
            assert results[0]["cost"][name] == results[1]["cost"][name], name
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (run, whole)]
    assert names[0] == names[1], "nothing is left behind"


@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 3), pytest.param(1, 120, marks=pytest.mark.slow), (2, 2), pytest.param(2, 40, marks=pytest.mark.slow)],
)
def test_kills_at_random_instants_change_no_bit(config: Path, tmp_path: Path, processes: int, kills: int) -> None:
    whole, seconds = uninterrupted(config, tmp_path / "whole", processes)
    # What the kills do not break has to be there at all.
    results = [json.loads((cell / "result.json").read_text()) for cell in finished(whole)]
    assert {result["environment"]["precision"] for result in results} == {"bf16"}
    assert any(result["stopped"] == "early" for result in results)
    assert any(result["best_epoch"] < len(result["history"]) for result in results)
    survived, resumed = {"time": 0, "change": 0, "writing": 0}, []
    seed = 0
    while sum(survived.values()) < kills:
        seed += 1
        run = tmp_path / f"run-{seed}"
        done = killed(config, run, min(kills - sum(survived.values()), 12), processes, seconds, seed)
        log = (tmp_path / f"{run.name}.log").read_text()
        assert done["codes"] == [0] * processes, log
        assert "Traceback" not in log or processes > 1, log
        for kind, count in done["kills"].items():
            survived[kind] += count
        resumed += [update for cell in finished(run) for update in json.loads((cell / "result.json").read_text())["resumed_from"]]
        assert_same_bits(run, whole)
    print(f"{survived} kills on {processes} processes survived, {len(resumed)} trainings went on behind updates {sorted(resumed)}")
    assert resumed or kills < 10
