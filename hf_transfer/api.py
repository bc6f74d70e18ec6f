"""What `import hf_transfer as ht` offers: recipes by name, runs, their comparison, and trained models. Imports torch only when it must."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.data.hub import hub_answers, is_local_checkpoint, is_local_dataset
from hf_transfer.disk import expanded, read_json, write_text
from hf_transfer.errors import (
    CheckpointError,
    ConfigError,
    RunFolderError,
    check_no_name_clash,
    listed,
)
from hf_transfer.files import COMPARISON_FILE, RECIPE_FILE, REPORT_FILE, RESULT_FILE, cache_limit_bytes, cell_folder, model_folder_of
from hf_transfer.recipe import Recipe, read_yaml
from hf_transfer.run_settings import RunSettings, check_settings, recorded_settings

if TYPE_CHECKING:
    from hf_transfer.evaluation.table_prediction import TablePrediction
    from hf_transfer.evidence.micro_batch_search import MicroBatchRates
    from hf_transfer.evidence.validation import Findings
    from hf_transfer.models.saved import SavedModel


def run(
    recipe: Recipe,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | str] | None = None,
    seeds: Sequence[int] | None = None,
    output_dir: str | Path | None = None,
    max_test_rows: int | None = None,
    *,
    search: int | None = None,
    search_storage: str | None = None,
    parallel: int = 1,
    tracker: str | None = None,
    private_data: bool = False,
    resume: bool = False,
    max_minutes: float | None = None,
) -> "Comparison":
    """Train arms x budgets x seeds of a recipe and compare them.

    Args:
        recipe: What to train.
        arms: Names of its arms; None = scratch, head, lora and full, as far as it has them.
        budgets: Numbers of labelled rows (training and validation together), or "all"; None = "all".
        seeds: One training each; None = 0.
        output_dir: The run folder, which must not hold anything yet unless `resume`; None = `runs/NAME`.
        max_test_rows: Size of a fixed random sample of the test rows; None = all.
        search: Trials that every arm gets at every budget to find its hyperparameters, chosen by validation loss; None = the recipe's.
        search_storage: Database URL of the trials, which several machines may share; None = `search.db` in the run folder.
        parallel: Cells trained at once, each on a device of its own.
        tracker: "tensorboard", "wandb", "mlflow" or "trackio", whichever is installed; None = none.
        private_data: Write no text or image of the data into the run folder.
        resume: Go on with the run in `output_dir`: finished cells stay, begun ones go on from their saved state; more arms, budgets or
            seeds may be asked for, and what is None is as that run has it.
        max_minutes: Minutes after which the run ends, the state of the training it is in saved; None = when it is done.

    Raises:
        TransferError: A mistake in recipe, data, checkpoint or folder (nothing is written then), or no training that could be finished.
            One that could not leaves the others be: see `Comparison.failed`.
        Interrupted: Ctrl-C, SIGTERM or `max_minutes` ended the run (a KeyboardInterrupt); the training it was in ends behind its update,
            its state saved, and `resume` goes on from there. A second Ctrl-C ends it at once.
    """
    folder = Path("runs") / recipe.name if output_dir is None else expanded(output_dir)
    asked = {"arms": arms, "budgets": budgets, "seeds": seeds, "max_test_rows": max_test_rows, "search": search}
    if resume is True:
        recorded = recorded_settings(folder)
        asked = {name: recorded.get(name) if value is None else value for name, value in asked.items()}
    settings = _check_run(
        recipe,
        **asked,
        search_storage=search_storage,
        parallel=parallel,
        tracker=tracker,
        private_data=private_data,
        resume=resume,
        max_minutes=max_minutes,
    )

    from hf_transfer.evidence.grid import run_grid
    from hf_transfer.publish.card import write_card

    def finish(values: dict[str, Any]) -> None:
        comparison = Comparison(folder, values)
        for cell in comparison.cells():
            write_card(cell)
        write_text(folder / REPORT_FILE, comparison.report())

    return Comparison(folder, run_grid(recipe, settings, folder, _cache_only(recipe), finish))


def validate(
    recipe: Recipe,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | str] | None = None,
    seeds: Sequence[int] | None = None,
    max_test_rows: int | None = None,
) -> "Findings":
    """Check everything that `run` with the same arguments would need, without training; `print` what comes back.

    Raises:
        TransferError: What `run` would refuse.
    """
    chosen = _check_run(recipe, arms, budgets, seeds, max_test_rows)

    from hf_transfer.evidence.validation import validate as find_out

    return find_out(recipe, chosen.arms, chosen.budgets, chosen.seeds, chosen.max_test_rows, local_files_only=_cache_only(recipe))


def tune(
    recipe: Recipe,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | str] | None = None,
    seeds: Sequence[int] | None = None,
    max_test_rows: int | None = None,
) -> "MicroBatchRates":
    """Measure which size of micro-batch is fastest on this machine, on the arm that trains most; `print` what comes back.

    The result's `best` is for `training.micro_batch_tokens`. It changes no update, only how an update is computed.

    Raises:
        TransferError: What `run` would refuse.
    """
    chosen = _check_run(recipe, arms, budgets, seeds, max_test_rows)

    from hf_transfer.evidence.micro_batch_search import search_micro_batches

    return search_micro_batches(
        recipe, chosen.arms, chosen.budgets, chosen.seeds, chosen.max_test_rows, local_files_only=_cache_only(recipe)
    )


def load(name: str | Path, base: str | None = None) -> "Model":
    """Give a trained model: from a run folder (the recommended arm), a cell's or a model's folder, or a Hub id.

    Args:
        name: Folder or Hub id.
        base: Checkpoint that an adapter belongs to; None finds it by the hash the adapter remembers.

    Raises:
        CheckpointError: There is no such model, or its base is nowhere.
    """
    check_no_name_clash()
    folder = expanded(name)
    from hf_transfer.models.saved import load_saved

    return Model(load_saved(str(model_folder_of(folder) if folder.is_dir() else name), base))


class Comparison:
    """What a finished run found.

    Attributes:
        folder: The run folder.
        values: What its `comparison.json` holds. `run` gives them on every process; the folder may be on the main one's machine only.
    """

    def __init__(self, folder: str | Path, values: dict[str, Any] | None = None) -> None:
        self.folder = expanded(folder)
        if values is None:
            if not (self.folder / COMPARISON_FILE).is_file():
                raise RunFolderError(f"{self.folder} holds no {COMPARISON_FILE}: expected the folder of a finished run")
            values = read_json(self.folder / COMPARISON_FILE)
        self.values: dict[str, Any] = values

    def table(self) -> str:
        """Give the comparison as text: scores, gains over scratch, cost, which arm to ship, and what the evidence cannot bear.

        Raises:
            RunFolderError: Files of the run are missing, or an older version wrote them.
        """
        from hf_transfer.evidence.report.facts import read_facts
        from hf_transfer.evidence.table import render_table

        facts = read_facts(self.folder)
        return render_table(facts.comparison, facts.results)

    def report(self, format: str = "html") -> str:
        """Give the report, made of the run folder alone.

        Args:
            format: "html" (one page that needs no other file), "md", "csv" (a row an arm, budget and metric) or "json".

        Raises:
            ConfigError: There is no such format.
            RunFolderError: Files of the run are missing, or an older version wrote them.
        """
        from hf_transfer.evidence.report.render import render_report

        return render_report(self.folder, format)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The cells that could not be trained: `arm`, `budget`, `seed` and `error`."""
        return list(self.values.get("failed", []))

    def cells(self) -> list[Path]:
        """Give the folder of each arm, budget and seed that is finished."""
        run = read_yaml(self.folder / RECIPE_FILE)["run"]
        cells = [cell_folder(self.folder, arm, budget, seed) for budget in run["budgets"] for arm in run["arms"] for seed in run["seeds"]]
        return [cell for cell in cells if (cell / RESULT_FILE).is_file()]

    def best(self, base: str | None = None) -> "Model":
        """Give the model of the recommended arm, budget and seed."""
        return load(self.folder, base)


