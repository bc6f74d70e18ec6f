"""Every cell of a run, arms x budgets x seeds, and the comparison at its end."""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hf_transfer.errors import RunFolderError
from hf_transfer.evidence.cell import run_cell
from hf_transfer.evidence.comparison import compare, read_cells
from hf_transfer.evidence.errors import describe_chosen
from hf_transfer.evidence.hygiene import describe_data, overlap_notes
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.files import (
    COMPARISON_FILE,
    EXAMPLES_FILE,
    HYGIENE_FILE,
    RECIPE_FILE,
    cell_folder,
    claim_run_folder,
    write_json,
    write_text,
)
from hf_transfer.recipe import Recipe
from hf_transfer.run_settings import RunSettings
from hf_transfer.training.device import make_accelerator


def run_grid(
    recipe: Recipe,
    settings: RunSettings,
    output_dir: Path,
    local_files_only: bool = False,
) -> None:
    """Train every cell and write the run folder; nothing is written before the whole run is known to be possible.

    Args:
        recipe: What to train.
        settings: Which cells, and how.
        output_dir: The run folder; must hold nothing yet.
        local_files_only: Take Hub ids from the cache.

    Raises:
        TransferError: A mistake in recipe, data, checkpoint or folder, or a training that cannot go on.
    """
    accelerator = make_accelerator(recipe.training.precision)
    arms, budgets, seeds = settings.arms, settings.budgets, settings.seeds
    study = prepare_study(recipe, arms, budgets, seeds, accelerator, settings.max_test_rows, local_files_only)
    _claim(output_dir, accelerator)
    if accelerator.is_main_process:
        write_text(
            output_dir / RECIPE_FILE,
            yaml.safe_dump(study.recipe.to_dict() | {"run": settings.recorded()}, sort_keys=False, allow_unicode=True),
        )
        _say(_describe(study, len(arms) * len(budgets) * len(seeds), output_dir))
        write_json(output_dir / HYGIENE_FILE, hygiene := describe_data(study, settings.private_data))
        for note in overlap_notes(hygiene):
            _say(f"note: {note}")
    accelerator.wait_for_everyone()
    cells = list(itertools.product(budgets, seeds, arms))
    for number, (budget, seed, arm) in enumerate(cells, 1):
        result = run_cell(study, arm, study.recipe.arms[arm], budget, seed, cell_folder(output_dir, arm, budget, seed))
        if accelerator.is_main_process:
            _say(_describe_cell(result, study.metrics.names[0], number, len(cells)))
    if accelerator.is_main_process:
        finished = read_cells(output_dir, arms, budgets, seeds, study.metrics, study.labels)
        comparison = compare(finished, study.recipe.task.kind, study.metrics.names, study.labels)
        write_json(
            output_dir / EXAMPLES_FILE, describe_chosen(study, output_dir, comparison["recommendation"], seeds, settings.private_data)
        )
        write_json(output_dir / COMPARISON_FILE, comparison)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _claim(output_dir: Path, accelerator: Accelerator) -> None:
    """Claim the run folder on the main process; where that fails, every process raises the same error."""
    failure: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            claim_run_folder(output_dir)
        except RunFolderError as error:
            failure = [str(error)]
    if message := broadcast_object_list(failure)[0]:
        raise RunFolderError(message)


def _describe(study: Study, num_cells: int, output_dir: Path) -> str:
    corpus, recipe = study.corpus, study.recipe
    validation = f", {len(corpus.validation):,} validation rows (for the budget all)" if corpus.validation else ""
    dropped = f"; {corpus.dropped_rows:,} training rows dropped" if corpus.dropped_rows else ""
    trainings = f"{num_cells} training{'' if num_cells == 1 else 's'}"
    notices = "".join(f"\nnote: {notice}" for notice in study.notices)
    return (
        f"{recipe.name}: {len(corpus.train):,} training rows{validation}, {len(corpus.test):,} test rows ({corpus.test_origin}), "
        f"{len(study.labels)} labels{dropped}\n"
        f"checkpoint {recipe.checkpoint} on {study.accelerator.device}, {trainings} into {output_dir}{notices}"
    )


def _describe_cell(result: Mapping[str, Any], metric: str, number: int, num_cells: int) -> str:
    validation, kept = result["metrics"]["validation"], result["best_epoch"]
    state = f"epoch {kept} kept" if kept else "last state kept"
    return (
        f"{number} of {num_cells} done: {result['arm']}, budget {result['budget']}, seed {result['seed']}: "
        f"validation {metric} {validation[metric]:.3f}, {state}, {result['cost']['wall_seconds']:.0f} s"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
