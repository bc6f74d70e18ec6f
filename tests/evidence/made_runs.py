"""Run folders made up number by number, as a finished run leaves them: nothing is trained."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_transfer.evaluation.metrics import METRICS, Predictions
from hf_transfer.evidence.predictions import write_predictions

MakeRun = Callable[..., Path]
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
NUM_TEST_ROWS = 160


def num_rows(budget: int | str) -> int:
    return 640 if budget == "all" else int(budget)


def make_comparison(
    task: str, labels: Sequence[str], arms: Sequence[str], budgets: Sequence[int | str], seeds: Sequence[int], verdicts: dict[Any, str]
) -> dict[str, Any]:
    """Give what `comparison.json` holds: no two of its numbers are alike."""
    metrics = list(METRICS[task].names)
    numbers = (round(0.2 + 0.0007 * step, 4) for step in itertools.count())
    scope = "rows" if len(seeds) == 1 else "seeds+rows"
    cells = list(itertools.product(arms, budgets))
    entries, gains, efficiency, speed = [], [], [], []
    for (arm, budget), metric in itertools.product(cells, metrics):
        mean, low, high = next(numbers), next(numbers), next(numbers)
        place = {"arm": arm, "budget": budget, "metric": metric}
        entries.append(
            place
            | {"num_rows": num_rows(budget), "mean": mean, "ci_low": low - 0.1, "ci_high": high + 0.1, "scope": scope}
            | {"num_seeds": len(seeds), "wall_seconds": 12.0}
        )
        if "scratch" in arms and arm != "scratch":
            verdict = verdicts.get((arm, budget), verdicts.get("rest", "helps"))
            sign = -1 if verdict == "hurts" else 1
            gain = place | {"baseline": "scratch", "delta": sign * next(numbers), "ci_low": -next(numbers), "ci_high": next(numbers) + 0.5}
            primary = metric == metrics[0]
            gain |= {"scope": scope, "p_value": 0.0123, "p_adjusted": 0.0456 if primary else None, "verdict": verdict if primary else None}
            gains.append(gain | {"minimum_detectable": next(numbers) if primary else None})
    for arm, budget in cells if "scratch" in arms else []:
        if arm != "scratch":
            place = {"arm": arm, "budget": budget, "baseline": "scratch"}
            matched = "not reached" if budget == budgets[-1] else "reached"
            ratio = 3.25 if matched == "reached" else None
            efficiency.append(
                place
                | {"num_rows": num_rows(budget), "matched": matched, "baseline_rows": ratio and ratio * num_rows(budget)}
                | {"ratio": ratio, "ratio_by_seed": [ratio] * len(seeds)}
            )
            speed.append(place | {"updates": 7.0, "baseline_updates": 40.0, "num_reached": len(seeds), "num_seeds": len(seeds)})
    shipped = arms[-1]
    return {
        "task": task,
        "labels": list(labels),
        "metrics": metrics,
        "primary_metric": metrics[0],
        "arms": entries,
        "gains": gains,
        "pairs": [],
        "label_efficiency": efficiency if len(budgets) > 1 else [],
        "training_speed": speed,
        "recommendation": {"arm": shipped, "budget": budgets[-1], "seed": seeds[0], "reason": "lowest validation loss (0.123)"},
        "failed": [],
    }


def make_result(arm: str, budget: int | str, seed: int, metrics: Sequence[str]) -> dict[str, Any]:
    """Give what a cell's `result.json` holds."""
    scores = dict.fromkeys(metrics, 0.5)
    history = [
        {"update": 4 * epoch, "epoch": epoch, "train_loss": 1.0 / epoch, "learning_rate": 1e-3}
        | {"validation": {"loss": 1.1 / epoch + 0.01 * seed, **dict.fromkeys(metrics, 0.1 * epoch)}}
        for epoch in (1, 2, 3)
    ]
    return {
        "arm": arm,
        "init": "scratch" if arm == "scratch" else "pretrained",
        "tuning": "full",
        "seed": seed,
        "budget": budget,
        "checkpoint": "someone/encoder",
        "dataset": "someone/topics",
        "metrics": {"validation": {"loss": 0.4, **scores}, "test": {"loss": 0.5, **scores}},
        "settings": {"learning_rate": 0.00123, "num_epochs": 17},
        "cost": {
            "wall_seconds": 12.0 + len(arm),
            "train_seconds": 9.0,
            "updates": 12,
            "peak_memory_bytes": 2**30 + len(arm),
            "trainable_parameters": 1000 ** len(arm[:2]),
            "total_parameters": 2_000_000,
        },
        "history": history,
        "best_epoch": 2,
        "data": {"train_rows": 48, "validation_rows": 12, "test_rows": NUM_TEST_ROWS, "fingerprint": "5f" * 32},
        "environment": {"python": "3.11.7", "device": "cpu", "num_processes": 1, "num_threads": 1, "precision": "fp32", "git": None},
    }


