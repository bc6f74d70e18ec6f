"""Every cell of a run, arms x budgets x seeds, and the comparison at its end."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_transfer.disk import read_json, write_json, write_text
from hf_transfer.errors import RunFolderError, TrainingError
from hf_transfer.evidence.attempt import PlannedCell, attempt_cell, describe_failure, quick_collections
from hf_transfer.evidence.comparison import compare, read_cells
from hf_transfer.evidence.errors import describe_chosen
from hf_transfer.evidence.hygiene import describe_data, overlap_notes
from hf_transfer.evidence.resume import clear_unfinished, drop_states_of_other_settings, go_on, hide_data, mixture_notes, read_earlier
from hf_transfer.evidence.study import Study, prepare_study
from hf_transfer.evidence.workers import check_parallel, train_in_workers
from hf_transfer.files import COMPARISON_FILE, EXAMPLES_FILE, HYGIENE_FILE, RECIPE_FILE, RESULT_FILE, open_run_folder
from hf_transfer.recipe import Recipe, to_yaml
from hf_transfer.run_settings import RunSettings
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.processes import any_process, on_main_process, say
from hf_transfer.training.stopping import Stopping
from hf_transfer.training.tracking import check_tracker


def run_grid(
    recipe: Recipe,
    settings: RunSettings,
    output_dir: Path,
    local_files_only: bool = False,
    finish: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Train every cell and write the run folder; nothing is written before the whole run is known to be possible.

    Args:
        recipe: What to train.
        settings: Which cells, and how.
        output_dir: The run folder; must hold nothing yet, or an earlier run where that is to be resumed.
        local_files_only: Take Hub ids from the cache.
        finish: Takes what `comparison.json` holds, on the main process, and writes what else belongs into the folder while it is held.

    Returns:
        What `comparison.json` holds, on every process: the folder may be on the main one's machine only.

    Raises:
        TransferError: A mistake in recipe, data, checkpoint or folder, or no cell that could be trained.
        Interrupted: The run was asked to end.
    """
    with Stopping(settings.max_minutes) as stopping:
        return _run_grid(recipe, settings, output_dir, local_files_only, stopping, finish)


def _run_grid(
    recipe: Recipe,
    settings: RunSettings,
    output_dir: Path,
    local_files_only: bool,
    stopping: Stopping,
    finish: Callable[[dict[str, Any]], object] | None,
) -> dict[str, Any]:
    accelerator = make_accelerator(recipe.training.precision)
    check_parallel(settings.parallel, accelerator)
    earlier = on_main_process(accelerator, lambda: read_earlier(output_dir)) if settings.resume else None
    if earlier:
        recipe, settings = go_on(earlier, recipe, settings, output_dir)
    arms, budgets, seeds = settings.arms, settings.budgets, settings.seeds
    if settings.tracker is not None:
        check_tracker(settings.tracker)
    if settings.search is not None:
        from hf_transfer.evidence.search import check_search_storage, search_arms

        check_search_storage(settings, accelerator)
    study = prepare_study(recipe, arms, budgets, seeds, accelerator, settings.max_test_rows, local_files_only, stopping)
    with _open_run_folder(output_dir, settings.resume, accelerator):
        if settings.resume and on_main_process(accelerator, lambda: read_earlier(output_dir)) != earlier:
            raise RunFolderError(f"another process has gone on with the run in {output_dir} meanwhile: start again")
        cells = [PlannedCell(arm, study.recipe.arms[arm], budget, seed) for budget, seed, arm in itertools.product(budgets, seeds, arms)]
        left = on_main_process(accelerator, lambda: clear_unfinished(output_dir, study, cells))
        if accelerator.is_main_process:
            _begin(study, settings, output_dir, cells, left)
        accelerator.wait_for_everyone()
        if settings.search is not None and left:
            chosen = search_arms(study, settings, output_dir)
            left = [replace(cell, arm=chosen[cell.arm_name, cell.budget]) for cell in left]
            for note in on_main_process(accelerator, lambda: drop_states_of_other_settings(output_dir, left)):
                say(accelerator, note)
        failed = _train(study, left, settings, output_dir, local_files_only)
        if len(failed) == len(cells):
            raise TrainingError(f"no training of the run could be finished; the first: {failed[0]['error']}")

        def conclude() -> dict[str, Any]:
            comparison = _conclude(study, settings, output_dir, failed)
            if finish is not None:
                finish(comparison)
            return comparison

        comparison = on_main_process(accelerator, conclude)
    # None leaves while another still waits for it.
    accelerator.wait_for_everyone()
    return comparison


