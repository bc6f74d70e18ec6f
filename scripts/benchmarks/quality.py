"""Are the models as good? Validation loss of both sides after the same training, over seeds."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ours
import peers
from cases import CASES, OURS, QUALITY_BUDGET, QUALITY_CASE, QUALITY_EPOCHS, QUALITY_PEER, QUALITY_SEEDS
from comparison import Settings
from hf_transfer.evidence.measure import evaluate
from hf_transfer.training.device import make_accelerator
from material import Material, lay_ground
from measure import Job


def compare_quality(material: Material, settings: Settings, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train both sides on the same budget with each seed, and measure the last state of both on the same validation rows.

    Our side validates on a handful of other rows, so it too keeps its last state.

    Args:
        material: Data and checkpoint.
        settings: Says whether this is quick.
        folder: For what is temporary.
        tell: Takes a line a seed.

    Returns:
        Losses by side and seed; the mean difference; the peer's standard deviation over seeds, which a difference may reach.
    """
    case = replace(CASES[QUALITY_CASE], num_epochs=QUALITY_EPOCHS)
    case = case.quickly() if settings.is_quick else case
    ground = lay_ground(material, case, settings.batch_size)
    study = ground.study
    budget = min(QUALITY_BUDGET, len(study.train))
    prepare: dict[str, Callable[..., Job]] = {OURS: ours.prepare_training, QUALITY_PEER: partial(peers.prepare_training, QUALITY_PEER)}
    losses: dict[str, list[float]] = {name: [] for name in prepare}
    for seed in QUALITY_SEEDS:
        rows, validation = study.draw(budget, seed)
        for name, make in prepare.items():
            job = make(ground, case.arm, rows, seed, folder)
            job.run()
            measured = replace(study, accelerator=make_accelerator("auto"))
            losses[name].append(evaluate(measured, job.model, validation)[0]["loss"])
        tell(f"seed {seed}  " + "  ".join(f"{name} {values[-1]:.4f}" for name, values in losses.items()))
    mine, theirs = losses.values()
    difference = statistics.mean(mine) - statistics.mean(theirs)
    noise = statistics.stdev(theirs)
    return {
        "case": QUALITY_CASE,
        "budget": budget,
        "num_epochs": case.num_epochs,
        "seeds": list(QUALITY_SEEDS),
        "validation_loss": losses,
        "difference": difference,
        "seed_noise": noise,
        "met": abs(difference) <= noise,
    }