@dataclass(frozen=True)
class Model:
    """A trained model to predict with."""

    saved: "SavedModel" = field(repr=False)

    def __repr__(self) -> str:
        """Give its task, labels and last training."""
        last = self.saved.sidecar.chain[-1:]
        trained = "".join(f", {link['arm']} on {link['dataset']}" for link in last)
        return f"Model({self.saved.task.kind}, {listed(self.labels, 8)}{trained})"

    @property
    def labels(self) -> list[str]:
        """Label names by class id, (C,)."""
        return self.saved.sidecar.labels

    def predict(
        self, inputs: Iterable[Any], precision: str = "auto", advance: Callable[[float], object] | None = None
    ) -> list[dict[str, Any]]:
        """Predict each text or image.

        Args:
            inputs: (B,) texts (pairs of texts for a model of pairs; for NER texts or lists of words), an empty one is predicted like
                any other; or images: paths, encoded images, Pillow images.
            precision: "auto" (bf16 where the hardware multiplies it, else fp32), "bf16", "fp16" (on a GPU) or "fp32".
            advance: Told after each micro-batch which share of the inputs it held.

        Returns:
            (B,) of `{"label", "score" (its probability), "probabilities" (label -> probability)}`; for NER of
            `{"entities": [{"start", "end", "text", "label", "score"}]}`, offsets in characters.

        Raises:
            ConfigError: `inputs` is no such list, or the device cannot do the precision.
            DataError: An image cannot be read.
            CheckpointError: The model gives what is no finite number.
        """
        from hf_transfer.evaluation.prediction import predict_logits
        from hf_transfer.tasks import functions_of
        from hf_transfer.tasks.items import lay_out, to_probabilities
        from hf_transfer.training.device import autocast, default_micro_batch_tokens

        device = next(self.saved.model.parameters()).device
        computing = autocast(precision, device)
        task = functions_of(self.saved.task)
        values = inputs if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable) else list(inputs)
        rows = task.to_inputs(values, self.saved.task)
        if not rows:
            return []
        processor = self.saved.processor
        layout = lay_out(task.encode(processor, rows, self.saved.task))
        collate = functools.partial(task.collate, processor=processor)
        max_tokens = default_micro_batch_tokens(device)
        logits = predict_logits(self.saved.model, layout, collate, task.item_logits, max_tokens, autocast=computing, advance=advance)
        if not (abs(logits) < float("inf")).all():
            raise CheckpointError('the model gives what is no finite number: take --precision fp32 (in Python precision="fp32")')
        probabilities = to_probabilities(logits)
        predictions = task.decode(probabilities, layout.first_item, self.labels)
        return task.to_answers(values, layout.split(probabilities), layout.split(predictions), self.labels)

    def predict_file(
        self, source: str | Path, target: str | Path, columns: Mapping[str, str] | None = None, precision: str = "auto"
    ) -> "TablePrediction":
        """Predict every row of a CSV, TSV, JSONL or Parquet file into another, in memory for some thousand rows.

        The output has the input's columns and rows, in order, and behind them: `prediction` (the label), `score` and `probabilities`
        (label -> probability; in a CSV a column `probability_LABEL` for each label); for NER `entities` (in a CSV as JSON text).

        Args:
            source: The file; it is read twice, so that a mistake in its last row shows before the first is predicted.
            target: The file to write, which must not exist; whole or absent, whatever happens.
            columns: Role -> column (`{"text": "review"}`) for what is called otherwise than in training.
            precision: As in `predict`.

        Raises:
            TransferError: A file cannot be read or written, a column is missing, or a row holds nothing that can be predicted.
        """
        from hf_transfer.evaluation.table_prediction import predict_table
        from hf_transfer.tasks import functions_of
        from hf_transfer.training.device import resolve_precision

        task, resolved = self.saved.task, resolve_precision(precision)
        predict = functools.partial(self.predict, precision=resolved)
        paths = (expanded(source), expanded(target))
        return predict_table(predict, functions_of(task), task, self.labels, *paths, columns)


def _check_run(recipe: Recipe, *what: Any, **how: Any) -> RunSettings:
    """Give the settings of a run, checked before anything is loaded.

    Raises:
        TransferError: One cannot be meant, or the recipe names no data.
    """
    check_no_name_clash()
    settings = check_settings(recipe, *what, **how)
    if recipe.data.source is None:
        raise ConfigError(f"recipe {recipe.name} names no data: give --dataset ID_OR_PATH (in Python: ht.DataConfig(ID_OR_PATH))")
    cache_limit_bytes()  # A mistake there shows before any training.
    return settings


def _cache_only(recipe: Recipe) -> bool:
    """Say whether nothing may be asked of the Hub: all is local, or it does not answer."""
    assert recipe.data.source is not None
    return (is_local_checkpoint(recipe.checkpoint) and is_local_dataset(recipe.data.source)) or not hub_answers()