def _begin(study: Study, settings: RunSettings, output_dir: Path, cells: Sequence[PlannedCell], left: Sequence[PlannedCell]) -> None:
    """Write what is known before any training, and say it."""
    # A mistyped folder would otherwise go unnoticed.
    begins = (
        [f"{output_dir} holds no run to go on with, so one begins"] if settings.resume and not (output_dir / RECIPE_FILE).exists() else []
    )
    write_text(output_dir / RECIPE_FILE, to_yaml(study.recipe.to_dict() | {"run": settings.recorded()}))
    if settings.private_data:
        hide_data(output_dir)
    if left:
        # It marks a run as finished, and would be read beside cells that it does not know.
        (output_dir / COMPARISON_FILE).unlink(missing_ok=True)
    hygiene = describe_data(study, settings.private_data)
    write_json(output_dir / HYGIENE_FILE, hygiene)
    finished_before = [cell for cell in cells if cell not in left]
    mixture = mixture_notes(output_dir, finished_before, left, study.accelerator) if left else []
    say(study.accelerator, _describe(study, len(left), len(cells), output_dir, [*begins, *overlap_notes(hygiene), *mixture]))


def _conclude(study: Study, settings: RunSettings, output_dir: Path, failed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write what the finished cells say together, and give it; `comparison.json` comes last and marks the run as finished."""
    finished = read_cells(output_dir, settings.arms, settings.budgets, settings.seeds, study.metrics, study.labels)
    comparison = compare(finished, study.recipe.task.kind, study.metrics.names, study.labels, failed)
    examples = describe_chosen(study, output_dir, comparison["recommendation"], settings.seeds, settings.private_data)
    write_json(output_dir / EXAMPLES_FILE, examples)
    write_json(output_dir / COMPARISON_FILE, comparison)
    return comparison


def _train(
    study: Study, cells: Sequence[PlannedCell], settings: RunSettings, output_dir: Path, local_files_only: bool
) -> list[dict[str, Any]]:
    """Train the cells, one by one or several at once, tell of each as it ends, and give those that failed, in order."""
    attempts: Generator[tuple[PlannedCell, str | None]]
    if settings.parallel > 1:
        attempts = train_in_workers(study, cells, settings, output_dir, local_files_only)
    else:
        attempts = _train_in_turn(study, cells, settings, output_dir)
    failed = []
    with closing(attempts), quick_collections():
        for number, (cell, error) in enumerate(attempts, 1):
            if error is not None:
                failed.append((cell, error))
            if study.accelerator.is_main_process:
                told = _describe_cell(cell, output_dir, study.metrics.names[0]) if error is None else f"failed: {cell}: {error}"
                say(study.accelerator, f"{number} of {len(cells)} {told}")
    return [describe_failure(cell, error) for cell, error in sorted(failed, key=lambda one: cells.index(one[0]))]


def _train_in_turn(
    study: Study, cells: Sequence[PlannedCell], settings: RunSettings, output_dir: Path
) -> Generator[tuple[PlannedCell, str | None]]:
    for cell in cells:
        # Its clock may have run out in what is not ended at once, on one process a moment before the others.
        if any_process(study.accelerator, study.stopping.is_asked)[0]:
            study.stopping.end(f"ended before {cell}")
        yield cell, attempt_cell(study, cell, output_dir, settings.tracker)


@contextmanager
def _open_run_folder(output_dir: Path, resume: bool, accelerator: Accelerator) -> Iterator[None]:
    """Have the run folder, new or resumed, for this run alone until the block ends.

    Raises:
        RunFolderError: It cannot be had; on every process.
    """
    with ExitStack() as stack:
        on_main_process(accelerator, lambda: stack.enter_context(open_run_folder(output_dir, resume)))
        yield


def _describe(study: Study, num_left: int, num_cells: int, output_dir: Path, mixture: Sequence[str]) -> str:
    corpus, recipe = study.corpus, study.recipe
    validation = f", {len(corpus.validation):,} validation rows (for the budget all)" if corpus.validation else ""
    dropped = f"; {corpus.dropped_rows:,} training rows dropped" if corpus.dropped_rows else ""
    trainings = f"{num_cells} training{'' if num_cells == 1 else 's'}"
    finished = f" ({num_cells - num_left} of them finished before)" if num_left < num_cells else ""
    notices = "".join(f"\nnote: {notice}" for notice in [*study.notices, *mixture])
    return (
        f"{recipe.name}: {len(corpus.train):,} training rows{validation}, {len(corpus.test):,} test rows ({corpus.test_origin}), "
        f"{len(study.labels)} labels{dropped}\n"
        f"checkpoint {recipe.checkpoint} on {study.accelerator.device}, {trainings}{finished} into {output_dir}{notices}"
    )


def _describe_cell(cell: PlannedCell, output_dir: Path, metric: str) -> str:
    result = read_json(cell.folder(output_dir) / RESULT_FILE)
    validation, kept = result["metrics"]["validation"], result["best_epoch"]
    state = f"epoch {kept} kept" if kept else "last state kept"
    return f"done: {cell}: validation {metric} {validation[metric]:.3f}, {state}, {result['cost']['wall_seconds']:.0f} s"