def make_predictions(labels: Sequence[str], of_words: bool) -> Predictions:
    """Give predictions that are right three times in four, and never the last label."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, NUM_TEST_ROWS) if of_words else np.ones(NUM_TEST_ROWS, dtype=int)
    first_item = np.concatenate([[0], np.cumsum(sizes)])
    references = np.arange(first_item[-1]) % len(labels)
    predictions = np.where(rng.random(len(references)) < 0.75, references, (references + 1) % len(labels))
    predictions = np.where(predictions == len(labels) - 1, 0, predictions)
    probabilities = np.full((len(references), len(labels)), 0.3 / len(labels), dtype=np.float32)
    probabilities[np.arange(len(references)), predictions] += 0.7
    return Predictions(labels, references, predictions, probabilities, first_item)


def make_hygiene(labels: Sequence[str], metrics: Sequence[str], texts: Sequence[str], private: bool) -> dict[str, Any]:
    """Give what `hygiene.json` holds."""
    text = None if private else texts[0]
    split = {"rows": 640, "empty_rows": 3, "duplicate_rows": 4, "conflicting_rows": 5, "label_counts": dict.fromkeys(labels, 17)}
    split["lengths"] = {"unit": "tokens", "edges": [0, 8, 64], "counts": [500, 140]}
    pair = {"train_row": 71, "test_row": 72, "similarity": 0.93, "train_text": text, "test_text": text}
    return {
        "private": private,
        "splits": {"train": split, "test": split},
        "overlap": {
            "exact_rows": 31,
            "near_rows": 37,
            "threshold": 0.8,
            "method": "similarity of shingles",
            "searched_train_rows": 640,
            "searched_test_rows": NUM_TEST_ROWS,
            "pairs": [pair],
        },
        "conflicts": [{"split": "train", "row_ids": [8, 9], "labels": list(labels[:2]), "text": text}],
        "floors": {"majority": dict.fromkeys(metrics, 0.0871), "random": dict.fromkeys(metrics, 0.0672)},
    }


def make_examples(task: str, labels: Sequence[str], texts: Sequence[str], private: bool, at: dict[str, Any]) -> dict[str, Any]:
    """Give what `examples.json` holds."""
    entries = []
    for row_id, text in enumerate(texts):
        entry: dict[str, Any] = {"row_id": row_id, "confidence": 0.97, "reference_probability": 0.01}
        if task == "token-classification":
            kind = labels[1][2:]
            entry |= {"words": None if private else ["we", text, "met"], "first_word": 40, "word": 1}
            entry |= {"reference": [{"start": 1, "end": 2, "label": kind}], "prediction": []}
        else:
            is_image = task == "image-classification"
            entry |= {"reference": labels[0], "prediction": labels[1], "text": None if private or is_image else text}
            entry["image"] = PIXEL if is_image and not private else None
        entries.append(entry)
    return {"private": private, **at, "worst_errors": entries, "suspected_label_errors": entries[:1]}


def write_run(
    place: Path,
    task: str = "text-classification",
    labels: Sequence[str] = ("boats", "bread", "chess"),
    arms: Sequence[str] = ("scratch", "head", "lora"),
    budgets: Sequence[int | str] = (60, "all"),
    seeds: Sequence[int] = (0, 1, 2),
    verdicts: dict[Any, str] | None = None,
    texts: Sequence[str] = ("an anchor in the oven",),
    private: bool = False,
    bare: bool = False,
    name: str = "run",
    **changes: Any,
) -> Path:
    """Write the folder of a finished run; `changes` go into its `comparison.json`."""
    folder = place / name
    comparison = make_comparison(task, labels, arms, budgets, seeds, verdicts or {}) | changes
    metrics = comparison["metrics"]
    predicted = make_predictions(labels, task == "token-classification")
    for arm, budget, seed in itertools.product(arms, budgets, seeds):
        cell = folder / arm / f"budget-{budget}" / f"seed-{seed}"
        cell.mkdir(parents=True)
        (cell / "result.json").write_text(json.dumps(make_result(arm, budget, seed, metrics)))
        rows = np.arange(NUM_TEST_ROWS)
        write_predictions(cell / "predictions.parquet", rows, predicted, rows, as_lists=task == "token-classification")
    recipe = {
        "name": "topics",
        "run": {"arms": list(arms), "budgets": list(budgets), "seeds": list(seeds)},
        "data": {"source": texts[0]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    files = {"comparison.json": comparison}
    if not bare:
        names = list(dict.fromkeys(name[2:] for name in labels if name != "O")) if task == "token-classification" else labels
        at = {key: comparison["recommendation"][key] for key in ("arm", "budget", "seed")}
        trial = {"number": 1, "params": {"learning_rate": 0.00321}, "validation_loss": 0.4321, "seconds": 3.0}
        search = {"space": {"learning_rate": [1e-5, 1e-3]}, "trials": [trial], "chosen": trial}
        files["hygiene.json"] = make_hygiene(names, metrics, texts, private)
        files["examples.json"] = make_examples(task, labels, texts, private, at)
        files["search.json"] = {"num_trials": 8, "storage": "search.db", "searches": [at | search]}
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return folder
