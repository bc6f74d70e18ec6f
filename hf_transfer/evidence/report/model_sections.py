"""The sections about the recommended model: its classes, its confidence, and the test rows that somebody should look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_transfer.errors import listed
from hf_transfer.evidence.report.diagnostics import MISSED, ClassScore, Confusion, class_scores, confusion_of
from hf_transfer.evidence.report.facts import Facts
from hf_transfer.evidence.report.formats import percent, score
from hf_transfer.evidence.report.layout import MOST_UNFOLDED, PRIVATE, Column, Example, Examples, Piece, Reading, Section, Table

MOST_CLASSES = 12
"""Classes up to which a table of all confusions can be read."""
MOST_PAIRS = 20


def classes_section(facts: Facts) -> Section | None:
    """Each class as the recommended model predicts it, and what it confuses."""
    predicted = facts.chosen_predictions
    if predicted is None:
        return None
    confusion = confusion_of(predicted, facts.finds_entities)
    scores = class_scores(confusion)
    sentences = [f"Of {_chosen(facts)}, on {predicted.num_rows:,} test rows."]
    if lost := [found.name for found in scores if found.support and not found.predicted]:
        which = "type" if facts.finds_entities else "class"
        sentences.append(f"Never predicted, though test holds it: {which} {listed(lost)}.")
    if facts.finds_entities:
        sentences.append(f"An entity is right when its words and its type are; {MISSED} stands for one that was missed, or that is none.")
    tables = [_confusion_table(confusion) if len(confusion.names) <= MOST_CLASSES else _pairs_table(confusion), _scores_table(scores)]
    return Section("classes", "Entities, type by type" if facts.finds_entities else "Class by class", sentences, tables)


def calibration_section(facts: Facts) -> Section | None:
    """Whether the recommended model's probabilities can be believed."""
    if facts.chosen_predictions is None:
        return None
    what = "words that it predicts to be in an entity" if facts.finds_entities else "test rows"
    sentences = [f"Of {_chosen(facts)}: {what} by the probability of what was predicted. On the line, 80 % sure is right 80 % of the time."]
    results = [result for result in facts.results if _is_chosen(facts, result)]
    ece = results[0]["metrics"]["test"].get("ece") if results else None
    if ece is not None:
        sentences.append(f"Expected calibration error: {score(ece)}.")
    return Section("calibration", "Can its confidence be believed?", sentences)


def errors_section(facts: Facts) -> Section | None:
    """Rows that are predicted wrong with the most confidence, and those whose label may be wrong."""
    found = facts.examples
    if found is None:
        return None
    whose = f"{found['arm']}, budget {found['budget']}, seed {found['seed']}"
    sentences = [
        f"Test rows as {whose} predicts them. Look at them: some errors are the model's, some are the data's. Rows are counted from 0."
    ]
    if found["private"]:
        sentences.append(PRIVATE)
    lists = [
        Examples(caption, [_example(entry) for entry in found[key]])
        for key, caption in (
            ("worst_errors", "Wrong, and surest of it"),
            ("suspected_label_errors", "Labels that may be wrong, by confident learning on the mean of all seeds"),
        )
    ]
    return Section("errors", "Errors to look at", sentences, examples=lists)


def _confusion_table(confusion: Confusion) -> Table:
    totals = confusion.counts.sum(axis=1)
    rows = [
        [name, *(str(count) if count else "·" for count in counts)] for name, counts in zip(confusion.names, confusion.counts, strict=True)
    ]
    shades: list[list[float | None]] = [
        [None, *(float(count / total) if total else None for count in counts)]
        for counts, total in zip(confusion.counts, totals, strict=True)
    ]
    columns = [Column("is \\ predicted", is_verbatim=True), *(Column(name, is_number=True, is_verbatim=True) for name in confusion.names)]
    return Table("Rows: what it is. Columns: what was predicted. Shaded by the share of the row", columns, rows, shades=shades)


def _pairs_table(confusion: Confusion) -> Table:
    totals = dict(zip(confusion.names, confusion.counts.sum(axis=1), strict=True))
    rows = [
        [reference, prediction, str(count), percent(count / totals[reference])]
        for reference, prediction, count in confusion.most_confused(MOST_PAIRS)
    ]
    columns = [Column("is", is_verbatim=True), Column("predicted as", is_verbatim=True), Column("times", True), Column("of its rows", True)]
    return Table("Most confused", columns, rows)


def _scores_table(scores: Sequence[ClassScore]) -> Table:
    """Lay out the classes, the worst first."""
    ordered = sorted(scores, key=lambda found: (found.f1 is None, found.f1 or 0.0, -found.support))
    rows = [
        [
            found.name,
            f"{found.support:,}",
            f"{found.predicted:,}",
            score(found.precision),
            score(found.recall),
            score(found.f1),
            _mark(found),
        ]
        for found in ordered
    ]
    flagged = frozenset(index for index, found in enumerate(ordered) if found.support and not found.predicted)
    numbers = (Column(name, True) for name in ("support", "predicted", "precision", "recall", "F1"))
    columns = [Column("class", is_verbatim=True), *numbers, Column("note")]
    return Table("Each class, the worst first", columns, rows, flagged, folded=len(scores) > MOST_UNFOLDED)


def _mark(found: ClassScore) -> str:
    if not found.support:
        return "not in test"
    return "" if found.predicted else "never predicted"


def _example(entry: Mapping[str, Any]) -> Example:
    title = f"test row {entry['row_id']}"
    data = f"the data says (the model: {percent(entry['reference_probability'])})"
    model = f"the model says ({percent(entry['confidence'])} sure)"
    if "words" not in entry:
        readings = [Reading(data, entry["reference"]), Reading(model, entry["prediction"])]
        return Example(title, readings, text=entry["text"], image=entry["image"])
    words, first = entry["words"], entry["first_word"]
    sides = ((data, entry["reference"]), (model, entry["prediction"]))
    readings = [_marked(who, spans, words, first) for who, spans in sides]
    return Example(f"{title}, word {first + entry['word'] + 1}", readings, focus=words[entry["word"]] if words else None)


def _marked(who: str, spans: Sequence[Mapping[str, Any]], words: Sequence[str] | None, first: int) -> Reading:
    """Give the words with their entities marked; without words (private data) where they stand in the row."""
    if words is None:
        places = (f"{span['label']} (words {first + span['start'] + 1} to {first + span['end']})" for span in spans)
        return Reading(who, ", ".join(places) or "no entity")
    pieces = []
    place = 0
    for span in sorted(spans, key=lambda span: int(span["start"])):
        if span["start"] > place:
            pieces.append(Piece(" ".join(words[place : span["start"]])))
        pieces.append(Piece(" ".join(words[span["start"] : span["end"]]), span["label"]))
        place = span["end"]
    if place < len(words):
        pieces.append(Piece(" ".join(words[place:])))
    return Reading(who, None, pieces)


def _chosen(facts: Facts) -> str:
    chosen = facts.comparison["recommendation"]
    return f"{chosen['arm']} (budget {chosen['budget']}, seed {chosen['seed']}), the model to ship"


def _is_chosen(facts: Facts, result: Mapping[str, Any]) -> bool:
    chosen = facts.comparison["recommendation"]
    return all(result[key] == chosen[key] for key in ("arm", "budget", "seed"))
