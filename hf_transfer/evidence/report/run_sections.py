"""The sections about the run itself: its data, its search, what failed, and how to repeat it."""

from collections.abc import Mapping
from typing import Any

from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.formats import duration, percent, score
from hf_transfer.evidence.report.layout import MOST_UNFOLDED, PRIVATE, Column, Section, Table
from hf_transfer.evidence.report.result_sections import ARM, environment_words
from hf_transfer.evidence.report.sentences import failures
from hf_transfer.files import RECIPE_FILE
from hf_transfer.recipe import to_yaml
from hf_transfer.run_settings import budget_order


def data_section(facts: Facts) -> Section | None:
    """What the data holds, and what of it stands on both sides."""
    found = facts.hygiene
    if found is None:
        return None
    overlap = found["overlap"]
    near = "not searched" if overlap["near_rows"] is None else f"{overlap['near_rows']:,}"
    sentences = [
        f"Training rows whose input stands in test, letter for letter: {overlap['exact_rows']:,}; nearly so: {near} ({overlap['method']}; "
        f"{overlap['searched_train_rows']:,} training and {overlap['searched_test_rows']:,} test rows searched)."
    ]
    if overlap["exact_rows"] or overlap["near_rows"]:
        sentences.append("What stands on both sides flatters every arm that can remember it, scores on new data will be lower.")
    if found["private"]:
        sentences.append(PRIVATE)
    tables = [_splits_table(found), _labels_table(found)]
    if overlap["pairs"]:
        tables.append(_pairs_table(overlap))
    if found["conflicts"]:
        tables.append(_conflicts_table(found))
    return Section("data", "The data", sentences, tables)


def search_section(facts: Facts) -> Section | None:
    """What was searched, and what was chosen."""
    found = facts.search
    if found is None:
        return None
    rows, details = [], []
    for entry in sorted(found["searches"], key=lambda entry: (budget_order(entry["budget"]), entry["seed"])):
        finished = sum(trial["validation_loss"] is not None for trial in entry["trials"])
        place = [entry["arm"], str(entry["budget"]), str(entry["seed"])]
        seconds = duration(sum(trial["seconds"] for trial in entry["trials"]))
        space = "; ".join(f"{field} {_space(values)}" for field, values in entry["space"].items())
        rows.append([*place, space, str(finished), seconds, _params(entry["chosen"]), score(entry["chosen"]["validation_loss"])])
        details += [
            [*place, str(trial["number"]), _params(trial), score(trial["validation_loss"]), duration(trial["seconds"])]
            for trial in entry["trials"]
        ]
    place_columns = [ARM, Column("budget", True), Column("seed", True)]
    columns = [
        *place_columns,
        Column("searched"),
        Column("trials done", True),
        Column("time", True),
        Column("chosen"),
        Column("loss", True),
    ]
    tables = [
        Table("Searched, and chosen by validation loss", columns, rows),
        Table(
            "Every trial",
            [*place_columns, Column("trial", True), Column("tried"), Column("validation loss", True), Column("time", True)],
            details,
            folded=True,
        ),
    ]
    sentence = f"Every arm had the same effort, {found['num_trials']} trials at each budget, scratch too; test rows were not looked at."
    return Section("search", "What was searched", [sentence], tables)


def failed_section(facts: Facts) -> Section | None:
    """The trainings that are missing from every figure above."""
    failed = facts.comparison["failed"]
    if not failed:
        return None
    rows = [[entry["arm"], str(entry["budget"]), str(entry["seed"]), entry["error"]] for entry in failed]
    columns = [ARM, Column("budget", True), Column("seed", True), Column("what went wrong", is_verbatim=True)]
    sentence = f"{len(failures(facts.comparison))} of the trainings failed; no figure of this report holds them."
    return Section("failed", "What failed", [sentence], [Table("Failed trainings", columns, rows)])


def repeat_section(facts: Facts) -> Section:
    """How to run it again, and what it ran on."""
    first = facts.results[0]
    versions = {name: value for name, value in first["environment"].items() if value is not None}
    rows = [[name, str(value)] for name, value in versions.items()]
    rows += [["data fingerprint", first["data"]["fingerprint"]], ["checkpoint", first["checkpoint"]], ["dataset", str(first["dataset"])]]
    sentences = [
        "The recipe below holds every setting, and which arms, budgets and seeds were trained. On one process with as many threads "
        f"it repeats bit for bit; this was {environment_words(facts.results)}."
    ]
    return Section(
        "repeat",
        "Run it again",
        sentences,
        [Table("Environment", [Column("what"), Column("found", is_verbatim=True)], rows, folded=True)],
        source=to_yaml(facts.recipe),
        commands=[f"hf-transfer run --config {RECIPE_FILE} --output-dir runs/again"],
    )


def _splits_table(found: Mapping[str, Any]) -> Table:
    columns = [
        Column("split"),
        *(Column(name, True) for name in ("rows", "empty", "repeat an earlier row", "stand under another label too")),
    ]
    rows = [
        [name, *(f"{split[key]:,}" for key in ("rows", "empty_rows", "duplicate_rows", "conflicting_rows"))]
        for name, split in found["splits"].items()
    ]
    return Table("Splits", columns, rows)


def _labels_table(found: Mapping[str, Any]) -> Table:
    splits = found["splits"]
    names = list(dict.fromkeys(name for split in splits.values() for name in split["label_counts"]))
    rows = [[name, *(f"{split['label_counts'].get(name, 0):,}" for split in splits.values())] for name in names]
    columns = [Column("label", is_verbatim=True), *(Column(name, is_number=True) for name in splits)]
    return Table("Labels", columns, rows, folded=len(names) > MOST_UNFOLDED)


def _pairs_table(overlap: Mapping[str, Any]) -> Table:
    rows = [
        [str(pair["train_row"]), str(pair["test_row"]), percent(pair["similarity"]), pair["train_text"] or "", pair["test_text"] or ""]
        for pair in overlap["pairs"]
    ]
    columns = [
        *(Column(name, True) for name in ("training row", "test row", "alike")),
        Column("in training", is_verbatim=True),
        Column("in test", is_verbatim=True),
    ]
    return Table("Training rows that stand in test, the first of them", columns, rows, folded=True)


def _conflicts_table(found: Mapping[str, Any]) -> Table:
    rows = [
        [str(entry["split"]), ", ".join(map(str, entry["row_ids"])), ", ".join(map(str, entry["labels"])), entry["text"] or ""]
        for entry in found["conflicts"]
    ]
    columns = [Column("split"), Column("rows"), Column("labels", is_verbatim=True), Column("text", is_verbatim=True)]
    return Table("The same input under several labels, the first of them", columns, rows, folded=True)


def _params(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial["params"].items())


def _space(values: list[Any]) -> str:
    is_range = len(values) == 2 and all(isinstance(value, float) for value in values)
    return f"{values[0]:g} to {values[1]:g}" if is_range else " or ".join(map(str, values))
